"""Machines that have ended while the scheduler still waits for their workers, and of which it is therefore to be told.

A worker whose stream breaks may come back, so the scheduler keeps its leases for a while. Of a machine whose process has ended,
or that its provider lists no more, no worker comes back, and its leases need not wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from protos.rexec.scheduler.v1 import autoscaling_pb2

UNSEEN_SECONDS: Final = 10.0
"""A scheduler that does not know the worker for so long has nothing to wait for. Long enough for one that has not told yet that
it came."""

AGAIN_SECONDS: Final = 5.0
"""A scheduler that still waits so long after it was told was not reached, and is told once more."""


@dataclass(slots=True)
class _Ending:
    """One machine's. Times are monotonic seconds."""

    seen_at: float
    """When its worker was in what the scheduler tells, or else when the machine ended."""
    told_at: float = float("-inf")


class Ended:
    """By name, which no other machine ever has."""

    def __init__(self) -> None:
        self._endings: dict[str, _Ending] = {}

    def note(self, name: str, now: float) -> None:
        """The machine has ended for certain. Harmless the second time."""
        self._endings.setdefault(name, _Ending(now))

    def lives(self, name: str) -> None:
        """The machine is there: one whose start seemed to have failed may come after all."""
        self._endings.pop(name, None)

    def to_be_told(self, workers: Iterable[autoscaling_pb2.AttachedWorker], now: float) -> list[str]:
        """Those that are away as far as the scheduler knows, in its order; they count as told from now on. One whose stream it
        has not seen break is named once it has."""
        if not self._endings:
            return []
        told: list[str] = []
        for worker in workers:
            ending = self._endings.get(worker.name)
            if ending is None:
                continue
            ending.seen_at = now
            if worker.away and now - ending.told_at > AGAIN_SECONDS:
                ending.told_at = now
                told.append(worker.name)
        for name in [name for name, ending in self._endings.items() if now - ending.seen_at > UNSEEN_SECONDS]:
            del self._endings[name]
        return told
