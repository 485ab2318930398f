"""What the scheduler tells whoever counts: events as calls, states as a snapshot to be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Observer(Protocol):
    """Counters. The calls come from the event loop and must return at once."""

    def execution_finished(self, result: str, seconds: float) -> None:
        """A task ended `seconds` after it was queued first. `result` is "succeeded", "failed" (exit code not 0) or the
        lower-case name of a status code."""
        ...

    def lease_granted(self, queued_seconds: float) -> None:
        """A task got a worker, `queued_seconds` after it was queued first."""
        ...

    def stage_ended(self, stage: str, seconds: float) -> None:
        """A stage of a run that has ended took so long; for its name see rexec/scheduler/stages.py."""
        ...

    def task_retried(self, counted: bool) -> None:
        """A lease came to nothing; `counted` if it used up an attempt."""
        ...

    def action_cache_read(self, outcome: str) -> None:
        """Execute looked for a result: "hit", "miss" or "skipped"."""
        ...


class Unobserved:
    """An Observer that counts nothing."""

    def execution_finished(self, result: str, seconds: float) -> None:
        pass

    def lease_granted(self, queued_seconds: float) -> None:
        pass

    def stage_ended(self, stage: str, seconds: float) -> None:
        pass

    def task_retried(self, counted: bool) -> None:
        pass

    def action_cache_read(self, outcome: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The scheduler's state at one moment."""

    waiting: Mapping[str, int]
    """Tasks in line by platform requirement, as text."""
    executing: int
    """Tasks that have a worker."""
    operations: int
    """Operations that can be asked for, completed ones included."""
    workers: Mapping[str, int]
    """Workers by state: "ready", "draining", "away"."""
    slots: int
    """Slots of all workers that are ready."""
    busy_slots: int
    """Those of them that have a lease."""
    oldest_seconds: Mapping[str, float] = field(default_factory=dict)
    """How long the task has waited that waits longest, by platform requirement, as text."""
