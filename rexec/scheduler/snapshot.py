"""The queue's state in numbers, for metrics: it costs the number of workers, groups and tasks, and its size is bounded."""

from __future__ import annotations

from typing import Final

from rexec.scheduler.accounts import OTHER_TENANTS
from rexec.scheduler.found_workers import STATE_NAMES, state_of
from rexec.scheduler.observer import PlatformLoad, PoolLoad, Snapshot, TenantLoad
from rexec.scheduler.overview import Line, categories_of, lines_of, stand_of
from rexec.scheduler.pools import Pools
from rexec.scheduler.state import QueueState
from rexec.scheduler.summary import shortened
from rexec.scheduler.task import Ending

MAX_PLATFORMS: Final = 100
"""Platforms that are counted apart. They become labels of metrics, and any client may ask for a new one."""

OTHER_PLATFORMS: Final = "(others)"

MAX_POOLS: Final = 100
"""Pools that are counted apart: with a pool for each container image there may be many."""

OTHER_POOLS: Final = "(others)"

MAX_LABEL_CHARACTERS: Final = 200


def snapshot_of(state: QueueState, now: float) -> Snapshot:
    """The numbers of this moment."""
    workers = dict.fromkeys(STATE_NAMES.values(), 0)
    slots = busy = 0
    for worker in state.fleet.workers.values():
        name = STATE_NAMES[state_of(worker)]
        workers[name] += 1
        if name == "ready":
            slots += worker.slots
            busy += worker.slots - max(0, worker.free_slots)
    lines = lines_of(state)
    merged: dict[str, Line] = {}
    for requirement, line in sorted(lines.items(), key=lambda item: -item[1].tasks):
        label = shortened(str(requirement), MAX_LABEL_CHARACTERS)  # several instances may have the same requirement
        into = merged.setdefault(label if label in merged or len(merged) < MAX_PLATFORMS else OTHER_PLATFORMS, Line())
        into.groups += line.groups
        into.tasks += line.tasks
    usual = state.statistics.mean_seconds
    platforms = {
        label: PlatformLoad(line.tasks, now - line.oldest_at, line.expected_slot_seconds(usual))
        for label, line in merged.items()
    }
    stand = stand_of(state.tasks.values())
    tenants: dict[str, TenantLoad] = {}
    for tenant, tally in state.accounts.tenants.items():
        # One that is called as the rest is counted with it, and so are two whose names begin alike.
        label = tenant if len(tenant) <= MAX_LABEL_CHARACTERS else OTHER_TENANTS
        load = TenantLoad(
            tally.queued,
            tally.executing,
            tally.slot_seconds.total(now),
            tally.cost.total(now),
            {ending.value: tally.ended[ending] for ending in Ending},
        )
        tenants[label] = load + tenants[label] if label in tenants else load
    return Snapshot(
        platforms=platforms,
        executing=stand.running + stand.next,
        parked=stand.parked,
        reasons=categories_of(state, lines.values(), stand),
        operations=len(state.operations),
        workers=workers,
        slots=slots,
        busy_slots=busy,
        tenants=tenants,
        has_prices=state.has_prices,
        pools=_pools(state.fleet.pools),
    )


def _pools(pools: Pools) -> dict[str, PoolLoad]:
    loads: dict[str, PoolLoad] = {}
    for pool in pools:
        label = pool.name if pool.name in loads or len(loads) < MAX_POOLS else OTHER_POOLS
        load = PoolLoad(pool.ready, pool.starting, pool.leaving, pool.target, pool.cost_today)
        loads[label] = loads[label] + load if label in loads else load
    return loads
