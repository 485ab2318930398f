"""What is learned of actions, how it decays, and how it is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.digest import Digest
from rexec.scheduler.learned import LARGEST_BYTES, LONGEST_SECONDS, SHORTEST_SECONDS, Learned
from rexec.scheduler.statistics import MIN_SAMPLES, Statistics
from rexec.scheduler.task import Candidate, Usage

ANY = Digest.of(b"action")
BUCKET = 2**0.25
"""How much larger the end of a bucket is than its beginning."""


def action(action_class: str = "CppCompile", action_key: str = "") -> Candidate:
    return Candidate("", ANY, action_class=action_class, action_key=action_key)


def test_of_nothing_nothing_is_known() -> None:
    estimate = Statistics().estimate(action())
    assert (estimate.expected_seconds, estimate.p95_seconds, estimate.peak_memory_bytes, estimate.samples) == (
        0.0, None, 0, 0,
    )  # fmt: skip


def test_actions_of_a_class_are_taken_to_be_alike() -> None:
    statistics = Statistics()
    for seconds in (1.0, 3.0):
        statistics.learn(action("CppCompile", f"{seconds}"), Usage(seconds, 1000))
    statistics.learn(action("Link"), Usage(100.0, 5000))
    estimate = statistics.estimate(action("CppCompile", "another file"))
    assert estimate.expected_seconds == pytest.approx(2.0)
    assert estimate.peak_memory_bytes == 1000
    assert estimate.samples == 2


def test_the_same_step_of_the_same_build_says_more_than_its_class() -> None:
    statistics = Statistics()
    for _ in range(MIN_SAMPLES):
        statistics.learn(action("CppCompile", "small.cc"), Usage(1.0, 10))
    statistics.learn(action("CppCompile", "large.cc"), Usage(60.0, 900))
    large = statistics.estimate(action("CppCompile", "large.cc"))
    assert (large.expected_seconds, large.peak_memory_bytes, large.samples) == (60.0, 900, 1)
    assert large.p95_seconds is not None  # of the class: one run of a step has no percentile


def test_what_no_class_is_known_of_is_expected_to_be_like_all() -> None:
    statistics = Statistics()
    statistics.learn(action("CppCompile"), Usage(4.0))
    estimate = statistics.estimate(action("TestRunner"))
    assert (estimate.expected_seconds, estimate.samples, estimate.p95_seconds) == (4.0, 0, None)


def test_the_95th_percentile_waits_for_enough_runs() -> None:
    statistics = Statistics()
    for _ in range(MIN_SAMPLES - 1):
        statistics.learn(action(), Usage(1.0))
    assert statistics.estimate(action()).p95_seconds is None
    statistics.learn(action(), Usage(1.0))
    assert statistics.estimate(action()).p95_seconds is not None


@given(st.lists(st.floats(0.01, 10_000.0), min_size=20, max_size=300))
def test_the_95th_percentile_is_right_to_a_bucket(durations: list[float]) -> None:
    learned = Learned()
    for seconds in durations:
        learned.learn(seconds, 0)
    limit = learned.quantile_seconds(0.95)
    kept = sum(seconds <= limit * 1.001 for seconds in durations)
    assert kept >= 0.95 * len(durations)
    assert sum(seconds <= limit / BUCKET / 1.001 for seconds in durations) <= 0.95 * len(durations)


def test_old_runs_lose_their_say() -> None:
    learned = Learned()
    for _ in range(3000):
        learned.learn(100.0, 1 << 30)
    for _ in range(1500):
        learned.learn(1.0, 1 << 20)
    assert learned.mean_seconds == pytest.approx(1.0, rel=0.01)
    assert learned.quantile_seconds(0.95) < 2.0
    assert learned.peak_memory_bytes == pytest.approx(1 << 20, rel=0.01)


def test_a_higher_peak_of_memory_is_believed_at_once_and_a_lower_one_slowly() -> None:
    learned = Learned()
    learned.learn(1.0, 100)
    learned.learn(1.0, 1000)
    assert learned.peak_memory_bytes == 1000
    learned.learn(1.0, 100)
    assert 900 < learned.peak_memory_bytes < 1000
    learned.learn(1.0, 0)  # a worker that does not tell has not seen 0
    assert learned.peak_memory_bytes > 900


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e300, float("inf")])
@pytest.mark.parametrize("peak", [-1, 1 << 62])
def test_what_cannot_be_true_is_cut_to_what_can(seconds: float, peak: int) -> None:
    learned = Learned()
    learned.learn(seconds, peak)
    assert SHORTEST_SECONDS <= learned.mean_seconds <= LONGEST_SECONDS
    assert 0 <= learned.peak_memory_bytes <= LARGEST_BYTES
    assert Learned.from_bytes(learned.to_bytes()) == learned


def test_names_from_clients_do_not_fill_the_memory() -> None:
    statistics = Statistics(max_classes=3, max_steps=5)
    for number in range(100):
        statistics.learn(action(f"class {number}", f"step {number}"), Usage(1.0))
        statistics.learn(action("seen always"), Usage(1.0))
    assert len(statistics) == 3 + 5
    assert statistics.estimate(action("seen always")).samples == 100
    assert statistics.estimate(action("class 0")).samples == 0


def test_asking_leaves_no_trace() -> None:
    statistics = Statistics()
    for number in range(100):
        statistics.estimate(action(f"class {number}", f"step {number}"))
    assert len(statistics) == 0
    assert statistics.rows() == []


class TestKeeping:
    def test_what_was_kept_is_known_again(self) -> None:
        before = Statistics()
        for number in range(50):
            before.learn(action("CppCompile", f"{number}"), Usage(number / 10, number))
        after = Statistics()
        for name, data in before.rows():
            assert data is not None
            after.load(name, data)
        for candidate in (action(), action("CppCompile", "7"), action("unknown")):
            assert after.estimate(candidate) == before.estimate(candidate)
        assert after.rows() == []

    def test_only_what_has_changed_is_given(self) -> None:
        statistics = Statistics()
        statistics.learn(action("a", "1"), Usage(1.0))
        statistics.learn(action("b", "2"), Usage(1.0))
        assert {name for name, _ in statistics.rows()} == {"all", "class/a", "class/b", "step/1", "step/2"}
        statistics.learn(action("b", "2"), Usage(1.0))
        assert {name for name, _ in statistics.rows()} == {"all", "class/b", "step/2"}

    def test_what_is_forgotten_is_said_too(self) -> None:
        statistics = Statistics(max_classes=1)
        statistics.learn(action("a"), Usage(1.0))
        statistics.rows()
        statistics.learn(action("b"), Usage(1.0))
        rows = dict(statistics.rows())
        assert rows["class/a"] is None
        assert rows["class/b"] is not None

    @given(st.text(max_size=12), st.binary(max_size=60))
    def test_what_this_version_did_not_write_is_refused(self, name: str, data: bytes) -> None:
        statistics = Statistics()
        with pytest.raises(ValueError, match="statistics"):
            statistics.load(name, b"\x02" + data)
        with pytest.raises(ValueError, match="statistics"):
            statistics.load("class/a", data[:24])
        assert len(statistics) == 0

    def test_numbers_that_cannot_be_true_are_refused(self) -> None:
        learned = Learned()
        learned.learn(1.0, 1)
        data = learned.to_bytes()
        for broken in (data[:1] + b"\xff" * 8 + data[9:], data[:9] + b"\xff" * 8 + data[17:], data[:-4] + b"\xff" * 4):
            with pytest.raises(ValueError, match="cannot be true"):
                Statistics().load("class/a", broken)
