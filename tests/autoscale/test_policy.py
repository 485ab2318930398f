"""How many workers there should be, one behaviour at a time."""

from __future__ import annotations

import pytest

from rexec.autoscale.decision import PoolDecision
from rexec.autoscale.policy import decide
from rexec.autoscale.view import Member, MemberState, Offer, PoolView, Waiting
from tests.autoscale.views import LINUX, in_state, pool, ready, starting, work


def decided(one: PoolView, waiting: list[Waiting], members: list[Member]) -> PoolDecision:
    return decide([one], waiting, members)[one.name]


class TestGrowing:
    def test_work_over_the_time_that_it_may_wait_makes_slots(self) -> None:
        decision = decided(pool(), [work(tasks=160, seconds=5)], [])
        assert (decision.start, decision.target) == (10, 10)  # 800 slot-seconds in 20 s: 40 slots
        assert decision.reason == "10 wanted: 800 slot-seconds wait, 20s allowed"

    def test_one_short_action_starts_one_worker(self) -> None:
        assert decided(pool(), [work(1, 0.1)], []).start == 1

    def test_there_are_never_more_slots_than_tasks(self) -> None:
        assert decided(pool(slots=1), [work(3, 3600)], []).start == 3

    def test_each_task_longer_than_it_may_wait_gets_a_slot(self) -> None:
        assert decided(pool(slots=1), [work(7, 21)], []).start == 7

    def test_one_long_task_does_not_make_slots_for_its_length(self) -> None:
        mixed = work(41, 1, slot_seconds=640.0, longest_seconds=600.0)
        assert decided(pool(slots=1), [mixed], []).start == 3  # its own, and 40 s of the others in 20 s

    def test_work_of_unknown_length_counts_as_some_seconds_each(self) -> None:
        unknown = work(20, 0, slot_seconds=0.0, longest_seconds=0.0)
        assert decided(pool(slots=1), [unknown], []).start == 10

    def test_work_that_waits_longer_than_it_should_was_underestimated(self) -> None:
        late = work(100, 1, oldest_seconds=90.0)
        assert (
            decided(pool(slots=1), [late], []).start == 15
        )  # 100 s count as 300 s: three times 10 s + 20 s have passed
        assert decided(pool(slots=1), [work(4, 1, oldest_seconds=1e9)], []).start <= 4

    def test_kinds_of_work_share_workers(self) -> None:
        kinds = [work(2, 1, tenant=f"t{number}") for number in range(40)]
        assert decided(pool(), kinds, []).start == 1

    def test_tasks_that_keep_others_out_of_a_worker_get_more_of_them(self) -> None:
        one = pool(offer=Offer(LINUX, slots=4, memory_bytes=16 << 30))
        assert decided(one, [work(6, 100, memory_bytes=9 << 30)], []).start == 6
        assert decided(one, [work(6, 100, slots=3)], []).start == 6
        assert decided(one, [work(6, 100, slots=2)], []).start == 3

    def test_work_that_no_worker_could_run_starts_none(self) -> None:
        decision = decided(pool(), [work(9, 9, slots=5), work(9, 9, pairs=frozenset({("OSFamily", "mac")}))], [])
        assert decision == PoolDecision(0, reason="0 wanted: nothing waits")

    def test_a_pool_keeps_its_min_without_work(self) -> None:
        decision = decided(pool(min=3), [], [ready("a")])
        assert (decision.start, decision.target, decision.wanted) == (2, 3, 3)

    def test_what_starts_for_min_serves_what_waits(self) -> None:
        assert decided(pool(min=3), [work(12, 100)], []).start == 3


class TestWhatIsThere:
    def test_free_slots_serve_first(self) -> None:
        assert decided(pool(), [work(5, 600)], [ready("a", busy=3), ready("b")]).start == 0

    def test_what_is_on_its_way_is_not_asked_for_again(self) -> None:
        waiting = [work(160, 5, oldest_seconds=3.0)]
        on_their_way = [starting(f"w{number}") for number in range(10)]
        assert decided(pool(), waiting, on_their_way).start == 0
        assert decided(pool(), waiting, on_their_way[:7]).start == 3

    def test_work_that_waits_for_workers_to_come_is_not_late_for_that(self) -> None:
        on_their_way = [starting(f"w{number}", age=400.0) for number in range(10)]
        assert decided(pool(), [work(160, 5, oldest_seconds=401.0)], on_their_way).start == 0

    def test_busy_slots_serve_what_they_can_before_new_ones_come(self) -> None:
        slow = pool(slots=1, start_seconds=60.0)
        assert decided(slow, [work(10, 5)], [ready("a", slots=1, busy=1, rest=5.0)]).start == 0
        assert decided(slow, [work(100, 5)], [ready("a", slots=1, busy=1, rest=5.0)]).start > 0

    def test_busy_slots_that_stay_busy_serve_nothing(self) -> None:
        slow = pool(slots=1, start_seconds=60.0)
        assert decided(slow, [work(1, 5)], [ready("a", slots=1, busy=1, rest=600.0)]).start == 1

    def test_a_queue_that_is_filled_again_and_again_gets_more_workers_in_the_end(self) -> None:
        slow = pool(slots=1, start_seconds=60.0)
        refilled = work(8, 5, oldest_seconds=40.0)
        assert decided(slow, [refilled], [ready("a", slots=1, busy=1, rest=2.0)]).start > 0

    def test_a_pool_that_has_just_come_up_is_not_doubled_for_what_it_will_do_next(self) -> None:
        second_half = work(100, 5, oldest_seconds=10.0)
        one = pool(slots=1, target_wait_seconds=10.0)
        assert decided(one, [second_half], [ready(f"w{n}", slots=1, busy=1, rest=5.0) for n in range(100)]).start == 0

    def test_a_free_slot_that_is_left_alone_for_seconds_does_not_fit(self) -> None:
        beside = [ready("a", busy=1, rest=500.0)]
        assert decided(pool(), [work(1, 600, oldest_seconds=0.5)], beside).start == 0
        assert decided(pool(), [work(1, 600, oldest_seconds=6.0)], beside).start == 1

    def test_a_task_does_not_fit_beside_others_in_pieces(self) -> None:
        beside = [ready("a", busy=3, rest=500.0), ready("b", busy=3, rest=500.0)]
        assert decided(pool(), [work(1, 600, slots=2)], beside).start == 1

    @pytest.mark.parametrize("state", [MemberState.AWAY, MemberState.LEAVING])
    def test_workers_that_are_away_or_leave_serve_nothing_and_take_up_room(self, state: MemberState) -> None:
        gone = [in_state(state, "a"), in_state(state, "b")]
        assert decided(pool(), [work(4, 600)], gone).start == 1
        decision = decided(pool(max=2), [work(4, 600)], gone)
        assert (decision.start, decision.missing) == (0, 1)
        assert decision.target == (2 if state is MemberState.AWAY else 0)


class TestLimits:
    def test_max_and_family_max_and_what_may_be_started(self) -> None:
        much = [work(400, 100)]
        assert decided(pool(max=7), much, [ready("a", busy=4, rest=99.0)]).start == 6
        assert decided(pool(family_max=5), much, []).start == 5
        held = decided(pool(startable=2, held_back="quota of 8 cores is used up"), much, [])
        assert (held.start, held.missing) == (2, 98)
        assert held.reason == "100 wanted: 40000 slot-seconds wait, 20s allowed; quota of 8 cores is used up"
        assert decided(pool(max=7), much, []).reason.endswith("; 7 is its max")

    def test_pools_of_one_family_share_its_max(self) -> None:
        pools = [
            pool(f"images-{image}", family="images", family_max=6, pairs=frozenset({("container-image", image)}))
            for image in ("a", "b")
        ]
        waiting = [work(16, 100, pairs=frozenset({("container-image", image)})) for image in ("a", "b")]
        decisions = decide(pools, waiting, [])
        assert [decisions[one.name].start for one in pools] == [4, 2]
        assert decisions["images-b"].reason.endswith("6 is the max of images")

    def test_all_pools_share_what_may_be_started(self) -> None:
        pools = [pool("a"), pool("b", pairs=frozenset({("gpu", "1")}))]
        waiting = [work(40, 100), work(40, 100, pairs=frozenset({("gpu", "1")}))]
        decisions = decide(pools, waiting, [], startable=13, held_back="13 workers are the most")
        assert sum(decision.start for decision in decisions.values()) == 13
        assert decisions["b"].reason.endswith("13 workers are the most")

    def test_a_smaller_max_makes_idle_workers_leave_at_once(self) -> None:
        decision = decided(pool(max=1), [], [ready("a", idle=1.0), ready("b", busy=1), ready("c", idle=2.0)])
        assert decision.leave == ("c", "a")


class TestSeveralPools:
    cheap = pool("cheap", price_per_hour=0.1, max=2)
    dear = pool("dear", slots=16, price_per_hour=1.6)

    def test_the_cheapest_by_slot_grows_first_and_the_next_does_the_rest(self) -> None:
        decisions = decide([self.dear, self.cheap], [work(40, 100)], [])
        assert (decisions["cheap"].start, decisions["dear"].start) == (2, 2)

    def test_what_is_there_is_used_before_anything_starts(self) -> None:
        assert decide([self.cheap, self.dear], [work(16, 100)], [ready("d", "dear", slots=16)])["cheap"].start == 0

    def test_a_pool_that_may_start_none_is_passed_over(self) -> None:
        held = pool("cheap", price_per_hour=0.1, startable=0, held_back="refused")
        assert decide([held, self.dear], [work(16, 100)], [])["dear"].start == 1

    def test_a_pool_whose_workers_do_not_come_is_passed_over(self) -> None:
        stuck = [starting("c", "cheap", age=31.0)]
        decisions = decide([self.cheap, self.dear], [work(4, 100)], stuck)
        assert (decisions["cheap"].start, decisions["dear"].start) == (0, 1)
        assert "1 asked for 30s ago or less have not come" in decisions["cheap"].reason

    def test_a_pool_whose_workers_do_not_come_is_waited_for_if_there_is_no_other(self) -> None:
        decision = decided(self.cheap, [work(4, 100)], [starting("c", "cheap", age=500.0)])
        assert (decision.start, decision.cancel) == (0, ())

    def test_no_pool_starts_workers_for_what_another_has_done_before_they_come(self) -> None:
        slow = pool("slow", slots=1, start_seconds=60.0, price_per_hour=1.0)
        full = pool("cheap", slots=1, start_seconds=1.0, max=2)
        busy = [ready(name, "cheap", slots=1, busy=1, rest=2.0) for name in ("a", "b")]
        assert decide([full, slow], [work(20, 4)], busy)["slow"].start == 0
        assert decide([full, slow], [work(60, 4)], busy)["slow"].start > 0

    def test_work_that_fits_one_pool_only_is_placed_first(self) -> None:
        gpu = LINUX | {("gpu", "1")}
        fast = pool("fast", pairs=gpu, price_per_hour=0.05, max=1)
        decisions = decide([fast, self.cheap], [work(4, 100, tenant="a"), work(4, 100, tenant="b", pairs=gpu)], [])
        assert (decisions["fast"].start, decisions["cheap"].start) == (1, 1)
        assert decisions["fast"].missing == 0


class TestShrinking:
    def test_workers_idle_for_long_leave_the_longest_idle_first(self) -> None:
        members = [ready("a", idle=130.0), ready("b", idle=500.0), ready("c", idle=60.0), ready("d", busy=1)]
        decision = decided(pool(), [], members)
        assert (decision.leave, decision.target) == (("b", "a"), 2)

    def test_min_stays(self) -> None:
        members = [ready("a", idle=130.0), ready("b", idle=500.0)]
        assert decided(pool(min=1), [], members).leave == ("b",)
        assert decided(pool(min=2), [], members).leave == ()

    def test_what_waits_keeps_workers_that_it_can_use(self) -> None:
        members = [ready("a", idle=500.0), ready("b", idle=500.0)]
        assert decided(pool(), [work(1, 1)], members).leave == ("a",)

    def test_what_starts_is_cancelled_once_nobody_has_needed_it_for_a_while(self) -> None:
        members = [starting("a", age=9.0), starting("b", age=3.0), starting("c", age=5.0)]
        assert decided(pool(lately_wanted=3), [], members).cancel == ()
        assert decided(pool(lately_wanted=2), [], members).cancel == ("b",)
        assert decided(pool(), [work(1, 5)], members).cancel == ("b", "c")

    def test_a_pool_never_remembered_cancels_nothing(self) -> None:
        assert decided(pool(lately_wanted=1_000_000), [], [starting("a", age=9.0)]).cancel == ()

    def test_from_nothing_to_many_and_back(self) -> None:
        grown = decided(pool(), [work(400, 1)], [])
        assert grown.start == 5
        members = [ready(f"w{number}", busy=4, rest=1.0) for number in range(5)]
        assert decided(pool(), [], members) == PoolDecision(5, wanted=5, reason="5 wanted: busy")
        members = [ready(f"w{number}", idle=121.0) for number in range(5)]
        shrunk = decided(pool(), [], members)
        assert (shrunk.target, len(shrunk.leave)) == (0, 5)
