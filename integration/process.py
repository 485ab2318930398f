"""A program under test as a real process: its log, its death, its children, its CPU time.

Processes are found and ended by pid only, through /proc; nothing is ever looked up by name across the machine.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from integration.waiting import wait_until

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_TAIL_BYTES = 6000


class Process:
    """One started program, whose output goes to a log file that outlives it."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        """Start the program, as `user` if root starts it for another. The log is appended to, so a restarted program keeps
        the story so far."""
        self.command = tuple(command)
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=None if environment is None else dict(environment),
                start_new_session=True,
                user=user,
            )
        self.pid = self._popen.pid

    def is_running(self) -> bool:
        return self._popen.poll() is None

    def log_tail(self) -> str:
        """The end of the log, for a failure's text."""
        return tail(self.log.read_text(errors="replace"))

    def expect_running(self) -> None:
        """Raises AssertionError with the log when the program has ended."""
        if not self.is_running():
            raise AssertionError(
                f"{' '.join(self.command)} ended with {self._popen.returncode}; its log ends with:\n{self.log_tail()}"
            )

    def stop(self, deadline_seconds: float = 30) -> int:
        """Ask for an orderly end (SIGTERM) and return the exit code.

        Raises AssertionError when the program is still there at the deadline (it is killed then).
        """
        if self.is_running():
            self._popen.terminate()
        return self.ended(deadline_seconds)

    def ended(self, deadline_seconds: float = 30) -> int:
        """The exit code of a program that ends by itself, or was told to.

        Raises AssertionError when the program is still there at the deadline (it is killed then).
        """
        try:
            return self._popen.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"{' '.join(self.command)} was still running after {deadline_seconds:g} s in which it was to end; "
                f"its log ends with:\n{self.log_tail()}"
            ) from None

    def kill(self) -> None:
        """End the program at once (SIGKILL), its children untouched."""
        self._popen.kill()
        self._popen.wait()

    def children(self) -> dict[int, str]:
        """Pid and command line of the direct children."""
        return children_of(self.pid)


def children_of(pid: int) -> dict[int, str]:
    """Pid and command line (arguments joined by spaces) of the living direct children of a process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = _stat_fields(entry)
            if int(fields[1]) == pid and fields[0] != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
    return found


def descendants_of(pid: int) -> set[int]:
    """The pids of all living children, their children and so on."""
    found: set[int] = set()
    pending = [pid]
    while pending:
        for child in children_of(pending.pop()):
            if child not in found:
                found.add(child)
                pending.append(child)
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, without its children. 0 when it is gone."""
    try:
        fields = _stat_fields(Path("/proc") / str(pid))
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had resident (proc(5), VmHWM). Raises FileNotFoundError when it is gone."""
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kilobytes) << 10


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return _stat_fields(Path("/proc") / str(pid))[0] != "Z"
    except OSError:
        return False


def end_by_pid(pids: set[int], deadline_seconds: float = 10) -> None:
    """Kill processes that the caller started indirectly, and wait until they are gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, pids)), f"the end of processes {sorted(pids)}", deadline_seconds)


def tail(text: str) -> str:
    """The last few kilobytes of a text, beginning with a whole line."""
    if len(text) <= _TAIL_BYTES:
        return text
    return "[...]\n" + text[-_TAIL_BYTES:].partition("\n")[2]


def _stat_fields(process: Path) -> list[str]:
    """The fields of proc(5)'s `stat` from the third (state) on; the second may itself hold spaces and brackets."""
    return (process / "stat").read_text().rpartition(")")[2].split()
