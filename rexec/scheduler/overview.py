"""The whole of what goes on in one message, from the queue's state: what waits and why, who works, what builds have had.

A pure function. It costs the number of workers, of waiting groups and of tasks, a few microseconds each at most, and its
answer is bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from protos.rexec.scheduler.v1 import status_pb2
from rexec.scheduler.accounts import Key, Tally
from rexec.scheduler.category import Category, category_of
from rexec.scheduler.found_workers import STATES, serves, state_of
from rexec.scheduler.platform import Requirement
from rexec.scheduler.state import QueueState
from rexec.scheduler.summary import owner_to_proto, properties_of, shortened
from rexec.scheduler.task import Ending, Task
from rexec.scheduler.waiting import Group

MAX_PLATFORMS: Final = 50
"""Shown of those that something waits for. Real installations have fewer than ten."""

MAX_INVOCATIONS: Final = 200

MAX_POOLS: Final = 100

Names = frozenset[str] | None
"""Instances to look at; None: all."""

Reason = Callable[[Task], str]


@dataclass(slots=True)
class Line:
    """All that waits for the same platform in the same instance."""

    groups: list[Group] = field(default_factory=list)
    tasks: int = 0

    @property
    def oldest_at(self) -> float:
        """When the one was queued that waits longest."""
        return min(group.oldest_at for group in self.groups)

    @property
    def first(self) -> Task:
        """One that came early; its reason stands for the others."""
        return next(iter(self.groups[0].tasks.values()))

    def expected_slot_seconds(self, usual_seconds: float) -> float:
        """What they will take; one of a kind that never ran takes `usual_seconds`."""
        return sum(group.expected_slot_seconds(usual_seconds) for group in self.groups)


@dataclass(slots=True)
class Stand:
    """Tasks by where they are."""

    running: int = 0
    next: int = 0
    parked: int = 0


def lines_of(state: QueueState, names: Names = None) -> dict[Requirement, Line]:
    """What waits, by requirement."""
    return {
        requirement: Line(list(groups), sum(len(group.tasks) for group in groups))
        for requirement, groups in state.waiting.by_requirement()
        if names is None or requirement.instance_name in names
    }


def stand_of(tasks: Iterable[Task], names: Names = None) -> Stand:
    """How many run, are fetched ahead and are parked."""
    stand = Stand()
    for task in tasks:
        if task.place is not None or (names is not None and task.candidate.instance_name not in names):
            continue
        if task.lease is None:
            stand.parked += 1
        elif task.lease.started:
            stand.running += 1
        else:
            stand.next += 1
    return stand


def categories_of(state: QueueState, lines: Iterable[Line], stand: Stand) -> dict[str, int]:
    """Tasks in stage QUEUED by the kind of reason."""
    counts: Counter[str] = Counter()
    for line in lines:
        for group in line.groups:
            counts[category_of(next(iter(group.tasks.values())), state.fleet)] += len(group.tasks)
    counts[Category.NEXT] += stand.next
    counts[Category.PARKED] += stand.parked
    return {name: count for name, count in counts.items() if count}


def overview_of(state: QueueState, names: Names, now: float, reason: Reason) -> status_pb2.Overview:
    """What goes on in these instances. The caller fills in what is not in the state: version and uptime."""
    overview = status_pb2.Overview()
    lines = lines_of(state, names)
    stand = stand_of(state.tasks.values(), names)
    work = overview.work
    work.waiting_tasks = sum(line.tasks for line in lines.values())
    work.running_tasks, work.parked_tasks = stand.running, stand.parked
    usual = state.statistics.mean_seconds
    work.expected_slot_seconds = sum(line.expected_slot_seconds(usual) for line in lines.values())
    for category, count in sorted(categories_of(state, lines.values(), stand).items()):
        work.reasons.add(category=category, tasks=count)
    shown = sorted(lines.items(), key=lambda item: (-item[1].tasks, str(item[0])))
    for requirement, line in shown[:MAX_PLATFORMS]:
        _platform(overview.platforms.add(), state, requirement, line, now, reason)
    overview.platforms_left_out = max(0, len(shown) - MAX_PLATFORMS)
    _workers(overview, state, names)
    _invocations(overview, state, names, now)
    if state.has_prices:
        overview.price.per_slot_hour = state.settings.price.per_slot_hour
        overview.price.currency = state.settings.price.currency
    _pools(overview, state, names)
    return overview


def _platform(
    shown: status_pb2.WaitingPlatform, state: QueueState, requirement: Requirement, line: Line, now: float, reason: Reason
) -> None:  # fmt: skip
    fit = state.fleet.fit(requirement)
    shown.instance_name = requirement.instance_name
    shown.properties.extend(properties_of(requirement.pairs))
    shown.tasks = line.tasks
    shown.oldest_seconds = now - line.oldest_at
    shown.expected_slot_seconds = line.expected_slot_seconds(state.statistics.mean_seconds)
    shown.reason = shortened(reason(line.first))
    shown.workers, shown.slots = len(fit.workers), fit.slots


def _workers(overview: status_pb2.Overview, state: QueueState, names: Names) -> None:
    counts = {kind: status_pb2.WorkerCount(state=kind) for kind in STATES}
    for worker in state.fleet.workers.values():
        if serves(worker, names):
            count = counts[state_of(worker)]
            count.workers += 1
            count.slots += worker.slots
            count.busy_slots += worker.slots - max(0, worker.free_slots)
    overview.workers.extend(counts.values())


def _pools(overview: status_pb2.Overview, state: QueueState, names: Names) -> None:
    seen = [
        pool
        for pool in state.fleet.pools
        if names is None or not pool.offer.instance_names or not names.isdisjoint(pool.offer.instance_names)
    ]
    overview.pools_left_out = max(0, len(seen) - MAX_POOLS)
    for pool in sorted(seen, key=lambda pool: pool.name)[:MAX_POOLS]:
        pairs = pool.offer.pairs.union((pattern.name, pattern.pattern) for pattern in pool.patterns)
        overview.pools.add(
            name=pool.name,
            properties=properties_of(pairs),
            slots=pool.slots,
            min=pool.min,
            max=pool.max,
            target=pool.target,
            ready=pool.ready,
            starting=pool.starting,
            leaving=pool.leaving,
            problem=pool.problem,
            price_per_hour=pool.price_per_hour,
            cost_today=pool.cost_today,
            autoscaler_away=pool.away,
        )


def _invocations(overview: status_pb2.Overview, state: QueueState, names: Names, now: float) -> None:
    accounts = state.accounts
    active = [item for item in accounts.active.items() if names is None or item[0][0] in names]
    for _, tally in active:
        overview.work.queued_operations += tally.queued
        overview.work.executing_operations += tally.executing
    active.sort(key=lambda item: (-item[1].slots, item[1].first_seen))
    idle = (item for item in reversed(accounts.idle.items()) if names is None or item[0][0] in names)
    shown = active[:MAX_INVOCATIONS]
    shown += islice(idle, MAX_INVOCATIONS - len(shown))
    for key, tally in shown:
        _invocation(overview.invocations.add(), key, tally, now, state.statistics.mean_seconds)
    if names is None:
        overview.invocations_left_out = len(active) + len(accounts.idle) - len(shown)
        for tenant, tally in accounts.tenants.items():
            _use(overview.tenants.add(tenant=shortened(tenant)).use, tally, now, state.statistics.mean_seconds)
    else:
        overview.invocations_left_out = len(active) + sum(1 for _ in idle) - len(active[:MAX_INVOCATIONS])


def _invocation(shown: status_pb2.Invocation, key: Key, tally: Tally, now: float, usual_seconds: float) -> None:
    instance_name, owner = key
    shown.instance_name = instance_name
    shown.owner.CopyFrom(owner_to_proto(owner))
    _use(shown.use, tally, now, usual_seconds)
    shown.first_seen_seconds = now - tally.first_seen
    if tally.idle:
        shown.idle_seconds = now - tally.active_at
    eta = eta_seconds(tally, now, usual_seconds)
    if eta is not None:
        shown.eta_seconds = eta


def eta_seconds(tally: Tally, now: float, usual_seconds: float) -> float | None:
    """When its work is done if it keeps the slots that it has; None if it has none, or nothing to do, or if too little is
    known."""
    if not tally.slots or not (tally.queued or tally.executing):
        return None
    left = tally.expected_left(now, usual_seconds)
    return None if left is None else left / tally.slots


def _use(shown: status_pb2.Use, tally: Tally, now: float, usual_seconds: float) -> None:
    shown.queued, shown.executing = tally.queued, tally.executing
    shown.succeeded = tally.ended[Ending.SUCCEEDED]
    shown.failed = tally.ended[Ending.FAILED]
    shown.cached = tally.ended[Ending.CACHED]
    shown.cancelled = tally.ended[Ending.CANCELLED]
    shown.slots = tally.slots
    shown.slot_seconds = tally.slot_seconds.total(now)
    shown.cost = tally.cost.total(now)
    shown.expected_slot_seconds = tally.expected_left(now, usual_seconds) or 0.0
