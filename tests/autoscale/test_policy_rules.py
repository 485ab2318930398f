"""What holds of every decision, whatever there is and waits."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rexec.autoscale.policy import decide
from rexec.autoscale.view import Member, MemberState, Offer, PoolView, Waiting

NAMES = ("a", "b", "c")
VALUES = ("x", "y")
Case = tuple[list[PoolView], list[Waiting], list[Member]]

seconds = st.floats(0, 1000) | st.sampled_from([0.0, 0.1, 5.0, 20.0, 120.0])
pairs = st.sets(st.sampled_from([("p", value) for value in VALUES]), max_size=1).map(frozenset)


@st.composite
def pool_views(draw: st.DrawFn, name: str) -> PoolView:
    most = draw(st.integers(1, 12))
    return PoolView(
        name=name,
        family=draw(st.sampled_from(["one", "two"])),
        offer=Offer(
            frozenset({("p", draw(st.sampled_from([*VALUES, "*"])))}),
            slots=draw(st.integers(1, 9)),
            memory_bytes=draw(st.sampled_from([0, 4, 9])),
        ),
        min=draw(st.integers(0, most)),
        max=most,
        family_max=draw(st.integers(1, 15)),
        target_wait_seconds=draw(st.floats(0.5, 100)),
        idle_seconds=draw(seconds),
        start_seconds=draw(seconds),
        price_per_hour=draw(st.sampled_from([0.0, 1.0, 2.5])),
        startable=draw(st.sampled_from([0, 1, 3, 1_000_000])),
        lately_wanted=draw(st.sampled_from([0, 2, 1_000_000])),
    )


works = st.builds(
    Waiting,
    pairs=pairs,
    instance_name=st.just(""),
    tenant=st.sampled_from(["t", "u", "v"]),
    slots=st.integers(1, 4),
    cpu_millis=st.just(0),
    memory_bytes=st.integers(0, 5),
    tasks=st.integers(0, 300),
    slot_seconds=seconds,
    longest_seconds=seconds,
    oldest_seconds=seconds,
)


@st.composite
def member_views(draw: st.DrawFn, number: int) -> Member:
    slots = draw(st.integers(1, 9))
    state = draw(st.sampled_from(MemberState))
    busy = draw(st.integers(0, slots)) if state is MemberState.READY else 0
    idle = 0.0 if busy or state is MemberState.STARTING else draw(seconds)
    rest = draw(seconds) if busy else 0.0
    return Member(f"w{number}", draw(st.sampled_from(NAMES)), state, slots, busy, idle, draw(seconds), rest)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    pools = [draw(pool_views(name)) for name in NAMES[: draw(st.integers(1, 3))]]
    waiting = draw(st.lists(works, max_size=6))
    members = [draw(member_views(number)) for number in range(draw(st.integers(0, 14)))]
    return pools, waiting, members


@given(cases(), st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_no_limit_is_ever_passed(case: Case, startable: int) -> None:
    pools, waiting, members = case
    decisions = decide(pools, waiting, members, startable=startable)
    assert set(decisions) == {pool.name for pool in pools}
    assert sum(decision.start for decision in decisions.values()) <= startable
    families: dict[str, int] = {}
    for pool in pools:
        start = decisions[pool.name].start
        there = sum(member.pool == pool.name for member in members)
        families[pool.family] = families.get(pool.family, 0) + there
        assert 0 <= start <= pool.startable
        assert start == 0 or there + start <= pool.max
    for pool in pools:
        started = sum(decisions[other.name].start for other in pools if other.family == pool.family)
        assert started == 0 or families[pool.family] + started <= pool.family_max


@given(cases())
@settings(max_examples=150, deadline=None)
def test_only_idle_workers_leave_and_only_starting_ones_are_cancelled(case: Case) -> None:
    pools, waiting, members = case
    by_name = {member.name: member for member in members}
    for name, decision in decide(pools, waiting, members).items():
        for left in decision.leave:
            assert by_name[left].pool == name
            assert by_name[left].state is MemberState.READY
            assert by_name[left].busy_slots == 0
        for cancelled in decision.cancel:
            assert by_name[cancelled].pool == name
            assert by_name[cancelled].state is MemberState.STARTING
        assert len({*decision.leave, *decision.cancel}) == len(decision.leave) + len(decision.cancel)
        assert not (decision.start and decision.cancel)
        staying = sum(member.pool == name and member.state is not MemberState.LEAVING for member in members)
        assert decision.target == staying + decision.start - len(decision.leave) - len(decision.cancel)


@given(cases(), works.filter(lambda work: work.tasks > 0))
@settings(max_examples=150, deadline=None)
def test_more_waiting_work_never_makes_a_pool_smaller(case: Case, more: Waiting) -> None:
    pools, waiting, members = case
    before = decide(pools, waiting, members)
    after = decide(pools, [*waiting, more], members)
    for name, decision in before.items():
        assert after[name].target >= decision.target
        assert after[name].wanted >= decision.wanted


@given(cases(), st.integers(0, 5), st.integers(1, 50), st.floats(0, 500))
@settings(max_examples=150, deadline=None)
def test_more_tasks_of_a_kind_never_make_a_pool_smaller(case: Case, which: int, tasks: int, longer: float) -> None:
    pools, waiting, members = case
    if not waiting or waiting[which % len(waiting)].slot_seconds == 0:
        return
    kind = waiting[which % len(waiting)]
    grown = replace(kind, tasks=kind.tasks + tasks, slot_seconds=kind.slot_seconds + longer)
    before = decide(pools, waiting, members)
    after = decide(pools, [grown if work is kind else work for work in waiting], members)
    for name, decision in before.items():
        assert after[name].target >= decision.target


@given(cases())
@settings(max_examples=100, deadline=None)
def test_without_work_and_with_everything_idle_for_long_each_pool_goes_back_to_its_min(case: Case) -> None:
    pools, _waiting, members = case
    idle = [
        replace(member, state=MemberState.READY, busy_slots=0, idle_seconds=1e6, rest_seconds=0.0) for member in members
    ]
    decisions = decide([replace(pool, startable=0) for pool in pools], [], idle)
    for pool in pools:
        there = sum(member.pool == pool.name for member in members)
        assert decisions[pool.name].target == min(there, pool.min)


@given(cases())
@settings(max_examples=100, deadline=None)
def test_nothing_starts_beyond_min_for_work_that_fits_no_pool(case: Case) -> None:
    pools, waiting, members = case
    foreign = [replace(work, pairs=frozenset({("q", "z")})) for work in waiting]
    for pool in pools:
        there = sum(member.pool == pool.name and member.state is not MemberState.LEAVING for member in members)
        assert decide(pools, foreign, members)[pool.name].start <= max(0, pool.min - there)


anything = st.floats(allow_nan=True, allow_infinity=True)


@given(cases(), st.integers(0, 20), st.lists(anything, min_size=4, max_size=4))
@settings(max_examples=150, deadline=None)
def test_figures_without_sense_break_no_limit(case: Case, startable: int, figures: list[float]) -> None:
    pools, waiting, members = case
    total, longest, oldest, rest = figures
    mad = [replace(work, slot_seconds=total, longest_seconds=longest, oldest_seconds=oldest) for work in waiting]
    busy = [replace(member, rest_seconds=rest if member.busy_slots else 0.0) for member in members]
    decisions = decide(pools, mad, busy, startable=startable)
    assert 0 <= sum(decision.start for decision in decisions.values()) <= startable
    for pool in pools:
        there = sum(member.pool == pool.name for member in members)
        start = decisions[pool.name].start
        assert start == 0 or there + start <= pool.max


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_work_and_workers_changes_nothing(case: Case, shuffle: random.Random) -> None:
    pools, waiting, members = case
    # Whoever groups the work makes one group of what is alike.
    waiting = list({(work.tenant, work.pairs, work.slots, work.memory_bytes): work for work in waiting}.values())
    decisions = decide(pools, waiting, members)
    assert decide(pools, waiting, members) == decisions
    shuffle.shuffle(waiting)
    shuffle.shuffle(members)
    again = decide(pools, waiting, members)
    for name, decision in decisions.items():
        assert (again[name].target, again[name].leave, again[name].cancel) == (
            decision.target,
            decision.leave,
            decision.cancel,
        )
