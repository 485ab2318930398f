"""Second runs of what takes unusually long."""

from __future__ import annotations

import pytest

from cas.digest import Digest
from rexec.scheduler import events as e
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.statistics import MIN_SAMPLES
from rexec.scheduler.task import Candidate, Failure, Hold, Stage, Task, Usage
from tests.scheduler.rules import Driver, of_kind

CLASS = "CppCompile"
LATE_SECONDS = 12.0
"""When an action of the class is late: it takes 6 s, rounded up to a bucket, times 1.5."""


def experienced(settings: SchedulerSettings | None = None, *, seconds: float = 6.0, runs: int = MIN_SAMPLES) -> Driver:
    """Rules that have seen actions of the class."""
    rules = Driver(settings or SchedulerSettings())
    learn(rules, seconds, runs)
    return rules


def learn(rules: Driver, seconds: float, runs: int = MIN_SAMPLES) -> None:
    for _ in range(runs):
        rules.queue.state.statistics.learn(Candidate("", Digest.of(b""), action_class=CLASS), Usage(seconds))


def slow(rules: Driver, action: str = "slow", *, do_not_cache: bool = False) -> str:
    """An operation whose command runs."""
    name = rules.submit(action, action_class=CLASS, timeout_seconds=3600, do_not_cache=do_not_cache)
    lease = task_of(rules, name).lease
    assert lease is not None
    rules.do(e.Progress(lease.worker.worker_id, lease.lease_id, lease.epoch, running=True))
    return name


def task_of(rules: Driver, name: str) -> Task:
    return rules.operation(name).task


def hedge_of(rules: Driver, name: str) -> str:
    """The name of the worker that has the second lease, "" if there is none."""
    hedge = task_of(rules, name).hedge
    return hedge.worker.name if hedge is not None else ""


@pytest.fixture
def rules() -> Driver:
    return experienced()


@pytest.fixture
def hedged(rules: Driver) -> str:
    """A task that w1 is slow with, and that w2 runs too."""
    rules.attach("w1")
    name = slow(rules)
    rules.attach("w2")
    rules.pass_time(LATE_SECONDS)
    assert hedge_of(rules, name) == "w2"
    return name


class TestWhen:
    def test_an_action_that_runs_past_the_usual_runs_again_on_an_idle_worker(self, rules: Driver) -> None:
        rules.attach("w1")
        name = slow(rules)
        rules.attach("w2")
        assert rules.pass_time(8.9) == []
        (granted,) = of_kind(effects := rules.pass_time(LATE_SECONDS - 8.9), e.LeaseGranted)
        assert (granted.worker_id, granted.hedge, granted.epoch) == ("w2-session", True, 2)
        (told,) = of_kind(effects, e.TaskHedged)
        assert (told.worker_name, told.slow_worker_name) == ("w2", "w1")
        assert told.running_seconds > 6.0
        assert rules.running_on(name) == "w1"  # who looks on still sees the first

    def test_it_can_be_switched_off(self) -> None:
        rules = experienced(SchedulerSettings(hedging=False))
        rules.attach("w1")
        name = slow(rules)
        rules.attach("w2")
        rules.pass_time(600)
        assert hedge_of(rules, name) == ""

    def test_nothing_is_hedged_before_enough_is_known_and_then_it_is(self) -> None:
        rules = experienced(runs=MIN_SAMPLES - 1)
        rules.attach("w1")
        name = slow(rules)
        rules.attach("w2")
        rules.pass_time(50)
        assert hedge_of(rules, name) == ""
        learn(rules, 6.0, 1)
        rules.pass_time(rules.settings.answer_seconds)
        assert hedge_of(rules, name) == "w2"

    def test_a_step_that_took_long_before_is_not_late_yet(self, rules: Driver) -> None:
        known = Candidate("", Digest.of(b""), action_class=CLASS, action_key="large.cc")
        rules.queue.state.statistics.learn(known, Usage(100.0))
        rules.attach("w1")
        name = slow(rules)
        task = task_of(rules, name)
        task.candidate = Candidate("", task.candidate.action_digest, action_class=CLASS, action_key="large.cc")
        rules.attach("w2")
        rules.pass_time(140)
        assert hedge_of(rules, name) == ""
        rules.pass_time(20)
        assert hedge_of(rules, name) == "w2"

    def test_short_actions_are_given_some_seconds(self) -> None:
        rules = experienced(seconds=0.1)
        rules.attach("w1")
        name = slow(rules)
        rules.attach("w2")
        rules.pass_time(rules.settings.hedge_min_seconds - 0.1)
        assert hedge_of(rules, name) == ""
        rules.pass_time(0.2)
        assert hedge_of(rules, name) == "w2"

    def test_what_is_not_to_be_cached_never_runs_twice(self, rules: Driver) -> None:
        rules.attach("w1")
        name = slow(rules, do_not_cache=True)
        rules.attach("w2")
        rules.pass_time(600)
        assert hedge_of(rules, name) == ""

    def test_outputs_that_are_being_delivered_are_waited_for(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        name = slow(rules)
        rules.attach("w2")
        lease = rules.leases(worker)[0]
        rules.do(e.Progress(worker, lease.lease_id, lease.epoch, running=True, delivering=True))
        rules.pass_time(600)
        assert hedge_of(rules, name) == ""


class TestWhere:
    def test_never_on_the_same_worker(self, rules: Driver) -> None:
        rules.attach("w1", slots=4)
        name = slow(rules)
        rules.pass_time(600)
        assert hedge_of(rules, name) == ""

    def test_only_on_a_free_slot_and_as_soon_as_there_is_one(self, rules: Driver) -> None:
        rules.attach("w1")
        name = slow(rules)
        busy = rules.attach("w2", slots=1, credit=3)
        rules.submit("other")
        rules.pass_time(60)
        assert hedge_of(rules, name) == ""  # a place for a lease that is fetched ahead is of no use
        rules.finish(busy)
        rules.pass_time(10)
        assert hedge_of(rules, name) == "w2"

    def test_what_waits_goes_first(self, rules: Driver) -> None:
        rules.attach("w1")
        name = slow(rules)
        busy = rules.attach("w2")
        rules.submit("other")
        waiting = rules.submit("waiting")
        rules.pass_time(60)
        rules.finish(busy)
        rules.credit(busy, 1)
        rules.pass_time(10)
        assert rules.running_on(waiting) == "w2"
        assert hedge_of(rules, name) == ""

    def test_not_on_a_worker_that_the_task_failed_on(self, rules: Driver) -> None:
        bad = rules.attach("bad")
        name = rules.submit("slow", action_class=CLASS, timeout_seconds=3600)
        rules.finish(bad, failure=Failure.INFRASTRUCTURE)
        rules.attach("w1")
        rules.pass_time(rules.settings.exclusion_seconds)
        assert rules.running_on(name) == "w1"
        (lease,) = rules.leases("w1-session")
        rules.do(e.Progress("w1-session", lease.lease_id, lease.epoch, running=True))
        rules.credit(bad, 1)
        rules.pass_time(600)
        assert hedge_of(rules, name) == ""

    def test_a_share_of_the_leases_and_one_at_least(self) -> None:
        rules = experienced(SchedulerSettings(hedge_share=0.1))
        rules.attach("slow", slots=30)
        names = [slow(rules, f"{number}") for number in range(30)]
        rules.attach("idle", slots=30)
        rules.pass_time(60)
        assert sum(hedge_of(rules, name) == "idle" for name in names) == 3
        few = experienced()
        few.attach("slow", slots=2)
        names = [slow(few, f"{number}") for number in range(2)]
        few.attach("idle", slots=2)
        few.pass_time(60)
        assert sum(hedge_of(few, name) == "idle" for name in names) == 1


class TestEnd:
    def test_the_second_run_may_win_and_the_first_is_stopped(self, rules: Driver, hedged: str) -> None:
        effects = rules.finish("w2-session", response="second")
        outcome = rules.operation(hedged).outcome
        assert outcome is not None
        assert outcome.response == "second"
        assert [revoked.worker_id for revoked in of_kind(effects, e.LeaseRevoked)] == ["w1-session"]
        assert [ended.won for ended in of_kind(effects, e.HedgeEnded)] == [True]
        assert task_of(rules, hedged).result_epoch == 2
        rules.finish("w1-session", failure=Failure.REVOKED)
        assert not rules.queue.leases

    def test_the_first_run_may_win_and_the_second_is_stopped(self, rules: Driver, hedged: str) -> None:
        effects = rules.finish("w1-session", response="first")
        outcome = rules.operation(hedged).outcome
        assert outcome is not None
        assert outcome.response == "first"
        assert [revoked.worker_id for revoked in of_kind(effects, e.LeaseRevoked)] == ["w2-session"]
        assert [ended.won for ended in of_kind(effects, e.HedgeEnded)] == [False]
        assert task_of(rules, hedged).result_epoch == 1

    def test_a_result_that_comes_second_is_dropped(self, rules: Driver, hedged: str) -> None:
        (late,) = rules.leases("w1-session")
        rules.finish("w2-session", response="second")
        assert of_kind(rules.finish("w1-session", late, response="late"), e.LeaseAcknowledged)
        outcome = rules.operation(hedged).outcome
        assert outcome is not None
        assert outcome.response == "second"

    def test_a_result_that_is_being_checked_does_not_stop_the_other_run(self, rules: Driver, hedged: str) -> None:
        (first,) = rules.leases("w1-session")
        assert not of_kind(rules.do(e.Reported("w1-session", first.lease_id, first.epoch)), e.LeaseRevoked)
        rules.finish("w1-session", first, failure=Failure.INFRASTRUCTURE, evidence="lied")
        assert rules.running_on(hedged) == "w2"
        assert rules.operation(hedged).stage is Stage.EXECUTING

    @pytest.mark.parametrize("failure", [Failure.INFRASTRUCTURE, Failure.BACK_PRESSURE, Failure.REVOKED])
    @pytest.mark.parametrize("failing", ["w1", "w2"])
    def test_a_run_that_fails_while_the_other_lives_costs_nothing(
        self, rules: Driver, hedged: str, failing: str, failure: Failure
    ) -> None:
        effects = rules.finish(f"{failing}-session", failure=failure)
        assert not of_kind(effects, e.TaskRetried)
        task = task_of(rules, hedged)
        assert (task.losses, task.hedge, task.stage) == ([], None, Stage.EXECUTING)
        assert rules.running_on(hedged) == ("w1" if failing == "w2" else "w2")

    @pytest.mark.parametrize("lost", ["w1", "w2"])
    def test_a_worker_that_is_lost_costs_nothing_either(self, rules: Driver, hedged: str, lost: str) -> None:
        rules.do(e.WorkerDetached(f"{lost}-session"))
        rules.pass_time(rules.settings.grace_seconds)
        assert rules.running_on(hedged) == ("w1" if lost == "w2" else "w2")
        assert task_of(rules, hedged).losses == []

    def test_who_watches_is_told_that_the_other_run_is_the_one_to_watch(self, rules: Driver, hedged: str) -> None:
        effects = rules.finish("w1-session", failure=Failure.INFRASTRUCTURE)
        assert e.OperationChanged(hedged) in effects

    def test_both_failing_makes_it_wait_and_avoid_both(self, rules: Driver, hedged: str) -> None:
        rules.finish("w2-session", failure=Failure.INFRASTRUCTURE)
        rules.finish("w1-session", failure=Failure.INFRASTRUCTURE)
        task = task_of(rules, hedged)
        assert task.excluded == {"w1", "w2"}
        assert len(task.losses) == 1
        rules.attach("w3")
        assert rules.running_on(hedged) == "w3"

    def test_a_task_is_hedged_once(self, rules: Driver, hedged: str) -> None:
        rules.finish("w2-session", failure=Failure.BACK_PRESSURE)
        rules.attach("w3")
        rules.pass_time(600)
        assert hedge_of(rules, hedged) == ""

    def test_cancelling_stops_both(self, rules: Driver, hedged: str) -> None:
        effects = rules.do(e.Cancel(hedged))
        assert {revoked.worker_id for revoked in of_kind(effects, e.LeaseRevoked)} == {"w1-session", "w2-session"}
        assert all(lease.hold is Hold.REVOKED for lease in rules.queue.leases.values())
        assert rules.queue.state.hedges == 0
        assert [ended.won for ended in of_kind(effects, e.HedgeEnded)] == [False]

    def test_only_the_holder_of_a_lease_can_end_it(self, rules: Driver, hedged: str) -> None:
        (first,), (second,) = rules.leases("w1-session"), rules.leases("w2-session")
        for worker, lease in (("w1-session", second), ("w2-session", first)):
            rules.do(e.Finished(worker, lease.lease_id, lease.epoch, Failure.NONE))
            assert rules.operation(hedged).outcome is None
