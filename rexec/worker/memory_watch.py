"""How much memory the processes of each running action take together, looked at now and then.

The kernel tells the peak of the largest process when it has ended (getrusage(2)), which says nothing of eight compilers that ran
side by side. So while actions run their process trees are walked in /proc: a few hundred microseconds for each action. The
next look is put off so far that looking never takes more than MAX_SHARE of one core.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from rexec.worker.process_table import tree_of

LOOK_SECONDS: Final = 1.0
"""Between two looks, at least. What ends sooner is mostly one process, whose peak the kernel knows."""

MAX_SHARE: Final = 0.01
"""Of one core, for looking."""

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class MemoryWatch:
    """The running actions of one agent, by the number of their first process. Lives on the event loop."""

    def __init__(self, cpu_clock: Callable[[], float] = time.thread_time) -> None:
        self._cpu_clock = cpu_clock
        self._peaks: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def began(self, pid: int) -> None:
        """An action runs, and `pid` is its first process."""
        self._peaks[pid] = 0
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_again)

    def ended(self, pid: int) -> int:
        """The most memory that was seen of the action in bytes; 0 if it was over before the first look."""
        peak = self._peaks.pop(pid, 0)
        if not self._peaks and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return peak

    def look(self) -> None:
        """Take note of what all actions use now."""
        for pid, peak in self._peaks.items():
            self._peaks[pid] = max(peak, memory_bytes_of(tree_of(pid)))

    def _look_again(self) -> None:
        began = self._cpu_clock()
        self.look()
        pause = max(LOOK_SECONDS, (self._cpu_clock() - began) / MAX_SHARE)
        self._timer = asyncio.get_running_loop().call_later(pause, self._look_again)


def memory_bytes_of(pids: list[int]) -> int:
    """What these processes take together: the memory of each that is backed by no file, and of what files back, which they
    mostly share, that of the one that has most. Processes that have ended take nothing."""
    private_pages = shared_pages = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as statm:
                _, resident, shared, *_ = statm.read().split()
        except (OSError, ValueError):
            continue
        private_pages += int(resident) - int(shared)
        shared_pages = max(shared_pages, int(shared))
    return (private_pages + shared_pages) * _PAGE_BYTES
