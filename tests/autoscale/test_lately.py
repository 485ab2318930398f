"""How many workers were wanted lately."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rexec.autoscale.lately import Lately


def test_the_most_of_the_window_counts() -> None:
    lately = Lately(window_seconds=10)
    for now, wanted in ((0.0, 3), (4.0, 7), (6.0, 2)):
        lately.note("a", wanted, now)
    assert lately.wanted("a", 6.0) == 7
    assert lately.wanted("a", 14.0) == 7
    assert lately.wanted("a", 14.1) == 2


def test_the_last_decision_holds_until_the_next() -> None:
    lately = Lately(window_seconds=10)
    lately.note("a", 5, 0.0)
    assert lately.wanted("a", 1000.0) == 5


def test_pools_are_kept_apart_and_forgotten() -> None:
    lately = Lately()
    lately.note("a", 5, 0.0)
    lately.note("b", 6, 0.0)
    lately.keep(["b"])
    assert (lately.wanted("a", 0.0), lately.wanted("b", 0.0)) == (0, 6)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 9)), min_size=1, max_size=30))
def test_it_is_what_a_list_of_all_decisions_would_say(steps: list[tuple[float, int]]) -> None:
    lately = Lately(window_seconds=20)
    said: list[tuple[float, int]] = []
    now = 0.0
    for seconds, wanted in steps:
        now += seconds
        lately.note("a", wanted, now)
        said.append((now, wanted))
        assert lately.wanted("a", now) == max(number for when, number in said if when >= now - 20)
