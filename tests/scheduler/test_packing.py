"""Actions that take more of a worker than one slot: where they fit, what waits, and that they are served in the end."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.digest import Digest
from cas.errors import MalformedRequest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler import events as e
from rexec.scheduler.category import Category, category_of
from rexec.scheduler.command import platform_of
from rexec.scheduler.fairness_settings import PackingSettings
from rexec.scheduler.need import PLAIN, Need, need_of
from rexec.scheduler.packing import MAX_SLOTS, use_on
from rexec.scheduler.platform import Offer, Requirement
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate, Demand, Owner, Usage
from tests.scheduler.rules import LINUX, Driver
from tests.scheduler.simulation import Simulation

GIB = 1 << 30


def action_with(*properties: tuple[str, str]) -> re_pb2.Action:
    named = [re_pb2.Platform.Property(name=name, value=value) for name, value in properties]
    return re_pb2.Action(platform=re_pb2.Platform(properties=named))


def demand_of(*properties: tuple[str, str]) -> Demand:
    return platform_of("", action_with(*properties), re_pb2.Command())[1]


class TestProperties:
    @pytest.mark.parametrize(
        ("properties", "demand"),
        [
            ({}, Demand()),
            ({"cpu": "2"}, Demand(cpu_millis=2000)),
            ({"cpu": "0.5", "memory": "4GiB"}, Demand(cpu_millis=500, memory_bytes=4 * GIB)),
            ({"memory": "512M"}, Demand(memory_bytes=512 << 20)),
            ({"memory": "1073741824", "slots": "3"}, Demand(3, memory_bytes=GIB)),
            ({"cpu": "1.2345"}, Demand(cpu_millis=1234)),
        ],
    )
    def test_figures_become_a_demand(self, properties: Mapping[str, str], demand: Demand) -> None:
        assert demand_of(*properties.items()) == demand

    def test_what_is_no_figure_has_to_be_offered_as_before(self) -> None:
        requirement, _demand = platform_of("main", action_with(("cpu", "1"), ("OSFamily", "linux")), re_pb2.Command())
        assert requirement == Requirement("main", LINUX)

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            *[("cpu", value, "cores") for value in ("", "x86_64", "-1", "0", "1.", ".5", "1e3", "nan", "9" * 30, "٣")],
            *[("memory", value, "a size") for value in ("", "lots", "-5", "0", "9" * 25, "1EiB", "2PiB", "1" * 4000)],
            *[
                ("slots", value, "a whole number")
                for value in ("", "0", "-1", "1.5", "²", str(MAX_SLOTS + 1), "9" * 99)
            ],
        ],
    )
    def test_a_figure_that_makes_no_sense_is_refused(self, name: str, value: str, expected: str) -> None:
        with pytest.raises(MalformedRequest, match=f"platform property {name}=.*{expected}") as refused:
            demand_of((name, value))
        assert len(str(refused.value)) < 300

    def test_two_figures_of_one_name_are_refused(self) -> None:
        with pytest.raises(MalformedRequest, match="cpu is both '1' and '2'"):
            demand_of(("cpu", "1"), ("cpu", "2"))
        assert demand_of(("cpu", "1"), ("cpu", "1")) == Demand(cpu_millis=1000)

    def test_names_that_mean_nothing_here_are_no_figures(self) -> None:
        ignoring = platform_of("", action_with(("cpu", "k8")), re_pb2.Command(), ["cpu"])
        assert ignoring == (Requirement(), Demand())


class TestUse:
    def test_an_action_that_says_nothing_takes_its_slots_share(self) -> None:
        use = use_on(Offer(cpu_millis=8000, memory_bytes=16 * GIB), 4, PLAIN)
        assert use is not None
        assert (use.slots, use.cpu_millis, use.memory_bytes, use.share_millis, use.plain) == (
            1,
            2000,
            4 * GIB,
            1000,
            True,
        )

    def test_the_share_is_of_what_it_takes_most_of(self) -> None:
        use = use_on(Offer(cpu_millis=8000, memory_bytes=16 * GIB), 4, Need(cpu_millis=1000, memory_bytes=8 * GIB))
        assert use is not None
        assert (use.share_millis, use.plain) == (2000, False)

    @pytest.mark.parametrize("need", [Need(5), Need(cpu_millis=8001), Need(memory_bytes=16 * GIB + 1)])
    def test_what_is_larger_than_the_worker_never_fits(self, need: Need) -> None:
        assert use_on(Offer(cpu_millis=8000, memory_bytes=16 * GIB), 4, need) is None

    def test_a_worker_that_only_offers_a_property_takes_what_asks_for_that_much_or_less(self) -> None:
        offer = Offer(frozenset({("cpu", "2"), ("cpu", "4"), ("memory", "8GiB")}))
        assert use_on(offer, 2, Need(cpu_millis=4000, memory_bytes=8 * GIB)) is not None
        assert use_on(offer, 2, Need(cpu_millis=4001)) is None
        assert use_on(offer, 2, Need(memory_bytes=8 * GIB + 1)) is None

    def test_a_worker_that_says_nothing_or_nonsense_takes_no_figure(self) -> None:
        for pairs in (frozenset[tuple[str, str]](), frozenset({("cpu", "many")})):
            assert use_on(Offer(pairs), 2, Need(cpu_millis=1)) is None
            assert use_on(Offer(pairs), 2, Need(slots=2)) is not None

    def test_memory_that_was_only_seen_keeps_no_action_from_an_empty_worker(self) -> None:
        use = use_on(Offer(memory_bytes=4 * GIB), 4, Need(expected_memory_bytes=64 * GIB))
        assert use is not None
        assert use.memory_bytes == 4 * GIB

    @given(slots=st.integers(1, 64), cpu=st.integers(0, 10**6), memory=st.integers(0, 1 << 44))
    def test_plain_actions_in_all_slots_never_take_more_than_there_is(self, slots: int, cpu: int, memory: int) -> None:
        use = use_on(Offer(cpu_millis=cpu, memory_bytes=memory), slots, PLAIN)
        assert use is not None
        assert use.plain
        assert use.cpu_millis * slots <= cpu
        assert use.memory_bytes * slots <= memory

    @given(seen=st.integers(1, 1 << 60))
    def test_what_was_seen_is_rounded_up_to_few_sizes(self, seen: int) -> None:
        expected = need_of(1, 0, 0, seen).expected_memory_bytes
        if seen < 512 << 20:
            assert expected == 0
        else:
            assert min(seen, 1 << 50) <= expected < 1.5 * seen or seen > 1 << 50

    def test_a_figure_of_its_own_is_over_what_was_seen(self) -> None:
        assert need_of(1, 0, GIB, 64 * GIB) == Need(memory_bytes=GIB)


class TestRoom:
    def test_cores_are_packed(self) -> None:
        rules = Driver()
        rules.attach(slots=8, cpu_millis=8000)
        names = [rules.submit(demand=Demand(cpu_millis=3000)) for _ in range(3)]
        assert [bool(rules.running_on(name)) for name in names] == [True, True, False]
        assert [bool(rules.running_on(rules.submit())) for _ in range(3)] == [True, True, False]
        rules.finish("w1-session")
        assert rules.running_on(names[2])

    def test_memory_is_packed(self) -> None:
        rules = Driver()
        rules.attach(slots=4, memory_bytes=16 * GIB)
        names = [rules.submit(demand=Demand(memory_bytes=10 * GIB)) for _ in range(2)]
        assert [bool(rules.running_on(name)) for name in names] == [True, False]
        assert rules.running_on(rules.submit(demand=Demand(memory_bytes=6 * GIB)))

    def test_slots_are_packed(self) -> None:
        rules = Driver()
        rules.attach(slots=4)
        assert rules.running_on(rules.submit(demand=Demand(3)))
        waiting = rules.submit(demand=Demand(2))
        assert not rules.running_on(waiting)
        assert rules.running_on(rules.submit())
        assert category_of(rules.operation(waiting).task, rules.queue.fleet) is Category.GAP
        assert rules.reason(waiting) == "no worker that fits any platform has slots=2 free at once; it is the next one"

    def test_memory_that_a_class_was_seen_to_take_counts(self) -> None:
        rules = Driver()
        rules.attach(slots=4, memory_bytes=8 * GIB)
        usage = Usage(1.0, 4 * GIB)
        rules.queue.state.statistics.learn(Candidate("", Digest.of(b""), action_class="link"), usage)
        names = [rules.submit(action_class="link") for _ in range(3)]
        assert [bool(rules.running_on(name)) for name in names] == [True, True, False]

    def test_memory_that_any_slot_stands_for_makes_no_difference(self) -> None:
        rules = Driver()
        rules.attach(slots=2, credit=4, memory_bytes=8 * GIB)
        usage = Usage(1.0, 3 * GIB)
        rules.queue.state.statistics.learn(Candidate("", Digest.of(b""), action_class="compile"), usage)
        for _ in range(3):
            rules.submit(action_class="compile")
        assert len(rules.queue.fleet.fits) == 1
        assert len(rules.leases("w1-session")) == 3  # one is fetched ahead, as are plain ones

    def test_only_plain_actions_are_fetched_ahead_and_only_behind_plain_ones(self) -> None:
        rules = Driver()
        rules.attach("w1", slots=2, credit=4)
        rules.submit()
        rules.submit()
        large = rules.submit(demand=Demand(2))
        assert not rules.running_on(large)
        ahead = rules.submit()
        assert rules.running_on(ahead) == "w1"
        rules.attach("w2", slots=2, credit=4)
        assert rules.running_on(large) == "w2"
        names = [rules.submit() for _ in range(2)]
        assert [rules.running_on(name) for name in names] == ["w1", ""]

    def test_what_no_worker_could_hold_waits_with_the_reason(self) -> None:
        rules = Driver()
        rules.attach("w1", slots=2, cpu_millis=4000, memory_bytes=8 * GIB)
        rules.attach("w2", slots=8, cpu_millis=16000, memory_bytes=4 * GIB)
        waiting = {
            "cpu=32 (the most is 16)": rules.submit(demand=Demand(cpu_millis=32000)),
            "memory=64GiB (the most is 8GiB)": rules.submit(demand=Demand(memory_bytes=64 * GIB)),
            "slots=9 (the most is 8)": rules.submit(demand=Demand(9)),
            "slots=4, memory=8GiB together": rules.submit(demand=Demand(4, memory_bytes=8 * GIB)),
        }
        for reason, name in waiting.items():
            assert rules.reason(name) == f"no worker that fits any platform has {reason}"
            assert category_of(rules.operation(name).task, rules.queue.fleet) is Category.TOO_LARGE
        rules.attach("w3", slots=16, cpu_millis=64000, memory_bytes=128 * GIB)
        assert rules.running_on(waiting["cpu=32 (the most is 16)"]) == "w3"

    def test_where_no_worker_tells_of_cores_the_reason_says_so(self) -> None:
        rules = Driver()
        waiting = rules.submit(demand=Demand(cpu_millis=1000))
        assert rules.reason(waiting) == "no worker is attached"
        rules.attach()
        assert "cpu=1 (no worker says how many cores it has)" in rules.reason(waiting)

    def test_a_result_that_is_being_checked_takes_up_no_room(self) -> None:
        rules = Driver()
        rules.attach(slots=4, cpu_millis=4000)
        rules.submit(demand=Demand(cpu_millis=4000))
        waiting = rules.submit(demand=Demand(cpu_millis=4000))
        lease = rules.leases("w1-session")[0]
        rules.do(e.Reported("w1-session", lease.lease_id, lease.epoch))
        assert rules.running_on(waiting)


class TestReservation:
    """One worker with four slots, small actions without end, and a large one that needs all four."""

    @staticmethod
    def crowded(**packing: float) -> Simulation:
        world = Simulation(
            SchedulerSettings(packing=PackingSettings(**packing)), seconds_of=lambda name: 1.0 + len(name) % 3 * 0.3
        )
        for number in range(100):
            world.submit("small" + "x" * (number % 3) + str(number).zfill(3), Owner("", "alice", ""))
        world.attach("w", 4)
        world.run(2.0)
        world.submit("large", Owner("", "bob", ""), demand=Demand(4))
        return world

    def test_a_large_action_is_served_although_small_ones_never_end(self) -> None:
        world = self.crowded(reserve_after_seconds=3.0)
        world.run(20.0)
        (large,) = world.served(Owner("", "bob", ""))
        assert 5.0 < large.at < 9.0
        before = [run for run in world.runs if large.at - 3.0 < run.at < large.at]
        assert before  # the worker is kept free only for the time that the small ones take to end
        assert [run for run in world.runs if run.at > large.at]

    def test_without_a_reservation_it_would_starve(self) -> None:
        world = self.crowded(reserve_after_seconds=1e9)
        world.run(20.0)
        assert world.served(Owner("", "bob", "")) == []

    def test_a_worker_that_is_kept_free_says_for_whom(self) -> None:
        world = self.crowded(reserve_after_seconds=0.0)
        world.run(2.8)
        task = world.queue.tasks["large"]
        assert world.queue.reason(task) == "worker w is kept free until slots=4 fit there; it is the next one"

    def test_it_ends_with_the_action_that_it_is_for(self) -> None:
        world = self.crowded(reserve_after_seconds=0.0)
        world.run(2.8)
        free = world.queue.fleet.workers["w"].free_slots
        assert free > 0
        world.do(e.Cancel("large"))
        assert world.queue.fleet.workers["w"].free_slots == 0

    def test_it_ends_when_it_has_lasted_too_long(self) -> None:
        world = self.crowded(reserve_after_seconds=1.0, reserve_at_most_seconds=0.25)
        fleet = world.queue.fleet
        kept = []
        for step in range(40):
            world.run(2.0 + step / 8)
            kept.append(fleet.reservation(fleet.workers["w"]) is not None)
        stretches = "".join("x" if free else " " for free in kept).split()
        assert len(stretches) >= 3
        assert max(map(len, stretches)) <= 2

    def test_only_some_of_the_workers_are_kept_free(self) -> None:
        world = Simulation(SchedulerSettings(packing=PackingSettings(reserve_after_seconds=0.0)))
        for number in range(60):
            world.submit(f"small-{number:02}", Owner("", "alice", ""))
        for number in range(8):
            world.attach(f"w{number}", 4)
        for slots in (2, 3, 4):
            for user in "bcd":
                world.submit(f"large-{slots}-{user}", Owner("", user, ""), demand=Demand(slots))
        fleet = world.queue.fleet
        most = 0
        while world.queue.tasks:
            world.run(world.now + 0.5)
            most = max(most, sum(fleet.reservation(worker) is not None for worker in fleet.workers.values()))
        assert most <= 2
        assert len(world.runs) == 69
