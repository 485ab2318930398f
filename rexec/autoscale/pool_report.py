"""What the scheduler is told of the pools (autoscaling.proto, Pools), so that work may wait for them and is told why it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.autoscale.decision import PoolDecision
from rexec.autoscale.settings import PoolSettings
from rexec.autoscale.shape import IMAGE_PROPERTY, Shape
from rexec.autoscale.view import Member, MemberState, PoolView

MAX_PROPERTIES: Final = 100
"""Of one pool; the scheduler takes no more."""


def pool_report(
    families: Sequence[PoolSettings],
    pools: Sequence[PoolView],
    members: Iterable[Member],
    decisions: Mapping[str, PoolDecision],
    problems: Mapping[str, str],
    costs: Mapping[str, float],
) -> autoscaling_pb2.Pools:
    """All pools. `problems` by pool, `costs` since midnight by entry of the configuration.

    The pools of images come before the entries that they belong to, so that work is told of the one that is its own.
    """
    counts: dict[str, dict[MemberState, int]] = {}
    for member in members:
        states = counts.setdefault(member.pool, {})
        states[member.state] = states.get(member.state, 0) + 1
    report = autoscaling_pb2.Pools()
    by_name = {family.name: family for family in families}
    for pool in pools:
        states = counts.get(pool.name, {})
        decision = decisions.get(pool.name)
        cost = costs.get(pool.family, 0.0) if pool.name == pool.family else 0.0
        said = report.pools.add(
            name=pool.name,
            instance_names=sorted(pool.offer.instance_names),
            slots=pool.offer.slots,
            cpu_millis=pool.offer.cpu_millis,
            memory_bytes=pool.offer.memory_bytes,
            min=pool.min,
            max=pool.max,
            target=decision.target if decision is not None else pool.min,
            ready=states.get(MemberState.READY, 0),
            starting=states.get(MemberState.STARTING, 0),
            leaving=states.get(MemberState.LEAVING, 0),
            problem=problems.get(pool.name, ""),
            start_seconds=round(pool.start_seconds, 1),
            price_per_hour=pool.price_per_hour,
            cost_today=round(cost, 2),
        )
        configured = by_name[pool.family].properties if pool.family in by_name else {}
        # Of too many those stay that somebody has written down.
        pairs = sorted(
            pool.offer.pairs, key=lambda pair: (pair[0] not in configured and pair[0] != IMAGE_PROPERTY, pair)
        )
        for name, value in pairs[:MAX_PROPERTIES]:
            said.properties.add(name=name, value=value)
    for family in families:
        if family.container_images:
            _add_family(report, family, problems.get(family.name, ""), costs.get(family.name, 0.0))
    return report


def _add_family(report: autoscaling_pb2.Pools, family: PoolSettings, problem: str, cost: float) -> None:
    """The entry that takes every image which a pattern fits. It has no workers itself."""
    offer = Shape(family.name, family).offer(None)
    said = report.pools.add(
        name=family.name,
        instance_names=family.instance_names,
        slots=family.slots,
        cpu_millis=offer.cpu_millis,
        memory_bytes=offer.memory_bytes,
        max=family.max,
        problem=problem,
        start_seconds=family.start_seconds,
        price_per_hour=family.price_per_hour,
        cost_today=round(cost, 2),
    )
    for name, value in sorted(offer.pairs)[:MAX_PROPERTIES]:
        said.properties.add(name=name, value=value)
    for pattern in family.container_images[:MAX_PROPERTIES]:
        said.patterns.add(name=IMAGE_PROPERTY, value=pattern)
