"""What is due when: one heap for every kind of deadline.

Nothing is ever taken out early. Whoever pops an entry asks the record that it names whether the deadline still holds.
"""

from __future__ import annotations

import heapq
from enum import Enum


class Due(Enum):
    """What happens at a deadline."""

    WORKER_LOST = "worker lost"
    TASK_ABANDONED = "task abandoned"
    EXCLUSION_ENDS = "exclusion ends"
    SETTLED = "settled"
    UNSERVED = "unserved"
    LONG_WAIT = "long wait"
    LEASE_WATCHED = "lease watched"
    STRAGGLES = "straggles"
    QUARANTINE_REVIEWED = "quarantine reviewed"


class Deadlines:
    """A heap of (time, kind, name)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Due, str]] = []
        self._serial = 0

    def add(self, when: float, kind: Due, name: str = "") -> None:
        """Something may have to happen at `when`."""
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, kind, name))

    def first(self) -> float | None:
        """The earliest deadline."""
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> list[tuple[float, Due, str]]:
        """Take out everything that is due."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            when, _serial, kind, name = heapq.heappop(self._heap)
            due.append((when, kind, name))
        return due
