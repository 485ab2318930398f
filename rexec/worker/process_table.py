"""What /proc says of processes: who is whose child, in which session, since when, and where (proc(5))."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

MAX_TREE_PROCESSES = 1_000
"""Of one action, looked at one by one; a fork bomb has no end."""


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """One line of /proc/PID/stat, as far as it matters here."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    start_ticks: int
    """Clock ticks after the start of the machine (sysconf SC_CLK_TCK, usually 100 a second)."""

    @property
    def is_dead(self) -> bool:
        """Ended, but not waited for."""
        return self.state in ("Z", "X")


def stat_of(pid: int) -> ProcessStat:
    """The process now. Raises ProcessLookupError if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        raise ProcessLookupError(pid) from None
    # The command's name is in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(b")") + 2 :].split()
    return ProcessStat(pid, fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def all_processes() -> dict[int, ProcessStat]:
    """Every process that this one can see."""
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                table[int(name)] = stat_of(int(name))
            except ProcessLookupError:
                continue
    return table


def children_of_this_process() -> list[int] | None:
    """The children of the first thread, to which orphans are given; None if the kernel does not tell (CONFIG_PROC_CHILDREN).

    Reading this is a thousand times cheaper than `all_processes`, and it is done after every action.
    """
    pid = os.getpid()
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()]
    except OSError:
        return None


def tree_of(pid: int, max_processes: int = MAX_TREE_PROCESSES) -> list[int]:
    """The process and all its descendants, parents first; only itself if the kernel does not tell (CONFIG_PROC_CHILDREN).
    Of more than `max_processes` not all, but more than that.

    What was started by a process that has ended is missing. Each thread has children of its own.
    """
    found = [pid]
    for parent in found:
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for thread in threads:
            try:
                children = Path(f"/proc/{parent}/task/{thread}/children").read_bytes().split()
            except OSError:
                continue
            found += map(int, children)
        if len(found) > max_processes:
            break
    return list(dict.fromkeys(found))  # one whose parent ended meanwhile may be there twice


def lies_in(pid: int, directory: str) -> bool:
    """Whether a process works inside `directory`: its working directory, its root or its TMPDIR is there."""
    prefix = directory.rstrip("/") + "/"
    for link in ("cwd", "root"):
        try:
            place = os.readlink(f"/proc/{pid}/{link}")
        except OSError:
            continue
        if (place + "/").startswith(prefix):
            return True
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    marker = b"TMPDIR=" + os.fsencode(prefix)
    return any((entry + b"/").startswith(marker) for entry in environment.split(b"\0"))


def ticks_now() -> int:
    """The present in the unit of `ProcessStat.start_ticks`, rounded down."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
