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
MAX_ALL_PROPERTIES: Final = 10_000
"""Of all pools, patterns too; the scheduler takes no more, and would end the stream."""
MAX_CHARACTERS: Final = 4096
"""Of the name and the value of a property, likewise."""
MAX_PROBLEM_CHARACTERS: Final = 1000
"""The scheduler shows fewer. Over-long ones of hundreds of pools would be more than a message may have."""


def pool_report(
    families: Sequence[PoolSettings],
    pools: Sequence[PoolView],
    members: Iterable[Member],
    decisions: Mapping[str, PoolDecision],
    problems: Mapping[str, str],
    costs: Mapping[str, float],
) -> autoscaling_pb2.Pools:
    """All pools. `problems` by pool, `costs` since midnight by entry of the configuration.

    The pools of images come before the entries that they belong to, so that work is told of the one that is its own. Those for
    which there is no room are left out: clients choose how many there are, and their entries stand for them.
    """
    counts: dict[str, dict[MemberState, int]] = {}
    for member in members:
        states = counts.setdefault(member.pool, {})
        states[member.state] = states.get(member.state, 0) + 1
    report = autoscaling_pb2.Pools()
    by_name = {family.name: family for family in families}
    patterns = sum(len(family.container_images[:MAX_PROPERTIES]) for family in families)
    most = min(MAX_PROPERTIES, max(0, MAX_ALL_PROPERTIES - patterns) // max(1, len(families)))
    room = MAX_ALL_PROPERTIES - patterns - most * len(families)
    for pool in pools:
        of_image = pool.name != pool.family
        pairs = _shown(pool, by_name[pool.family].properties if pool.family in by_name else {})
        pairs = pairs[: MAX_PROPERTIES if of_image else most]
        if of_image:
            if len(pairs) > room:
                continue
            room -= len(pairs)
        states = counts.get(pool.name, {})
        decision = decisions.get(pool.name)
        cost = 0.0 if of_image else costs.get(pool.family, 0.0)
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
            problem=problems.get(pool.name, "")[:MAX_PROBLEM_CHARACTERS],
            start_seconds=round(pool.start_seconds, 1),
            price_per_hour=pool.price_per_hour,
            cost_today=round(cost, 2),
        )
        for name, value in pairs:
            said.properties.add(name=name, value=value)
    for family in families:
        if family.container_images:
            _add_family(report, family, problems.get(family.name, ""), costs.get(family.name, 0.0), most)
    return report


def _shown(pool: PoolView, configured: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """What a pool offers. Of too many those come first that somebody has written down."""
    pairs = [pair for pair in pool.offer.pairs if pair[0] and len(pair[0]) + len(pair[1]) <= MAX_CHARACTERS]
    return sorted(pairs, key=lambda pair: (pair[0] != IMAGE_PROPERTY, pair[0] not in configured, pair))


def _add_family(report: autoscaling_pb2.Pools, family: PoolSettings, problem: str, cost: float, most: int) -> None:
    """The entry that takes every image which a pattern fits. It has no workers itself."""
    offer = Shape(family.name, family).offer(None)
    said = report.pools.add(
        name=family.name,
        instance_names=family.instance_names,
        slots=family.slots,
        cpu_millis=offer.cpu_millis,
        memory_bytes=offer.memory_bytes,
        max=family.max,
        problem=problem[:MAX_PROBLEM_CHARACTERS],
        start_seconds=family.start_seconds,
        price_per_hour=family.price_per_hour,
        cost_today=round(cost, 2),
    )
    for name, value in sorted(offer.pairs, key=lambda pair: (pair[0] not in family.properties, pair))[:most]:
        said.properties.add(name=name, value=value)
    for pattern in family.container_images[:MAX_PROPERTIES]:
        said.patterns.add(name=IMAGE_PROPERTY, value=pattern)
