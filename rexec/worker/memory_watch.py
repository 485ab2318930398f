"""A look now and then at what running actions take: memory, of all processes of each together, and how many processes.

The kernel tells the peak of the largest process when it has ended (getrusage(2)), which says nothing of eight compilers that ran
side by side, and comes too late for one that takes what others need. So while actions run their process trees are walked in
/proc, orphans that were left to this process included. An action that takes more memory than its share, or has too many
processes, is killed alone; when the whole machine runs short, whoever is furthest above its share goes first, before the
kernel chooses somebody, which in a container may be the agent.

Two ways to count memory. The sum over all processes of what no file backs (statm) takes a few microseconds for each, but counts
pages that a parent and its forked children share as often as there are children. The proportional share (PSS, smaps_rollup)
is right and takes a hundred times as long. So nothing is killed for the first figure: only when it is above the share is the
second one looked at, and it decides.

The next look is put off so far that looking takes no more than MAX_SHARE of one core, but never longer than MAX_PAUSE_SECONDS: an
action that starts one process after the other must not make looks rare.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from rexec.worker.excess import Excess, Taken, out_of_memory, over_share, too_many, victim
from rexec.worker.process_table import tree_of

LOOK_SECONDS: Final = 0.1
"""Between two looks, at least: a program that fills memory as fast as it can takes some hundred MiB in this time."""

MAX_SHARE: Final = 0.004
"""Of one core, for looking. With what it takes to be woken up that comes to half a percent."""

MAX_PAUSE_SECONDS: Final = 3.0
"""Between two looks, at most."""

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """What the watch kills for; 0 or False is nothing."""

    max_processes: int = 0
    """Of one action."""
    keeps_to_share: bool = False
    """Whether an action above its share is killed although there is memory left."""
    least_available_bytes: int = 0
    """With less left on the machine, an action is killed."""


@dataclass(slots=True)
class _Watched:
    share_bytes: int
    kill: Callable[[Excess], None]
    peak_bytes: int = 0
    is_killed: bool = False


def _nobody() -> Mapping[int, list[int]]:
    return {}


class MemoryWatch:
    """The running actions of one agent, by the number of their first process. Lives on the event loop."""

    def __init__(
        self,
        cpu_clock: Callable[[], float] = time.thread_time,
        limits: WatchLimits = WatchLimits(),
        orphans: Callable[[], Mapping[int, list[int]]] = _nobody,
        available_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._cpu_clock = cpu_clock
        self._limits = limits
        self._orphans = orphans
        self._available_bytes = available_bytes
        self._running: dict[int, _Watched] = {}
        self._timer: asyncio.TimerHandle | None = None

    def began(self, pid: int, share_bytes: int = 0, kill: Callable[[Excess], None] = lambda _excess: None) -> None:
        """An action runs, and `pid` is its first process. `kill` is called at most once."""
        self._running[pid] = _Watched(share_bytes, kill)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_again)

    def ended(self, pid: int) -> int:
        """The most memory that was seen of the action in bytes; 0 if it was over before the first look."""
        watched = self._running.pop(pid, None)
        if not self._running and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return watched.peak_bytes if watched is not None else 0

    def look(self) -> None:
        """Take note of what all actions take now, and have killed what must be."""
        limits = self._limits
        orphans = self._orphans()
        running: dict[int, Taken] = {}
        for pid, watched in self._running.items():
            if watched.is_killed:
                continue
            pids = self._processes_of(pid, orphans.get(pid, ()))
            if limits.max_processes and len(pids) > limits.max_processes:
                _kill(watched, too_many(limits.max_processes))
                continue
            taken = Taken(memory_bytes_of(pids), watched.share_bytes)
            if taken.above_bytes > 0:
                taken = Taken(proportional_bytes_of(pids), watched.share_bytes)
            watched.peak_bytes = max(watched.peak_bytes, taken.memory_bytes)
            if limits.keeps_to_share and taken.above_bytes > 0:
                _kill(watched, over_share(taken))
            else:
                running[pid] = taken
        # One at a time: what is being killed has not given its memory back yet.
        if limits.least_available_bytes and not any(watched.is_killed for watched in self._running.values()):
            available = self._available_bytes()
            chosen = victim(running) if 0 < available < limits.least_available_bytes else None
            if chosen is not None:
                _kill(self._running[chosen], out_of_memory(running[chosen], available))

    def _processes_of(self, pid: int, orphans: list[int] | tuple[()]) -> list[int]:
        most = self._limits.max_processes
        pids = tree_of(pid, most) if most else tree_of(pid)
        for orphan in orphans:
            if most and len(pids) > most:
                break
            pids += tree_of(orphan, most) if most else tree_of(orphan)
        return pids

    def _look_again(self) -> None:
        began = self._cpu_clock()
        self.look()
        pause = max(LOOK_SECONDS, min((self._cpu_clock() - began) / MAX_SHARE, MAX_PAUSE_SECONDS))
        self._timer = asyncio.get_running_loop().call_later(pause, self._look_again)


def _kill(watched: _Watched, excess: Excess) -> None:
    watched.is_killed = True
    watched.peak_bytes = max(watched.peak_bytes, excess.memory_bytes)
    watched.kill(excess)


def memory_bytes_of(pids: list[int]) -> int:
    """What these processes take together: the memory of each that is backed by no file, and of what files back, which they
    mostly share, that of the one that has most. Processes that have ended take nothing."""
    private_pages = shared_pages = 0
    for pid in pids:
        resident, shared = _resident_and_shared(pid)
        private_pages += resident - shared
        shared_pages = max(shared_pages, shared)
    return (private_pages + shared_pages) * _PAGE_BYTES


def proportional_bytes_of(pids: list[int]) -> int:
    """The same, with each page counted once: divided among those that share it (proc(5), smaps_rollup, Pss). Of a process that
    this one may not look into, what it has without files."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as rollup:
                line = next(line for line in rollup if line.startswith(b"Pss:"))
            total += int(line.split()[1]) * 1024
        except (OSError, StopIteration, ValueError, IndexError):
            resident, shared = _resident_and_shared(pid)
            total += (resident - shared) * _PAGE_BYTES
    return total


def _resident_and_shared(pid: int) -> tuple[int, int]:
    """In pages; nothing for a process that has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            _, resident, shared, *_ = statm.read().split()
    except (OSError, ValueError):
        return 0, 0
    return int(resident), int(shared)
