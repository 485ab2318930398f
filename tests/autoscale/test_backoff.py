"""How long a pool is left alone after failures."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from rexec.autoscale.backoff import LONGEST_SECONDS, PROBES, TRIAL_SECONDS, Backoff
from rexec.autoscale.hold import FREE, Hold, tightest


def pauses(backoff: Backoff, rounds: int, jitter: float = 0.0) -> list[float]:
    """The pauses of so many failures, each as soon as another try is made."""
    now = 1000.0
    found = []
    for _ in range(rounds):
        backoff.failed("quota", now, jitter=jitter)
        found.append(backoff.next_try_seconds(now))
        now += found[-1]
    return found


def test_nothing_is_held_before_the_first_failure() -> None:
    backoff = Backoff()
    assert backoff.hold(0.0, starting=50) == FREE
    assert backoff.next_try_seconds(0.0) == 0


def test_pauses_double_from_two_seconds_to_five_minutes() -> None:
    assert pauses(Backoff(), 10) == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_a_thousand_failures_are_like_a_few() -> None:
    assert pauses(Backoff(), 1100)[-1] == LONGEST_SECONDS


def test_chance_makes_pauses_shorter_by_a_quarter_at_most() -> None:
    assert pauses(Backoff(), 3, jitter=1.0) == [1.5, 3, 6]


def test_failures_of_one_round_count_once() -> None:
    backoff = Backoff()
    for millisecond in range(50):
        backoff.failed("quota", millisecond / 1000)
    assert backoff.next_try_seconds(0.05) < 2
    backoff.failed("quota", 2.5)
    assert backoff.next_try_seconds(2.5) == 4


def test_what_somebody_has_to_change_is_tried_less_often() -> None:
    backoff = Backoff()
    backoff.failed("pods is forbidden", 0.0, lasting=True)
    assert backoff.next_try_seconds(0.0) == 30


def test_whoever_refuses_may_say_when_to_come_back() -> None:
    backoff = Backoff()
    backoff.failed("throttled", 0.0, retry_after_seconds=17.0)
    assert backoff.next_try_seconds(0.0) == 17
    backoff.failed("throttled", 1.0, retry_after_seconds=1.0)
    assert backoff.next_try_seconds(1.0) == 16
    for nonsense in (math.nan, math.inf, -5.0):
        backoff.failed("throttled", 2.0, retry_after_seconds=nonsense)
        assert backoff.next_try_seconds(2.0) == 15
    backoff.failed("throttled", 3.0, retry_after_seconds=1e9)
    assert backoff.next_try_seconds(3.0) == LONGEST_SECONDS


def test_after_the_pause_a_few_are_tried() -> None:
    backoff = Backoff()
    backoff.failed("image cannot be pulled", 0.0)
    assert backoff.hold(1.9, starting=0) == Hold(
        0, "a worker failed to start, tried again after 2s: image cannot be pulled"
    )
    assert backoff.hold(2.0, starting=0).startable == PROBES
    assert backoff.hold(2.0, starting=1).startable == PROBES - 1
    assert backoff.hold(2.0, starting=9).startable == 0


def test_a_worker_that_comes_ends_it() -> None:
    backoff = Backoff()
    backoff.failed("quota", 0.0)
    backoff.came(30.0, age_seconds=10.0)
    assert backoff.hold(30.0, starting=0) == FREE
    backoff.failed("quota", 30.0 + TRIAL_SECONDS)
    assert backoff.next_try_seconds(30.0 + TRIAL_SECONDS) == 2


def test_a_worker_that_was_on_its_way_already_proves_nothing() -> None:
    backoff = Backoff()
    backoff.failed("no room for another one", 10.0)
    backoff.came(11.0, age_seconds=5.0)
    assert backoff.hold(11.5, starting=0).startable == 0


def test_workers_that_end_as_soon_as_they_have_come_are_held_longer_and_longer() -> None:
    backoff = Backoff()
    now = 0.0
    found = []
    for _ in range(6):
        backoff.came(now)
        backoff.failed("ended with 1", now + 3)
        found.append(backoff.next_try_seconds(now + 3))
        now += 3 + found[-1]
    assert found == [2, 4, 8, 16, 32, 64]


def test_a_long_reason_is_cut() -> None:
    backoff = Backoff()
    backoff.failed("x" * 100_000, 0.0)
    assert len(backoff.hold(0.0, 0).why) < 400


@given(st.lists(st.tuples(st.floats(0, 400), st.booleans(), st.floats(0, 1, exclude_max=True)), max_size=40))
def test_no_pause_is_longer_than_the_longest(steps: list[tuple[float, bool, float]]) -> None:
    backoff = Backoff()
    now = 0.0
    for seconds, came, jitter in steps:
        now += seconds
        if came:
            backoff.came(now)
            assert backoff.hold(now, starting=0) == FREE
        else:
            backoff.failed("quota", now, jitter=jitter)
            assert 0 < backoff.next_try_seconds(now) <= LONGEST_SECONDS
            assert backoff.hold(now, starting=0).startable == 0
        assert backoff.hold(now + LONGEST_SECONDS, starting=0).startable >= PROBES


def test_the_tightest_of_several_limits_counts() -> None:
    money, failures = Hold(0, "spent"), Hold(0, "failed")
    assert tightest(FREE, failures, money) == failures
    assert tightest(Hold(3, "workers"), FREE) == Hold(3, "workers")
    assert tightest() == FREE
