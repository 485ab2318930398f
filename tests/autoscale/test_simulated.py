"""The policy over whole builds: what bench.autoscale shows must stay so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.autoscale_scalers import HorizontalPodAutoscaler, OurPolicy
from bench.autoscale_simulation import Result, World
from bench.autoscale_traces import ALL, Action, Build, Pool, Trace


def played(trace: Trace, longest_seconds: float = 3600.0) -> Result:
    return World(trace, OurPolicy()).run(longest_seconds=longest_seconds)


@pytest.mark.parametrize("make", ALL, ids=lambda make: str(make.__name__))
def test_three_quarters_of_an_hpas_pod_hours_and_builds_about_as_soon(make: Callable[[], Trace]) -> None:
    trace = make()
    ours = played(trace)
    for metric, target in (("cpu", 0.5), ("queue", 1.0)):
        other = World(trace, HorizontalPodAutoscaler(metric, target)).run()
        assert ours.pod_hours < 0.75 * other.pod_hours
        assert ours.makespan_seconds <= 1.02 * other.makespan_seconds


def test_from_nothing_and_back_to_nothing() -> None:
    pool = Pool("one", 4, 10, 0.2, 60)
    build = Build(30.0, tuple(Action("compile", 5.0) for _ in range(200)))
    result = played(Trace("one build", (pool,), (build,)))
    assert result.history[20] == (20.0, 0)
    assert result.history[-1][1] == 0
    assert max(there for _second, there in result.history) == 100
    assert result.build_seconds[0] == pytest.approx(20, abs=2)


def test_a_queue_that_jumps_up_and_down_starts_no_worker_twice() -> None:
    pool = Pool("one", 1, 10, 0.2, 60)
    builds = tuple(Build(20.0 * number, tuple(Action("compile", 8.0) for _ in range(10))) for number in range(30))
    result = played(Trace("steady", (pool,), builds))
    most = max(there for _second, there in result.history)
    assert result.started == most


def test_workers_that_nobody_needs_any_more_are_cancelled_before_they_come() -> None:
    slow, fast = Pool("slow", 1, 300, 0.2, 60), Pool("fast", 1, 1, 0.1, 4)
    build = Build(0.0, tuple(Action("compile", 4.0) for _ in range(40)))
    result = played(Trace("two", (slow, fast), (build,)))
    assert result.makespan_seconds == pytest.approx(41, abs=2)
    assert result.started > 4
    assert max(there for _second, there in result.history) == 4


def test_pods_that_never_start_are_not_asked_for_again_and_again() -> None:
    broken = Pool("broken", 4, 10, 0.1, 30, broken=True)
    build = Build(0.0, tuple(Action("compile", 5.0) for _ in range(100)))
    result = played(Trace("broken", (broken,), (build,)), longest_seconds=1800.0)
    # Fifty slots at once, and each time that those are given up two to try again.
    assert result.started == 13 + 2 + 2
