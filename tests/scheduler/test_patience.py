"""Workers that are connected and do not get on with what they were given."""

from __future__ import annotations

import pytest

from cas.errors import WorkerLost
from rexec.scheduler import events as e
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import HeldLease, Hold, Stage
from tests.scheduler.rules import Driver, of_kind

TIMEOUT_SECONDS = 30.0


@pytest.fixture
def rules() -> Driver:
    return Driver(SchedulerSettings(answer_seconds=60, staging_seconds=300, overdue_seconds=120))


@pytest.fixture
def silent() -> Driver:
    rules = Driver(SchedulerSettings(answer_seconds=60))
    rules.workers_answer = False
    return rules


def submit(rules: Driver, action: str = "") -> str:
    return rules.submit(action, timeout_seconds=TIMEOUT_SECONDS)


def say(rules: Driver, worker: str, lease: HeldLease, *, running: bool = True, delivering: bool = False) -> None:
    rules.do(e.Progress(worker, lease.lease_id, lease.epoch, running, delivering=delivering))


class TestSilence:
    def test_a_lease_that_is_never_answered_runs_elsewhere(self, silent: Driver) -> None:
        silent.attach("w1")
        name = submit(silent)
        silent.attach("w2")
        effects = silent.pass_time(59.9)
        assert effects == []
        effects = silent.pass_time(0.2)
        assert silent.running_on(name) == "w2"
        (revoked,) = of_kind(effects, e.LeaseRevoked)
        assert (revoked.worker_id, revoked.reason) == ("w1-session", "no answer for 60 s to a lease that was sent")
        (retried,) = of_kind(effects, e.TaskRetried)
        assert retried.counted
        assert silent.operation(name).task.losses == ["w1 (no answer for 60 s to a lease that was sent)"]

    def test_it_takes_up_its_slot_until_the_worker_lets_go(self, silent: Driver) -> None:
        worker = silent.attach("w1", slots=1)
        submit(silent)
        (lease,) = silent.leases(worker)
        silent.pass_time(61)
        assert silent.queue.leases[lease.lease_id].hold is Hold.REVOKED
        assert silent.queue.fleet.workers[worker].free_slots == 0

    def test_an_action_that_nobody_ever_answers_fails_with_the_names(self, silent: Driver) -> None:
        name = submit(silent)
        for worker in ("w1", "w2", "w3"):
            silent.attach(worker)
            silent.pass_time(64)
        outcome = silent.operation(name).outcome
        assert outcome is not None
        assert isinstance(outcome.error, WorkerLost)
        assert all(f"{worker} (no answer" in str(outcome.error) for worker in ("w1", "w2", "w3"))

    def test_a_late_result_of_a_lease_that_was_taken_back_is_dropped(self, silent: Driver) -> None:
        worker = silent.attach("w1")
        name = submit(silent)
        (lease,) = silent.leases(worker)
        silent.pass_time(61)
        silent.finish(worker, lease, response="late")
        assert silent.operation(name).outcome is None

    def test_a_worker_that_is_away_is_left_to_its_grace(self) -> None:
        rules = Driver(SchedulerSettings(answer_seconds=60, grace_seconds=100))
        rules.workers_answer = False
        worker = rules.attach("w1")
        name = submit(rules)
        rules.pass_time(30)
        rules.do(e.WorkerDetached(worker))
        rules.pass_time(90)
        assert rules.running_on(name) == "w1"

    def test_coming_back_with_a_lease_is_an_answer(self, silent: Driver) -> None:
        worker = silent.attach("w1")
        name = submit(silent)
        held = silent.leases(worker)
        silent.do(e.WorkerDetached(worker))
        silent.attach("w1", held=held, credit=0)
        silent.pass_time(200)
        assert silent.running_on(name) == "w1"


class TestStaging:
    def test_an_action_that_never_begins_runs_elsewhere(self, rules: Driver) -> None:
        rules.attach("w1")
        name = submit(rules)
        rules.attach("w2")
        rules.pass_time(299)
        assert rules.running_on(name) == "w1"
        rules.pass_time(2)
        assert rules.running_on(name) == "w2"
        assert rules.operation(name).task.losses == ["w1 (not begun within 300 s)"]

    def test_one_that_was_fetched_ahead_waits_for_its_slot_as_long_as_it_takes(self, rules: Driver) -> None:
        worker = rules.attach("w1", slots=1, credit=2)
        rules.submit("long", timeout_seconds=5000)
        ahead = submit(rules)
        first, second = rules.leases(worker)
        say(rules, worker, first)
        rules.pass_time(3000)
        assert rules.operation(ahead).task.losses == []
        rules.finish(worker, first)
        rules.pass_time(1)  # the slot is free now, and it takes a while to begin
        assert rules.running_on(ahead) == "w1"
        say(rules, worker, second)
        rules.pass_time(TIMEOUT_SECONDS)
        assert rules.running_on(ahead) == "w1"

    def test_but_not_longer_than_others_once_it_has_one(self, rules: Driver) -> None:
        worker = rules.attach("w1", slots=1, credit=2)
        rules.submit("long", timeout_seconds=5000)
        ahead = submit(rules)
        first = rules.leases(worker)[0]
        say(rules, worker, first)
        rules.pass_time(1000)
        rules.finish(worker, first)
        rules.pass_time(3000)
        assert [loss for loss in rules.operation(ahead).task.losses if "not begun" in loss]


class TestRunning:
    def test_a_command_far_past_its_timeout_is_given_up(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        name = submit(rules)
        (lease,) = rules.leases(worker)
        rules.pass_time(20)
        say(rules, worker, lease)
        rules.attach("w2")
        rules.pass_time(TIMEOUT_SECONDS + 119)
        assert rules.running_on(name) == "w1"
        effects = rules.pass_time(2)
        assert rules.running_on(name) == "w2"
        (revoked,) = of_kind(effects, e.LeaseRevoked)
        assert revoked.reason == "said to run 120 s longer than its timeout of 30 s"

    def test_outputs_may_take_long_but_not_for_ever(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        name = submit(rules)
        (lease,) = rules.leases(worker)
        say(rules, worker, lease)
        rules.pass_time(TIMEOUT_SECONDS - 1)
        say(rules, worker, lease, delivering=True)
        rules.pass_time(299)
        assert rules.running_on(name) == "w1"
        rules.pass_time(2)
        assert rules.running_on(name) == ""
        assert rules.operation(name).task.losses == ["w1 (the outputs were not delivered within 300 s)"]

    def test_a_report_that_is_being_checked_is_nobodys_delay(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        name = submit(rules)
        (lease,) = rules.leases(worker)
        say(rules, worker, lease)
        rules.do(e.Reported(worker, lease.lease_id, lease.epoch))
        rules.pass_time(5000)
        assert rules.operation(name).stage is Stage.EXECUTING


def test_deadlines_do_not_pile_up(rules: Driver) -> None:
    worker = rules.attach("w1", slots=8, credit=8)
    queue = rules.queue
    for _ in range(1000):
        submit(rules)
        rules.finish(worker)
        rules.credit(worker, 8)
        rules.pass_time(1)
    held = [submit(rules) for _ in range(8)]
    rules.pass_time(rules.settings.answer_seconds + 1)
    kinds = [kind for _when, _serial, kind, _name in queue.state.deadlines._heap]
    assert len([kind for kind in kinds if kind.value == "lease watched"]) == len(held)
