"""What each invocation and each tenant has had: operations by how they ended, slot-seconds, and what those cost.

The rules call this where something begins, moves or ends; nothing is ever counted by a search. Slots are counted from the
moment at which a lease takes one up until the worker lets go of it: lost leases, repeated ones and those whose result
nobody wants any more are in it, because they are paid for. A lease is paid by the one whose turn it was; what is expected of
a task in line is expected for the one who asked first; an operation is his who asked for it.

The table is bounded: an invocation that is idle is forgotten after a while, and sooner if there are too many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from cas.errors import Cancelled
from rexec.scheduler.task import Ending, Hold, Lease, Operation, Outcome, Owner, Stage, Task

RETAIN_SECONDS: Final = 3600.0
"""How long an idle invocation is shown: until the person who started it has looked."""

MAX_INVOCATIONS: Final = 5_000
"""Idle ones go first; those at work are bounded by the operations and leases there are."""

MAX_TENANTS: Final = 100
"""Tenants that are counted apart. They become labels of metrics, of which there must not be many."""

OTHER_TENANTS: Final = "(others)"
"""Where the rest is counted."""

Key = tuple[str, Owner]
"""Instance name and owner."""


@dataclass(slots=True)
class Meter:
    """The sum of a rate over time."""

    rate: float = 0.0
    """A second."""
    _total: float = 0.0
    _at: float = 0.0

    def change(self, by: float, now: float) -> None:
        """The rate is another one from now on."""
        self._total = self.total(now)
        self._at = now
        self.rate += by

    def total(self, now: float) -> float:
        """The sum so far."""
        return self._total + self.rate * (now - self._at)


@dataclass(slots=True)
class Tally:
    """What one invocation or one tenant has had, and has."""

    first_seen: float
    active_at: float
    """When something of it began or ended last."""
    queued: int = 0
    """Live operations in stage QUEUED."""
    executing: int = 0
    ended: dict[Ending, int] = field(default_factory=lambda: dict.fromkeys(Ending, 0))
    """Operations by how they ended."""
    slots: int = 0
    """Held by leases now."""
    slot_seconds: Meter = field(default_factory=Meter)
    cost: Meter = field(default_factory=Meter)
    waiting: int = 0
    """Its tasks in line: others may wait for what it asked for first."""
    expected_waiting: float = 0.0
    """Slot-seconds that its tasks in line are expected to take."""
    expected_running: float = 0.0
    """Slot-seconds that its present leases were expected to take when they began."""
    unknown_waiting: int = 0
    """Slots that its tasks in line will take of which nothing is known."""
    unknown_running: int = 0
    """The same of its present leases."""
    released_slots: int = 0
    """Slots of the leases that have ended so far."""
    _begun: float = 0.0
    """Sum of slots times beginning over the present leases."""

    @property
    def idle(self) -> bool:
        """Whether nothing of it is queued, is executed or takes up a slot, nor is anything in line that it asked for."""
        return not (self.queued or self.executing or self.slots or self.waiting)

    def expected_left(self, now: float, usual_seconds: float) -> float | None:
        """Slot-seconds that are still to come; None if of some work nothing is known.

        Work of a kind that never ran takes as long as the invocation's own leases have on average, or `usual_seconds` if none
        has ended; 0 is not known. A lease that takes longer than expected counts as nearly done.
        """
        spent = self.slots * now - self._begun
        left = max(0.0, self.expected_waiting) + max(0.0, self.expected_running - spent)
        unknown = self.unknown_waiting + self.unknown_running / 2  # those that run are half done on average
        if not unknown:
            return left
        if self.released_slots:
            usual_seconds = max(0.0, self.slot_seconds.total(now) - spent) / self.released_slots
        return left + unknown * usual_seconds if usual_seconds > 0 else None

    def wait(self, task: Task, by: int) -> None:
        """The task is in line (1), or no more (-1)."""
        self.waiting += by
        if task.expected_seconds is None:
            self.unknown_waiting += by * slots_of(task)
        else:
            self.expected_waiting += by * expected_of(task)

    def began(self, lease: Lease, now: float) -> None:
        """The lease takes up its slots."""
        slots = slots_of(lease.task)
        self.slots += slots
        self._begun += slots * now
        self._expect(lease.task, 1)
        self.slot_seconds.change(slots, now)
        self.cost.change(slots * lease.price, now)

    def released(self, lease: Lease, since: float, now: float) -> None:
        """The lease that began at `since` takes up nothing any more."""
        slots = slots_of(lease.task)
        self.slots -= slots
        self.released_slots += slots
        self._begun -= slots * since
        self._expect(lease.task, -1)
        self.slot_seconds.change(-slots, now)
        self.cost.change(-slots * lease.price, now)
        if not self.slots:  # what floating point leaves over must not grow
            self._begun = self.expected_running = self.slot_seconds.rate = self.cost.rate = 0.0

    def _expect(self, task: Task, by: int) -> None:
        if task.expected_seconds is None:
            self.unknown_running += by * slots_of(task)
        else:
            self.expected_running += by * expected_of(task)


class Accounts:
    """The tallies. `price_of` says what a second of one slot of a worker costs."""

    def __init__(self, price_of: Callable[[Lease], float] = lambda _lease: 0.0) -> None:
        self.active: dict[Key, Tally] = {}
        """Invocations at work."""
        self.idle: dict[Key, Tally] = {}
        """Those of which nothing is queued or executed, the longest idle first."""
        self.tenants: dict[str, Tally] = {}
        self._price_of = price_of

    # Operations

    def joined(self, operation: Operation, now: float) -> None:
        """A live operation is there."""
        stage = operation.task.stage
        for tally in self._tallies(operation.task, operation.owner, now):
            tally.queued += stage is Stage.QUEUED
            tally.executing += stage is Stage.EXECUTING

    def moved(self, operation: Operation, stage: Stage, now: float) -> None:
        """A live operation goes from QUEUED to EXECUTING or back."""
        by = 1 if stage is Stage.EXECUTING else -1
        for tally in self._tallies(operation.task, operation.owner, now):
            tally.queued -= by
            tally.executing += by

    def ended(self, operation: Operation, outcome: Outcome, now: float) -> None:
        """A live operation has ended; its task is still in the stage that it had."""
        stage = operation.task.stage
        for tally in self._tallies(operation.task, operation.owner, now):
            tally.queued -= stage is Stage.QUEUED
            tally.executing -= stage is Stage.EXECUTING
            tally.ended[ending_of(outcome)] += 1
        self._settle(_key(operation.task, operation.owner), now)

    def recorded(self, operation: Operation, outcome: Outcome, now: float) -> None:
        """An operation was complete when it was born."""
        for tally in self._tallies(operation.task, operation.owner, now):
            tally.ended[ending_of(outcome)] += 1
        self._settle(_key(operation.task, operation.owner), now)

    # Tasks in line

    def waits(self, task: Task, now: float) -> None:
        """The task is in line."""
        for tally in self._tallies(task, task.candidate.owner, now):
            tally.wait(task, 1)

    def waits_no_more(self, task: Task, now: float) -> None:
        """The task has left the line."""
        for tally in self._tallies(task, task.candidate.owner, now):
            tally.wait(task, -1)
            if not tally.queued:
                tally.expected_waiting = max(0.0, round(tally.expected_waiting, 6))
        self._settle(_key(task, task.candidate.owner), now)

    # Leases

    def began(self, lease: Lease, now: float) -> None:
        """The lease takes up its slots from now on. Harmless if it does already."""
        if lease.began_at is not None:
            return
        lease.began_at = now
        lease.price = self._price_of(lease)
        self._take(lease, now)

    def _take(self, lease: Lease, now: float) -> None:
        for tally in self._tallies(lease.task, lease.owner, now):
            tally.began(lease, now)

    def released(self, lease: Lease, now: float) -> None:
        """The lease takes up no slot any more. Harmless if it never did."""
        since = lease.began_at
        if since is None or lease.released:
            return
        lease.released = True
        for tally in self._tallies(lease.task, lease.owner, now):
            tally.released(lease, since, now)
        self._settle(_key(lease.task, lease.owner), now)

    # The table

    def _tallies(self, task: Task, owner: Owner, now: float) -> tuple[Tally, Tally]:
        key = _key(task, owner)
        invocation = self.active.get(key)
        if invocation is None:
            invocation = self.active[key] = self.idle.pop(key) if key in self.idle else Tally(now, now)
        invocation.active_at = now
        name = owner.tenant
        tenant = self.tenants.get(name)
        if tenant is None:
            if len(self.tenants) >= MAX_TENANTS:
                name = OTHER_TENANTS
            tenant = self.tenants.setdefault(name, Tally(now, now))
        tenant.active_at = now
        return invocation, tenant

    def _settle(self, key: Key, now: float) -> None:
        """Something of the invocation has ended: if that was all, it is kept for a while, and others may have to go."""
        if self.active[key].idle:
            self.idle[key] = self.active.pop(key)
        self.forget_due(now)

    def forget_due(self, now: float) -> None:
        """Forget the invocations that have been idle for too long by now, or are too many."""
        while self.idle:
            key, tally = next(iter(self.idle.items()))
            too_many = len(self.active) + len(self.idle) > MAX_INVOCATIONS
            if not too_many and tally.active_at > now - RETAIN_SECONDS:
                return
            del self.idle[key]


def restored(
    operations: Iterable[Operation],
    waiting: Iterable[Task],
    leases: Iterable[Lease],
    now: float,
) -> Accounts:
    """The accounts of what is there, made from the records themselves: what those that were kept must agree with. What has
    ended is in none of them, and a lease of which it is not known when it began begins now."""
    accounts = Accounts()
    for operation in operations:
        if operation.outcome is None:
            accounts.joined(operation, now)
    for task in waiting:
        accounts.waits(task, now)
    for lease in leases:
        if lease.started and lease.hold is not Hold.SETTLING and not lease.released:
            if lease.began_at is None:
                accounts.began(lease, now)
            else:
                accounts._take(lease, lease.began_at)
    return accounts


def ending_of(outcome: Outcome) -> Ending:
    """How an operation with this outcome has ended."""
    if outcome.error is None:
        return outcome.ending
    return Ending.CANCELLED if isinstance(outcome.error, Cancelled) else Ending.FAILED


def slots_of(task: Task) -> int:
    """The slots that a lease of the task takes up."""
    return task.candidate.demand.slots


def expected_of(task: Task) -> float:
    """The slot-seconds that the task is expected to take; 0 if nothing is known."""
    return (task.expected_seconds or 0.0) * slots_of(task)


def _key(task: Task, owner: Owner) -> Key:
    return (task.candidate.instance_name, owner)
