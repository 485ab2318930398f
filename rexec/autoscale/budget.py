"""What money and agreed numbers let pools grow to, decided before the policy is asked.

A budget stops what is started, never what runs: once the money of a day is spent, workers that are there go on with whatever
they have and are given, and leave when they have nothing to do for long, down to `min`. It is stronger than `min`, though:
a worker that is lost is not replaced before midnight. A tenant over his budget makes no pool grow; what is there he may use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from rexec.autoscale.hold import FREE, Hold, tightest
from rexec.autoscale.need import task_seconds
from rexec.autoscale.settings import AutoscaleSettings, PoolSettings, TenantBudget
from rexec.autoscale.spending import Spending
from rexec.autoscale.view import Member, Waiting

_NO_BUDGET: Final = TenantBudget()
OTHERS: Final = "*"
"""The budget of each tenant that has none by his name."""


def pool_hold(settings: PoolSettings, spending: Spending) -> Hold:
    """What a pool's own budget lets it start."""
    return _money(settings.max_cost_per_day, spending.of_pool(settings.name), f"of pool {settings.name}")


def overall_hold(settings: AutoscaleSettings, members: Sequence[Member], spending: Spending) -> Hold:
    """What all pools together may start. Workers that leave are counted until they are gone."""
    number = FREE
    if settings.max_workers:
        number = Hold(
            max(0, settings.max_workers - len(members)), f"{settings.max_workers} workers are the most over all pools"
        )
    return tightest(_money(settings.max_cost_per_day, spending.total, "of all pools"), number)


def within_budgets(
    waiting: Sequence[Waiting], members: Sequence[Member], budgets: Mapping[str, TenantBudget], spending: Spending
) -> tuple[list[Waiting], dict[str, str]]:
    """The waiting work that pools may grow for, in its order, and by tenant why the rest is left out, for people.

    Of a tenant who may have only so many slots more, each kind of work keeps its length and loses tasks: the policy asks for
    no more slots than there are tasks. The slots are shared out by the work that there is of each kind.
    """
    running: dict[str, int] = {}
    for member in members:
        for tenant, slots in member.tenants:
            running[tenant] = running.get(tenant, 0) + slots
    kept: dict[int, Waiting] = {}
    reasons: dict[str, str] = {}
    for tenant in sorted({work.tenant for work in waiting if work.tasks > 0}):
        kinds = [(number, work) for number, work in enumerate(waiting) if work.tenant == tenant and work.tasks > 0]
        budget = budgets.get(tenant) or budgets.get(OTHERS, _NO_BUDGET)
        if _money(budget.max_cost_per_day, spending.of_tenant(tenant), "").startable == 0:
            reasons[tenant] = f"{_amount(budget.max_cost_per_day)} a day of tenant {tenant!r} are spent"
            continue
        if not budget.max_slots:
            kept.update(kinds)
            continue
        free = max(0, budget.max_slots - running.get(tenant, 0))
        for (number, work), tasks in zip(kinds, _shared_out([work for _, work in kinds], free), strict=True):
            if tasks < work.tasks:
                reasons[tenant] = f"{budget.max_slots} slots are the most of tenant {tenant!r}"
            if tasks:
                kept[number] = replace(work, tasks=tasks)
    return [kept[number] for number in sorted(kept)], reasons


def _shared_out(kinds: Sequence[Waiting], slots: int) -> list[int]:
    """How many tasks of each kind may have slots: by the work of each, and what is left over to the oldest."""
    sizes = [max(1, work.slots) for work in kinds]
    if sum(work.tasks * size for work, size in zip(kinds, sizes, strict=True)) <= slots:
        return [work.tasks for work in kinds]
    weights = [task_seconds(work) * size for work, size in zip(kinds, sizes, strict=True)]
    total = sum(weights)
    tasks = [
        min(work.tasks, math.floor(slots * (weight / total) / size))
        for work, size, weight in zip(kinds, sizes, weights, strict=True)
    ]
    left = slots - sum(number * size for number, size in zip(tasks, sizes, strict=True))
    for place in sorted(range(len(kinds)), key=lambda place: (-kinds[place].oldest_seconds, place)):
        more = max(0, min(kinds[place].tasks - tasks[place], left // sizes[place]))
        tasks[place] += more
        left -= more * sizes[place]
    return tasks


def _money(most: float, spent: float, whose: str) -> Hold:
    """Nothing, once so much is spent; 0: no limit."""
    return Hold(0, f"{_amount(most)} a day {whose} are spent") if most > 0 and spent >= most else FREE


def _amount(money: float) -> str:
    """With two places; as many as it has if those would not show it, as of a budget for a trial."""
    return f"{money:.2f}" if round(money, 2) == money else f"{money:g}"
