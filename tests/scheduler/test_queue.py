"""The rules, one behaviour at a time. The numbers are those of the REAPI behaviours listed in integration/conformance."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cas.digest import Digest
from cas.errors import Code, NoWorkerFits, QueueFull, WorkerLost
from rexec.scheduler import events as e
from rexec.scheduler.platform import Requirement
from rexec.scheduler.reason import MAX_CHARACTERS
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate, Demand, Failure, HeldLease, Stage
from tests.scheduler.rules import LINUX, Driver, of_kind

WINDOWS = frozenset({("OSFamily", "windows")})


@pytest.fixture
def rules() -> Driver:
    return Driver()


class TestOrder:
    def test_a_free_worker_gets_the_task_at_once(self, rules: Driver) -> None:
        rules.attach("w1")
        name = rules.submit()
        assert rules.running_on(name) == "w1"
        assert rules.operation(name).stage is Stage.EXECUTING

    def test_16_lower_priority_numbers_run_sooner_and_negative_ones_soonest(self, rules: Driver) -> None:
        late, default, soon, soonest = (rules.submit(priority=priority) for priority in (7, 0, -1, -100))
        worker = rules.attach(credit=1)
        order = []
        for _ in range(4):
            order.append(next(name for name in (late, default, soon, soonest) if rules.running_on(name)))
            rules.finish(worker)
            rules.credit(worker, 1)
        assert order == [soonest, soon, default, late]

    def test_equal_priorities_run_in_the_order_of_arrival(self, rules: Driver) -> None:
        names = [rules.submit() for _ in range(5)]
        worker = rules.attach(slots=3)
        assert [name for name in names if rules.running_on(name)] == names[:3]
        rules.finish(worker)
        rules.credit(worker, 1)
        assert rules.running_on(names[3])
        assert not rules.running_on(names[4])

    def test_the_worker_with_the_most_free_slots_is_preferred(self, rules: Driver) -> None:
        rules.attach("small", slots=1)
        rules.attach("large", slots=3)
        names = [rules.submit() for _ in range(4)]
        assert [rules.running_on(name) for name in names] == ["large", "large", "small", "large"]

    def test_places_for_leases_fetched_ahead_are_used_only_when_no_slot_is_free(self, rules: Driver) -> None:
        rules.attach("eager", slots=1, credit=3)
        rules.attach("modest", slots=1, credit=1)
        names = [rules.submit() for _ in range(3)]
        assert [rules.running_on(name) for name in names] == ["eager", "modest", "eager"]
        assert [rules.operation(name).stage for name in names] == [Stage.EXECUTING, Stage.EXECUTING, Stage.QUEUED]
        assert "next on worker eager" in rules.reason(names[2])

    def test_a_lease_fetched_ahead_executes_when_its_worker_says_so(self, rules: Driver) -> None:
        worker = rules.attach(slots=1, credit=2)
        rules.submit()
        ahead = rules.submit()
        lease = rules.leases(worker)[1]
        rules.do(e.Progress(worker, lease.lease_id, lease.epoch, running=False))
        assert rules.operation(ahead).stage is Stage.QUEUED
        rules.do(e.Progress(worker, lease.lease_id, lease.epoch, running=True))
        assert rules.operation(ahead).stage is Stage.EXECUTING

    def test_credit_is_never_exceeded(self, rules: Driver) -> None:
        worker = rules.attach(slots=8, credit=2)
        for _ in range(5):
            rules.submit()
        assert len(rules.leases(worker)) == 2

    def test_leases_still_on_their_way_are_subtracted_from_credit(self, rules: Driver) -> None:
        worker = rules.attach(slots=8, credit=2)
        for _ in range(9):
            rules.submit()
        rules.credit(worker, 3, received=1)  # counted before it saw the second lease
        assert len(rules.leases(worker)) == 2 + 2
        rules.credit(worker, 3, received=4)
        assert len(rules.leases(worker)) == 2 + 2 + 3

    def test_boundless_credit_does_not_empty_the_queue_into_one_worker(self) -> None:
        rules = Driver(SchedulerSettings(max_prefetched_leases=3))
        for _ in range(20):
            rules.submit()
        worker = rules.attach(slots=2, credit=2**31 - 1)
        assert len(rules.leases(worker)) == 2 + 3

    def test_a_queue_past_its_bound_says_when_to_come_back(self) -> None:
        rules = Driver(SchedulerSettings(max_queued_operations=2))
        rules.submit("a")
        rules.submit("b")
        with pytest.raises(QueueFull, match="2 operations are queued") as full:
            rules.submit("c")
        assert full.value.retry_seconds > 0
        with pytest.raises(QueueFull):
            rules.submit("a")  # who joins a waiting task waits as well
        rules.attach(slots=2)
        rules.submit("a")
        rules.submit("c")

    def test_the_different_things_that_actions_ask_for_are_bounded(self) -> None:
        rules = Driver(SchedulerSettings(max_kinds=2))
        worker = rules.attach(slots=8)
        rules.submit(demand=Demand(slots=2))
        rules.submit(demand=Demand(slots=3))
        with pytest.raises(QueueFull, match="2 different platforms and sizes"):
            rules.submit("another kind", demand=Demand(slots=4))
        rules.submit(demand=Demand(slots=3))  # more of the same is no matter
        rules.finish(worker)
        rules.submit("another kind", demand=Demand(slots=4))


class TestMerging:
    def test_25_equal_actions_in_flight_run_once(self, rules: Driver) -> None:
        worker = rules.attach()
        first, second = rules.submit("same"), rules.submit("same")
        assert len(rules.leases(worker)) == 1
        rules.finish(worker, response="one result")
        outcomes = [rules.operation(name).outcome for name in (first, second)]
        assert [outcome.response for outcome in outcomes if outcome] == ["one result"] * 2

    def test_25_the_most_urgent_of_those_who_join_decides(self, rules: Driver) -> None:
        rules.submit("other", priority=0)
        shared = rules.submit("same", priority=5)
        rules.submit("same", priority=-5)
        rules.submit("same", priority=9)
        rules.attach()
        assert rules.running_on(shared)

    def test_25_equal_actions_of_two_instances_do_not_meet(self, rules: Driver) -> None:
        worker = rules.attach(slots=2)
        rules.submit("same", instance_name="one")
        rules.submit("same", instance_name="two")
        assert len(rules.leases(worker)) == 2

    def test_21_an_action_not_to_be_cached_shares_with_nobody(self, rules: Driver) -> None:
        worker = rules.attach(slots=4)
        rules.submit("same", do_not_cache=True)
        rules.submit("same", do_not_cache=True)
        rules.submit("same")
        assert len(rules.leases(worker)) == 3

    def test_9_a_task_that_has_ended_is_never_joined(self, rules: Driver) -> None:
        worker = rules.attach()
        first = rules.submit("same")
        rules.finish(worker)
        second = rules.submit("same")
        assert rules.operation(second).outcome is None
        assert rules.operation(second).task is not rules.operation(first).task


class TestPlatform:
    def test_26_all_properties_must_be_offered(self, rules: Driver) -> None:
        rules.attach("w1", pairs=LINUX | {("gpu", "a100")})
        both = rules.submit(pairs=LINUX | {("gpu", "a100")})
        assert rules.running_on(both) == "w1"

    def test_26_a_repeated_name_means_every_value(self, rules: Driver) -> None:
        wanted = frozenset({("tool", "gcc"), ("tool", "clang")})
        rules.attach("half", pairs=frozenset({("tool", "gcc")}))
        name = rules.submit(pairs=wanted)
        assert not rules.running_on(name)
        rules.attach("whole", pairs=wanted | {("tool", "rustc")})
        assert rules.running_on(name) == "whole"

    def test_26_an_unknown_name_is_refused_at_once_with_the_known_ones(self, rules: Driver) -> None:
        rules.attach(pairs=frozenset({("offered", "x")}))
        with pytest.raises(NoWorkerFits, match=r"unknown platform property coprocessor; known are .*OSFamily.*offered"):
            rules.submit(pairs=frozenset({("coprocessor", "8087")}))
        assert not rules.queue.tasks
        assert not rules.queue.operations

    def test_26_names_of_workers_that_are_gone_do_not_fill_the_memory(
        self, rules: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rexec.scheduler.state.MAX_KNOWN_NAMES", 20)
        rules.attach("stays", pairs=frozenset({("stays", "here")}))
        for number in range(50):
            rules.do(e.WorkerDetached(rules.attach("w", session=f"s{number}", pairs=frozenset({(f"p{number}", "")}))))
        assert len(rules.queue.state.known_names) <= 20
        assert {"stays", "p49", *rules.settings.known_properties} <= rules.queue.state.known_names

    def test_26_a_known_value_that_nobody_offers_waits_with_the_reason(self, rules: Driver) -> None:
        rules.attach("w1", pairs=frozenset({("gpu", "a100")}))
        rules.attach("w2", pairs=frozenset({("gpu", "a100")}))
        name = rules.submit(pairs=frozenset({("gpu", "h100")}))
        assert rules.reason(name) == "no worker offers gpu=h100 (2 workers offer gpu=a100)"
        rules.attach("w3", pairs=frozenset({("gpu", "h100")}))
        assert rules.running_on(name) == "w3"

    def test_26_the_log_is_told_of_actions_that_no_worker_can_run(self, rules: Driver) -> None:
        rules.attach(pairs=frozenset({("Pool", "small")}))
        rules.submit(pairs=frozenset({("Pool", "large")}))
        rules.submit(pairs=frozenset({("Pool", "large")}))
        (told,) = of_kind(rules.pass_time(rules.settings.unserved_seconds), e.TasksUnserved)
        assert told.waiting == 2
        assert "no worker offers Pool=large" in told.reason
        again = of_kind(rules.pass_time(rules.settings.unserved_again_seconds - 1), e.TasksUnserved)
        assert again == []
        assert len(of_kind(rules.pass_time(1), e.TasksUnserved)) == 1
        rules.attach("late", pairs=frozenset({("Pool", "large")}))
        assert of_kind(rules.pass_time(rules.settings.unserved_again_seconds * 2), e.TasksUnserved) == []

    def test_26_who_comes_and_goes_makes_no_deadlines_pile_up(self, rules: Driver) -> None:
        rules.attach(pairs=frozenset({("Pool", "small")}))
        name = rules.submit(pairs=frozenset({("Pool", "large")}))
        for _ in range(20):
            rules.do(e.WaiterLeft(name))
            rules.do(e.WaiterJoined(name))
        deadlines = [kind.value for _when, _serial, kind, _name in rules.queue.state.deadlines._heap]
        assert deadlines.count("unserved") == 1
        rules.do(e.WaiterLeft(name))
        rules.pass_time(rules.settings.unserved_seconds)
        rules.do(e.WaiterJoined(name))
        assert len(of_kind(rules.pass_time(rules.settings.unserved_seconds), e.TasksUnserved)) == 1

    def test_26_a_reason_is_short_whatever_workers_offer(self, rules: Driver) -> None:
        rules.attach(pairs=frozenset({("Pool", f"{number}" * 1000) for number in range(300)}))
        name = rules.submit(pairs=frozenset({("Pool", "large")}))
        assert rules.reason(name).startswith("no worker offers Pool=large")
        assert len(rules.reason(name)) == MAX_CHARACTERS

    def test_26_every_waiting_operation_has_a_reason(self, rules: Driver) -> None:
        waiting = rules.submit(pairs=LINUX)
        assert rules.reason(waiting) == "no worker is attached"
        worker = rules.attach(slots=1, credit=0)
        assert rules.reason(waiting) == "all 1 slots that fit OSFamily=linux are busy; it is the next one"
        rules.do(e.Draining(worker))
        assert rules.reason(waiting) == "every worker that fits is leaving or away"
        apart = rules.submit(pairs=LINUX | {("gpu", "a100")})
        rules.attach("w2", pairs=frozenset({("gpu", "a100")}))
        assert rules.reason(apart) == "no single worker offers all of OSFamily=linux, gpu=a100"

    def test_26_unknown_names_wait_while_no_worker_had_the_time_to_attach(self, rules: Driver) -> None:
        wanted = frozenset({("coprocessor", "8087")})
        name = rules.submit(pairs=wanted)
        rules.pass_time(rules.settings.settle_seconds / 2)
        rules.attach("w1", pairs=wanted)
        assert rules.running_on(name) == "w1"
        rules.pass_time(rules.settings.settle_seconds)
        assert rules.operation(name).outcome is None

    def test_26_what_is_unknown_when_the_time_is_over_is_refused(self, rules: Driver) -> None:
        name = rules.submit(pairs=frozenset({("coprocessor", "8087")}))
        rules.attach("w1")
        rules.pass_time(rules.settings.settle_seconds)
        outcome = rules.operation(name).outcome
        assert outcome is not None
        assert isinstance(outcome.error, NoWorkerFits)
        with pytest.raises(NoWorkerFits):
            rules.submit(pairs=frozenset({("coprocessor", "8087")}))

    def test_a_worker_for_some_instances_serves_no_other(self, rules: Driver) -> None:
        rules.attach("w1", instances=["one"])
        mine, other = rules.submit(instance_name="one"), rules.submit(instance_name="two")
        assert rules.running_on(mine) == "w1"
        assert rules.reason(other) == "no worker is attached that serves instance 'two'"

    def test_many_requirements_come_and_go_without_a_trace(self, rules: Driver) -> None:
        everything = frozenset(("tool", str(number)) for number in range(3000))
        worker = rules.attach(pairs=everything)
        queue = rules.queue  # driven without the checks, which cost the size of everything
        for number in range(3000):
            name = f"op-{number}"
            requirement = Requirement("", frozenset({("tool", str(number))}))
            candidate = Candidate("", Digest.of(name.encode()), requirement)
            queue.apply(e.Submit(name, name, candidate), rules.now)
            lease = rules.leases(worker)[0]
            queue.apply(e.Finished(worker, lease.lease_id, lease.epoch, Failure.NONE), rules.now)
            queue.apply(e.Credit(worker, 1), rules.now)
        assert len(queue.fleet.fits) <= 512


class TestLoss:
    def test_15_a_lost_workers_task_is_queued_again_and_runs_elsewhere(self, rules: Driver) -> None:
        first = rules.attach("w1")
        name = rules.submit()
        rules.do(e.WorkerDetached(first))
        assert rules.operation(name).stage is Stage.EXECUTING  # it may come back
        rules.pass_time(rules.settings.grace_seconds)
        assert rules.operation(name).stage is Stage.QUEUED
        rules.attach("w2")
        assert rules.running_on(name) == "w2"
        assert rules.operation(name).task.epoch == 2

    def test_a_task_that_lost_its_worker_keeps_its_place_in_the_line(self, rules: Driver) -> None:
        first = rules.attach("w1")
        unlucky = rules.submit()
        rules.submit()
        rules.do(e.WorkerDetached(first))
        rules.pass_time(rules.settings.grace_seconds)
        rules.attach("w2")
        assert rules.running_on(unlucky) == "w2"

    def test_the_same_session_comes_back_with_its_leases(self, rules: Driver) -> None:
        worker = rules.attach("w1", slots=2)
        names = [rules.submit(), rules.submit()]
        held = rules.leases(worker)
        rules.do(e.WorkerDetached(worker))
        rules.pass_time(rules.settings.grace_seconds / 2)
        rules.attach("w1", slots=2, credit=0, held=[*held, HeldLease("somebody.7", 7)])
        welcome = of_kind(rules.effects, e.WorkerWelcomed)[-1]
        assert welcome.resumed == tuple(held)
        assert welcome.unknown == (HeldLease("somebody.7", 7),)
        rules.pass_time(rules.settings.grace_seconds * 2)
        assert [rules.running_on(name) for name in names] == ["w1", "w1"]

    def test_a_lease_that_never_arrived_is_given_out_again_and_costs_no_attempt(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        name = rules.submit()
        rules.do(e.WorkerDetached(worker))
        rules.attach("w1", held=[])
        task = rules.operation(name).task
        assert rules.running_on(name) == "w1"
        assert (task.epoch, task.losses) == (2, [])

    def test_what_a_worker_ran_whose_machine_has_ended_is_queued_again_at_once_as_an_attempt(
        self, rules: Driver
    ) -> None:
        first = rules.attach("w1")
        name = rules.submit()
        rules.do(e.WorkerDetached(first))
        rules.attach("w2")
        rules.do(e.WorkerEnded(first))
        assert rules.running_on(name) == "w2"
        assert rules.operation(name).task.losses == ["w1 (worker lost: its machine has ended)"]
        (gone,) = of_kind(rules.effects, e.WorkerGone)
        assert gone.worker_id == first
        rules.pass_time(rules.settings.grace_seconds * 2)
        assert len(of_kind(rules.effects, e.WorkerGone)) == 1, "its grace means nothing any more"

    def test_a_worker_that_is_connected_has_not_ended_whoever_says_so(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        name = rules.submit()
        assert rules.do(e.WorkerEnded(worker)) == []
        assert rules.do(e.WorkerEnded("nobody")) == []
        assert rules.running_on(name) == "w1"

    def test_another_session_of_the_name_replaces_the_first_at_once(self, rules: Driver) -> None:
        rules.attach("w1", session="before")
        name = rules.submit()
        rules.attach("w1", session="after")
        gone = of_kind(rules.effects, e.WorkerGone)
        assert [(worker.worker_id, worker.lost_leases) for worker in gone] == [("before", 1)]
        assert rules.operation(name).stage is Stage.QUEUED
        rules.pass_time(rules.settings.exclusion_seconds)
        assert rules.running_on(name) == "w1"  # it is the only one there is

    def test_a_task_avoids_the_worker_that_failed_as_long_as_there_is_another(self, rules: Driver) -> None:
        rules.attach("busy", credit=0)
        bad = rules.attach("bad")
        name = rules.submit()
        rules.finish(bad, failure=Failure.INFRASTRUCTURE, evidence="disk full")
        rules.credit(bad, 1)
        rules.pass_time(rules.settings.exclusion_seconds * 5)
        assert rules.running_on(name) == ""
        rules.credit("busy-session", 1)
        assert rules.running_on(name) == "busy"

    def test_others_pass_a_task_that_avoids_the_only_free_worker(self, rules: Driver) -> None:
        rules.attach("busy", credit=0)
        bad = rules.attach("bad")
        picky = rules.submit()
        rules.finish(bad, failure=Failure.INFRASTRUCTURE)
        other = rules.submit()
        rules.credit(bad, 1)
        assert rules.running_on(picky) == ""
        assert rules.running_on(other) == "bad"

    def test_a_task_that_takes_three_workers_with_it_fails_with_their_names(self, rules: Driver) -> None:
        name = rules.submit()
        for worker in ("w1", "w2", "w3"):
            rules.do(e.WorkerDetached(rules.attach(worker)))
            rules.pass_time(rules.settings.grace_seconds)
        outcome = rules.operation(name).outcome
        assert outcome is not None
        assert isinstance(outcome.error, WorkerLost)
        assert outcome.error.code is Code.UNAVAILABLE
        assert all(worker in str(outcome.error) for worker in ("w1", "w2", "w3"))
        assert not rules.queue.tasks

    def test_one_that_was_only_fetched_ahead_is_not_to_blame(self, rules: Driver) -> None:
        ahead = rules.submit()
        for number in range(4):
            rules.submit(priority=-1)
            worker = rules.attach(f"w{number}", slots=1, credit=2)
            assert rules.running_on(ahead) == f"w{number}"
            rules.do(e.WorkerDetached(worker))
            rules.pass_time(rules.settings.grace_seconds)
            for name in [name for name in rules.queue.operations if name != ahead]:
                rules.do(e.Cancel(name))
        assert rules.operation(ahead).task.losses == []

    def test_back_pressure_counts_for_nothing(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        name = rules.submit()
        for _ in range(10):
            rules.finish(worker, failure=Failure.BACK_PRESSURE)
            rules.credit(worker, 1)
            rules.pass_time(rules.settings.exclusion_seconds)
        task = rules.operation(name).task
        assert task.losses == []
        assert rules.running_on(name) == "w1"

    def test_a_lease_that_a_draining_worker_gave_back_counts_for_nothing(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        name = rules.submit()
        rules.do(e.Draining(worker))
        rules.finish(worker, failure=Failure.REVOKED)
        rules.attach("w2")
        assert rules.running_on(name) == "w2"
        assert rules.operation(name).task.losses == []

    def test_a_draining_worker_gets_nothing_and_may_leave(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        running = rules.submit()
        rules.do(e.Draining(worker))
        rules.credit(worker, 1)
        waiting = rules.submit()
        assert rules.running_on(waiting) == ""
        rules.finish(worker)
        assert rules.operation(running).stage is Stage.COMPLETED
        rules.do(e.WorkerDetached(worker))
        assert worker not in rules.queue.fleet.workers

    def test_a_result_under_an_old_epoch_changes_nothing(self, rules: Driver) -> None:
        first = rules.attach("w1")
        name = rules.submit()
        stale = rules.leases(first)[0]
        rules.do(e.WorkerDetached(first))
        rules.pass_time(rules.settings.grace_seconds)
        rules.attach("w2")
        rules.attach("w1", credit=0)
        effects = rules.finish(first, stale, response="stale")
        assert of_kind(effects, e.LeaseAcknowledged)
        assert rules.operation(name).outcome is None
        assert rules.running_on(name) == "w2"
        effects = rules.do(e.Progress(first, stale.lease_id, stale.epoch, running=True))
        assert [effect.lease_id for effect in of_kind(effects, e.LeaseRevoked)] == [stale.lease_id]

    def test_a_result_is_taken_once(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        name = rules.submit()
        lease = rules.leases(worker)[0]
        rules.finish(worker, lease, response="first")
        effects = rules.finish(worker, lease, response="second")
        assert of_kind(effects, e.LeaseAcknowledged)
        assert not of_kind(effects, e.TaskCompleted)
        outcome = rules.operation(name).outcome
        assert outcome is not None
        assert outcome.response == "first"

    def test_a_report_that_is_being_checked_outlives_its_worker(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        name = rules.submit()
        lease = rules.leases(worker)[0]
        rules.do(e.Reported(worker, lease.lease_id, lease.epoch))
        rules.do(e.WorkerDetached(worker))
        rules.pass_time(rules.settings.grace_seconds)
        assert worker not in rules.queue.fleet.workers
        assert rules.operation(name).task.lease is not None
        rules.finish(worker, lease)
        assert rules.operation(name).stage is Stage.COMPLETED

    def test_a_report_frees_its_slot_before_it_is_checked(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        rules.submit()
        waiting = rules.submit()
        lease = rules.leases(worker)[0]
        rules.do(e.Reported(worker, lease.lease_id, lease.epoch))
        rules.credit(worker, 1)
        assert rules.operation(waiting).stage is Stage.EXECUTING


class TestRetention:
    def test_8_a_completed_operation_stays_findable(self, rules: Driver) -> None:
        worker = rules.attach()
        name = rules.submit()
        rules.finish(worker)
        rules.do(e.WaiterLeft(name))
        rules.pass_time(rules.settings.retain_seconds - 1)
        assert rules.operation(name).stage is Stage.COMPLETED
        effects = rules.pass_time(1)
        assert [effect.operation_name for effect in of_kind(effects, e.OperationForgotten)] == [name]
        assert name not in rules.queue.operations

    def test_completed_operations_are_bounded_in_number(self) -> None:
        rules = Driver(SchedulerSettings(max_retained_operations=3))
        worker = rules.attach()
        names = []
        for _ in range(5):
            names.append(rules.submit())
            rules.finish(worker)
            rules.credit(worker, 1)
        assert list(rules.queue.operations) == names[2:]

    def test_completed_operations_are_bounded_in_bytes_and_the_last_is_kept(self) -> None:
        rules = Driver(SchedulerSettings(max_retained_bytes=100))
        worker = rules.attach()
        names = []
        for size_bytes in (10, 60, 40, 500):
            names.append(rules.submit())
            rules.finish(worker, size_bytes=size_bytes)
            rules.credit(worker, 1)
            kept = list(rules.queue.operations)
            assert kept == names[{10: 0, 60: 0, 40: 1, 500: 3}[size_bytes] :]

    def test_a_completed_operation_can_be_forgotten_and_a_live_one_cannot(self, rules: Driver) -> None:
        worker = rules.attach()
        done = rules.submit()
        rules.finish(worker)
        live = rules.submit()
        rules.do(e.Forget(done))
        rules.do(e.Forget(live))
        assert list(rules.queue.operations) == [live]

    def test_a_completed_operation_does_not_keep_the_command(self, rules: Driver) -> None:
        worker = rules.attach()
        name = rules.submit()
        rules.operation(name).task.candidate = _with_payload(rules, name)
        rules.finish(worker)
        assert rules.operation(name).task.candidate.payload is None


def _with_payload(rules: Driver, name: str) -> Candidate:
    return replace(rules.operation(name).task.candidate, payload="a long command")


def test_an_idle_queue_has_no_deadline(rules: Driver) -> None:
    worker = rules.attach()
    rules.submit()
    rules.finish(worker)
    rules.pass_time(1000)
    assert rules.queue.next_deadline() is None
    assert not rules.queue.operations
    assert not rules.queue.leases
    assert rules.queue.fleet.workers[worker].leases == {}
