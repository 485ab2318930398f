"""Clients that cancel, leave and come back. The numbers are those of the REAPI behaviours listed in integration/conformance."""

from __future__ import annotations

import pytest

from cas.errors import Cancelled, OperationNotFound
from rexec.scheduler import events as e
from rexec.scheduler.task import Failure, Stage
from tests.scheduler.rules import Driver, of_kind


@pytest.fixture
def rules() -> Driver:
    return Driver()


class TestCancelling:
    def test_12_cancelling_ends_the_operation_and_revokes_the_lease(self, rules: Driver) -> None:
        worker = rules.attach()
        name = rules.submit()
        effects = rules.do(e.Cancel(name))
        assert len(of_kind(effects, e.LeaseRevoked)) == 1
        outcome = rules.operation(name).outcome
        assert outcome is not None
        assert isinstance(outcome.error, Cancelled)
        # The slot is taken until the worker has let go.
        assert rules.queue.fleet.workers[worker].free_slots == 0
        rules.finish(worker, failure=Failure.REVOKED)
        assert rules.queue.fleet.workers[worker].free_slots == 1

    def test_12_cancelling_twice_is_the_same_as_once(self, rules: Driver) -> None:
        name = rules.submit()
        rules.do(e.Cancel(name))
        assert rules.do(e.Cancel(name)) == []

    @pytest.mark.parametrize("still_held", [True, False])
    def test_12_a_lease_revoked_while_its_worker_was_away_takes_up_no_slot(
        self, rules: Driver, still_held: bool
    ) -> None:
        worker = rules.attach("w1")
        name = rules.submit()
        held = rules.leases(worker)
        rules.do(e.WorkerDetached(worker))
        rules.do(e.Cancel(name))
        rules.attach("w1", held=held if still_held else [])
        assert of_kind(rules.effects, e.WorkerWelcomed)[-1].unknown == tuple(held if still_held else [])
        assert rules.running_on(rules.submit()) == "w1"
        assert rules.queue.fleet.workers[worker].free_slots == 0

    def test_12_a_result_that_was_faster_than_the_revocation_is_dropped(self, rules: Driver) -> None:
        worker = rules.attach()
        name = rules.submit()
        rules.do(e.Cancel(name))
        rules.finish(worker, response="too late")
        outcome = rules.operation(name).outcome
        assert outcome is not None
        assert outcome.response is None

    def test_12_cancelling_while_the_report_is_checked_wins(self, rules: Driver) -> None:
        worker = rules.attach()
        name = rules.submit()
        lease = rules.leases(worker)[0]
        rules.do(e.Reported(worker, lease.lease_id, lease.epoch))
        assert not of_kind(rules.do(e.Cancel(name)), e.LeaseRevoked)
        rules.finish(worker, lease)
        outcome = rules.operation(name).outcome
        assert outcome is not None
        assert isinstance(outcome.error, Cancelled)

    def test_12_who_shares_the_run_is_not_cancelled(self, rules: Driver) -> None:
        worker = rules.attach()
        mine, theirs = rules.submit("same"), rules.submit("same")
        rules.do(e.Cancel(mine))
        assert rules.operation(mine).stage is Stage.COMPLETED
        assert rules.operation(theirs).stage is Stage.EXECUTING
        rules.finish(worker)
        outcome = rules.operation(theirs).outcome
        assert outcome is not None
        assert outcome.error is None

    def test_12_an_unknown_name_is_not_found(self, rules: Driver) -> None:
        with pytest.raises(OperationNotFound, match="operations/nobody"):
            rules.do(e.Cancel("operations/nobody"))

    def test_11_an_operation_without_waiters_is_cancelled_after_a_while(self, rules: Driver) -> None:
        rules.attach()
        name = rules.submit()
        rules.do(e.WaiterLeft(name))
        rules.pass_time(rules.settings.abandon_seconds - 1)
        assert rules.operation(name).stage is Stage.EXECUTING
        effects = rules.pass_time(1)
        assert len(of_kind(effects, e.LeaseRevoked)) == 1
        assert rules.operation(name).stage is Stage.COMPLETED

    def test_11_who_comes_back_in_time_finds_it_running(self, rules: Driver) -> None:
        rules.attach()
        name = rules.submit()
        rules.do(e.WaiterLeft(name))
        rules.pass_time(rules.settings.abandon_seconds - 1)
        rules.do(e.WaiterJoined(name))
        rules.pass_time(rules.settings.abandon_seconds * 3)
        assert rules.operation(name).stage is Stage.EXECUTING

    def test_11_one_that_nobody_waits_for_takes_no_slot_from_others(self, rules: Driver) -> None:
        abandoned = rules.submit("abandoned")
        wanted = rules.submit("wanted")
        rules.do(e.WaiterLeft(abandoned))
        rules.attach()
        assert rules.operation(wanted).stage is Stage.EXECUTING
        assert rules.operation(abandoned).stage is Stage.QUEUED
        assert "nobody waits" in rules.queue.reason(rules.operation(abandoned).task)

    def test_11_one_that_fails_when_nobody_waits_takes_no_slot_from_others_either(self, rules: Driver) -> None:
        worker = rules.attach()
        abandoned, wanted = rules.submit("abandoned"), rules.submit("wanted")
        rules.do(e.WaiterLeft(abandoned))
        rules.finish(worker, failure=Failure.BACK_PRESSURE)
        rules.attach("w2", slots=2)
        assert rules.running_on(wanted) == "w2"
        assert rules.operation(abandoned).task.parked
        rules.do(e.WaiterJoined(abandoned))
        assert rules.running_on(abandoned) == "w2"

    def test_11_who_comes_back_to_a_waiting_one_has_kept_the_place(self, rules: Driver) -> None:
        first, second = rules.submit("first"), rules.submit("second")
        rules.do(e.WaiterLeft(first))
        rules.do(e.WaiterJoined(first))
        rules.attach()
        assert rules.operation(first).stage is Stage.EXECUTING
        assert rules.operation(second).stage is Stage.QUEUED

    def test_11_an_equal_action_of_another_client_brings_it_back(self, rules: Driver) -> None:
        left = rules.submit("same")
        rules.do(e.WaiterLeft(left))
        rules.submit("same")
        rules.attach()
        assert rules.operation(left).stage is Stage.EXECUTING

    def test_11_an_equal_action_of_another_client_begins_the_time_anew(self, rules: Driver) -> None:
        rules.attach()
        left = rules.submit("same")
        rules.do(e.WaiterLeft(left))
        rules.pass_time(rules.settings.abandon_seconds - 1)
        joined = rules.submit("same", watched=False)  # its stream is on its way
        rules.pass_time(1)
        rules.do(e.WaiterJoined(joined))
        assert rules.operation(joined).stage is Stage.EXECUTING

    def test_11_one_that_others_wait_on_goes_on(self, rules: Driver) -> None:
        rules.attach()
        mine, theirs = rules.submit("same"), rules.submit("same")
        rules.do(e.WaiterLeft(mine))
        rules.pass_time(rules.settings.abandon_seconds * 3)
        assert rules.operation(mine).stage is Stage.EXECUTING
        assert rules.operation(theirs).stage is Stage.EXECUTING

    def test_11_who_looks_at_a_cancelled_operation_keeps_nobodys_run_alive(self, rules: Driver) -> None:
        cancelled, abandoned = rules.submit("same"), rules.submit("same")
        rules.do(e.Cancel(cancelled))
        rules.do(e.WaiterLeft(abandoned))
        rules.do(e.WaiterJoined(cancelled))
        rules.pass_time(rules.settings.abandon_seconds)
        assert rules.operation(abandoned).stage is Stage.COMPLETED

    def test_11_one_that_nobody_ever_waited_for_is_cancelled_too(self, rules: Driver) -> None:
        name = rules.submit(watched=False)
        rules.pass_time(rules.settings.abandon_seconds)
        assert rules.operation(name).stage is Stage.COMPLETED
        assert not rules.queue.tasks
