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

    def hedge_started(self) -> None:
        """A second worker was given a task that takes long."""
        ...

    def hedge_ended(self, won: bool) -> None:
        """One of the two has ended; `won` if it was the second."""
        ...

    def worker_quarantined(self) -> None:
        """A worker gets no leases for a while, because it failed too often."""
        ...

    def journal_committed(self, seconds: float, rows: int) -> None:
        """A transaction of the journal was written; `seconds` from its first change to the commit."""
        ...

    def frontend_links(self, links: int) -> None:
        """So many frontends are connected now."""
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

    def hedge_started(self) -> None:
        pass

    def hedge_ended(self, won: bool) -> None:
        pass

    def worker_quarantined(self) -> None:
        pass

    def journal_committed(self, seconds: float, rows: int) -> None:
        pass

    def frontend_links(self, links: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class PlatformLoad:
    """What waits for one platform."""

    waiting: int
    """Tasks in line."""
    oldest_seconds: float = 0.0
    """How long the task has waited that waits longest."""
    expected_slot_seconds: float = 0.0
    """What they will take, as far as is known."""


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """What one tenant has, and has had since the scheduler started."""

    queued: int
    """Operations."""
    executing: int
    slot_seconds: float = 0.0
    cost: float = 0.0
    ended: Mapping[str, int] = field(default_factory=dict)
    """Operations by how they ended."""

    def __add__(self, other: TenantLoad) -> TenantLoad:
        """Both together."""
        ended = {name: self.ended.get(name, 0) + other.ended.get(name, 0) for name in {**self.ended, **other.ended}}
        return TenantLoad(
            self.queued + other.queued,
            self.executing + other.executing,
            self.slot_seconds + other.slot_seconds,
            self.cost + other.cost,
            ended,
        )


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """The workers of one pool, as its autoscaler says."""

    ready: int = 0
    starting: int = 0
    leaving: int = 0
    target: int = 0
    cost_today: float = 0.0

    def __add__(self, other: PoolLoad) -> PoolLoad:
        """Both together."""
        return PoolLoad(
            self.ready + other.ready,
            self.starting + other.starting,
            self.leaving + other.leaving,
            self.target + other.target,
            self.cost_today + other.cost_today,
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The scheduler's state at one moment."""

    platforms: Mapping[str, PlatformLoad]
    """By platform requirement, as text."""
    executing: int
    """Tasks that have a worker."""
    operations: int
    """Operations that can be asked for, completed ones included."""
    workers: Mapping[str, int]
    """Workers by state: "ready", "draining", "away", "quarantined"."""
    slots: int
    """Slots of all workers that are ready."""
    busy_slots: int
    """Those of them that have a lease."""
    parked: int = 0
    """Tasks that nobody waits for at the moment."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Tasks in stage QUEUED by the kind of reason (rexec/scheduler/category.py)."""
    tenants: Mapping[str, TenantLoad] = field(default_factory=dict)
    has_prices: bool = False
    """Whether costs mean anything."""
    pools: Mapping[str, PoolLoad] = field(default_factory=dict)
    """By name."""
