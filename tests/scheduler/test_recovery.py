"""A restart at any moment changes nothing that anyone can see, whatever has happened before it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import initialize, rule
from msgspec.structs import replace

from cas.digest import Digest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler import events as e
from rexec.scheduler import invariants, recovery
from rexec.scheduler.changes import Changes
from rexec.scheduler.queue import Queue
from rexec.scheduler.rows import Batch, LiveRecord, Recorded, WorkerRecord
from rexec.scheduler.scheduler import Inlining, Run
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Failure, HeldLease, Hold, Outcome, Owner, Stage, Usage
from rexec.scheduler.telling import response_of
from tests.scheduler.rules import LINUX, Driver, of_kind
from tests.scheduler.test_machine import Machine

RUN = Run(re_pb2.Action(), re_pb2.Command(arguments=["true"]), re_pb2.RequestMetadata(), 1_700_000_000.0)
WALL = 1_700_000_000.0
"""Wall time when the monotonic clock of the tests says 0."""


class Paper:
    """Rows on nothing but paper: a journal without a file."""

    def __init__(self) -> None:
        self.tasks: dict[int, tuple[int, str, float, bytes]] = {}
        self.live: dict[int, tuple[int, bytes]] = {}
        self.operations: dict[int, tuple[int, str, int | None, float | None, bytes]] = {}
        self.workers: dict[str, tuple[str, bytes]] = {}
        self.statistics: dict[str, tuple[str, bytes]] = {}

    def write(self, batch: Batch) -> None:
        self.tasks |= {row[0]: row for row in batch.tasks}
        self.live |= {row[0]: row for row in batch.live}
        self.operations |= {row[0]: row for row in batch.operations}
        self.workers |= {row[0]: row for row in batch.workers}
        self.statistics |= {row[0]: row for row in batch.statistics}
        for number in batch.ended_tasks:
            del self.tasks[number], self.live[number]
        for number in batch.forgotten_operations:
            del self.operations[number]
        for session in batch.gone_workers:
            self.workers.pop(session, None)

    def rows(self) -> Recorded:
        return Recorded(
            list(self.tasks.values()),
            list(self.live.values()),
            list(self.operations.values()),
            list(self.workers.values()),
            list(self.statistics.values()),
        )


class Restartable(Driver):
    """A queue whose process can be replaced by another one."""

    def __init__(self, settings: SchedulerSettings | None = None) -> None:
        super().__init__(settings)
        self.paper = Paper()
        self.generation = 1
        self.restored = recovery.Restored()
        self.changes = self._changes()

    def _changes(self) -> Changes:
        return Changes(
            self.queue.state, self.restored.numbers.items(), lambda: self.now, lambda: WALL + self.now
        )  # fmt: skip

    def do(self, event: e.Event) -> Sequence[e.Effect]:
        match event:
            case e.Submit():
                event = replace(event, candidate=replace(event.candidate, payload=RUN), view=Inlining(stdout=True))
            case e.Finished(failure=Failure.NONE):
                response = re_pb2.ExecuteResponse(message=event.lease_id)
                event = replace(event, outcome=Outcome(response=response, size_bytes=response.ByteSize()))
        effects = super().do(event)
        self.changes.note(event, effects)
        return effects

    def cut(self) -> None:
        """Write down what has changed."""
        self.paper.write(self.changes.take())

    def restart(self, away_seconds: float = 1.0) -> None:
        """Another process takes over from what is written down."""
        self.now += away_seconds
        self.generation += 1
        self.queue = Queue(self.settings, self.now)
        rows = self.paper.rows()
        self.restored = recovery.restore(self.queue.state, rows, self.generation, self.now, WALL + self.now)
        self.changes = self._changes()
        invariants.check(self.queue)

    def seen(self) -> tuple[object, ...]:
        """What clients and workers can find out."""
        state = self.queue.state
        operations = {
            name: (operation.stage, operation.owner, operation.view,
                   response_of(operation.outcome).SerializeToString() if operation.outcome else b"")
            for name, operation in state.operations.items()
        }  # fmt: skip
        tasks = {
            task.task_id: (task.candidate, task.priority, tuple(task.losses), sorted(task.operations),
                           task.lease.lease_id if task.lease else "", task.enlarged, task.need.memory_bytes)
            for task in state.tasks.values()
        }  # fmt: skip
        order = [task.task_id for task in sorted(state.tasks.values(), key=lambda task: (task.priority, task.arrival))]
        return operations, tasks, order, set(state.in_flight), state.queued_operations


class RestartingMachine(Machine):
    """Everything that `Machine` does, written down now and then, and in between the process is replaced."""

    @initialize()
    def start(self) -> None:
        super().start()
        self.driver = Restartable(self.driver.settings)

    @rule()
    def write(self) -> None:
        self.restartable().cut()

    @rule()
    def restart(self) -> None:
        driver = self.restartable()
        for lease in list(driver.queue.leases.values()):
            # Nobody would repeat such a report: it has a test of its own.
            if lease.hold is Hold.SETTLING and lease.worker.worker_id not in driver.queue.fleet.workers:
                driver.finish(lease.worker.worker_id, HeldLease(lease.lease_id, lease.epoch))
        self.carry_out()
        driver.cut()
        before, epochs = driver.seen(), {task.task_id: task.epoch for task in driver.queue.tasks.values()}
        driver.restart()
        assert driver.seen() == before
        assert not driver.restored.unreadable
        assert all(driver.queue.tasks[task_id].epoch > epoch for task_id, epoch in epochs.items())
        self.waiters = []

    def restartable(self) -> Restartable:
        assert isinstance(self.driver, Restartable)
        return self.driver


TestRestartingMachine = RestartingMachine.TestCase
TestRestartingMachine.settings = settings(
    max_examples=40, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture
def driver() -> Restartable:
    return Restartable()


def restarted(driver: Restartable, away_seconds: float = 1.0) -> Restartable:
    driver.cut()
    driver.restart(away_seconds)
    return driver


def test_a_worker_that_comes_back_goes_on_with_its_lease(driver: Restartable) -> None:
    name = driver.submit()
    worker_id = driver.attach()
    held = driver.leases(worker_id)
    restarted(driver)
    assert driver.operation(name).stage is Stage.EXECUTING
    driver.attach(held=held)
    assert of_kind(driver.effects, e.WorkerWelcomed)[-1].resumed == tuple(held)
    driver.finish(worker_id, held[0])
    assert driver.operation(name).stage is Stage.COMPLETED
    assert len(of_kind(driver.effects, e.LeaseGranted)) == 1


def test_a_worker_that_does_not_come_back_costs_the_action_no_attempt(driver: Restartable) -> None:
    name = driver.submit()
    driver.attach()
    restarted(driver)
    driver.do(e.WaiterJoined(name))
    driver.pass_time(driver.settings.restart_grace_seconds)
    assert driver.operation(name).task.losses == []
    assert of_kind(driver.effects, e.TaskRetried)[-1].counted is False
    driver.attach("w1", session="the next one")  # the worker of the same name is not avoided either
    assert driver.running_on(name) == "w1"


def test_restarts_in_a_row_do_not_keep_the_work_of_a_dead_worker_from_the_others(driver: Restartable) -> None:
    name = driver.submit()
    driver.do(e.WorkerDetached(driver.attach("dead")))
    driver.attach("alive")
    passed = 0.0
    while passed <= driver.settings.grace_seconds:
        restarted(driver, 1.0)
        driver.attach("alive")
        driver.do(e.WaiterJoined(name))
        driver.pass_time(2.0)
        passed += 3.0
    driver.pass_time(recovery.RECONNECT_SECONDS)
    assert driver.running_on(name) == "alive"


def test_restarts_in_a_row_do_not_begin_the_time_of_a_worker_anew_that_died_with_the_first(driver: Restartable) -> None:
    name = driver.submit()
    driver.attach("dead")
    passed = 0.0
    while passed <= driver.settings.restart_grace_seconds:
        restarted(driver, 1.0)
        driver.attach("alive")
        driver.do(e.WaiterJoined(name))
        driver.pass_time(2.0)
        passed += 3.0
    driver.pass_time(recovery.RECONNECT_SECONDS)
    assert driver.running_on(name) == "alive"


def test_a_worker_that_was_away_has_a_moment_to_find_the_new_scheduler(driver: Restartable) -> None:
    name = driver.submit()
    worker_id = driver.attach()
    held = driver.leases(worker_id)
    driver.do(e.WorkerDetached(worker_id))
    restarted(driver, driver.settings.grace_seconds + 1)
    driver.pass_time(recovery.RECONNECT_SECONDS - 1)
    driver.attach(held=held)
    assert driver.running_on(name) == "w1"
    assert driver.leases(worker_id) == held


def test_a_worker_that_ended_with_the_scheduler_is_replaced_at_once(driver: Restartable) -> None:
    name = driver.submit()
    driver.attach("local", session="first")
    restarted(driver)
    driver.do(e.WaiterJoined(name))
    driver.attach("local", session="second")
    assert driver.running_on(name) == "local"
    assert driver.operation(name).task.losses == []


def test_a_worker_that_came_back_and_is_lost_then_costs_an_attempt(driver: Restartable) -> None:
    name = driver.submit()
    worker_id = driver.attach()
    held = driver.leases(worker_id)
    restarted(driver)
    driver.attach(held=held)
    driver.do(e.WorkerDetached(worker_id))
    driver.pass_time(driver.settings.grace_seconds)
    assert len(driver.operation(name).task.losses) == 1


def test_a_lease_whose_worker_is_not_written_down_is_given_again(driver: Restartable) -> None:
    name = driver.submit()
    driver.attach()
    driver.cut()
    driver.paper.workers.clear()
    driver.restart()
    assert driver.operation(name).task.losses == []
    driver.do(e.WaiterJoined(name))
    driver.attach("w2")
    assert driver.running_on(name) == "w2"


def test_what_waited_waits_in_the_same_order_for_those_who_come_back(driver: Restartable) -> None:
    names = {action: driver.submit(action) for action in ("first", "second", "nobody's", "third")}
    names["urgent"] = driver.submit("urgent", priority=-1)
    restarted(driver)
    worker_id = driver.attach(credit=0)
    for action in ("third", "second", "urgent", "first"):  # in whatever order they come back
        driver.do(e.WaiterJoined(names[action]))
    run = []
    for _ in range(4):
        driver.credit(worker_id, 1)
        (lease,) = driver.queue.leases.values()
        run.append(next(iter(lease.task.operations)))
        driver.finish(worker_id)
    assert run == [names[action] for action in ("urgent", "first", "second", "third")]
    assert driver.operation(names["nobody's"]).stage is Stage.QUEUED


def test_an_equal_action_joins_what_is_there_after_the_restart(driver: Restartable) -> None:
    first = driver.submit("a")
    restarted(driver)
    again = driver.submit("a")
    assert driver.operation(again).task is driver.operation(first).task
    driver.attach()
    assert driver.running_on(first) == "w1"


def test_what_nobody_comes_back_to_is_given_up(driver: Restartable) -> None:
    waiting, running = driver.submit("a"), driver.submit("b")
    driver.do(e.WaiterLeft(waiting))
    worker_id = driver.attach()
    assert driver.running_on(running) == "w1"
    held = driver.leases(worker_id)
    restarted(driver)
    driver.attach(held=held)
    driver.pass_time(driver.settings.abandon_seconds)
    assert driver.operation(waiting).stage is driver.operation(running).stage is Stage.COMPLETED
    assert of_kind(driver.effects, e.LeaseRevoked)


def test_a_result_that_was_being_checked_is_taken_when_it_is_repeated(driver: Restartable) -> None:
    name = driver.submit()
    worker_id = driver.attach()
    (held,) = driver.leases(worker_id)
    driver.do(e.Reported(worker_id, held.lease_id, held.epoch))
    restarted(driver)
    driver.attach(held=[held])
    driver.do(e.Reported(worker_id, held.lease_id, held.epoch))
    assert driver.queue.leases[held.lease_id].hold is Hold.SETTLING
    driver.finish(worker_id, held)
    assert driver.operation(name).stage is Stage.COMPLETED


def test_a_result_that_was_being_checked_when_its_worker_had_gone_too_is_had_again(driver: Restartable) -> None:
    name = driver.submit()
    worker_id = driver.attach("w1", session="first")
    (held,) = driver.leases(worker_id)
    driver.do(e.Reported(worker_id, held.lease_id, held.epoch))
    driver.attach("w1", session="second", credit=0)
    restarted(driver)
    driver.do(e.WaiterJoined(name))
    driver.attach("w1", session="second")
    assert driver.running_on(name) == "w1"
    assert driver.operation(name).task.losses == []


def test_a_revoked_lease_is_not_taken_up_again(driver: Restartable) -> None:
    name = driver.submit()
    worker_id = driver.attach()
    held = driver.leases(worker_id)
    driver.do(e.Cancel(name))
    restarted(driver)
    driver.attach(held=held)
    assert of_kind(driver.effects, e.WorkerWelcomed)[-1].unknown == tuple(held)


def test_an_epoch_is_above_one_whose_row_was_lost(driver: Restartable) -> None:
    name = driver.submit()
    driver.cut()
    driver.attach()  # the grant is never written down
    (lost,) = of_kind(driver.effects, e.LeaseGranted)
    driver.restart()
    driver.do(e.WaiterJoined(name))
    driver.attach("w2")
    again = of_kind(driver.effects, e.LeaseGranted)[-1]
    assert again.epoch > lost.epoch
    assert again.lease_id != lost.lease_id


def test_a_completed_operation_is_kept_for_the_rest_of_its_time(driver: Restartable) -> None:
    name = driver.submit()
    worker_id = driver.attach()
    driver.finish(worker_id)
    driver.pass_time(100)
    restarted(driver, away_seconds=20)
    driver.pass_time(driver.settings.retain_seconds - 121)
    assert name in driver.queue.operations
    driver.pass_time(1)
    assert name not in driver.queue.operations


@pytest.mark.parametrize("jump_seconds", [-1e9, 1e9])
def test_a_wall_clock_that_jumps_forgets_nothing_at_once_and_keeps_nothing_for_ever(
    driver: Restartable, jump_seconds: float
) -> None:
    name = driver.submit("done")
    driver.finish(driver.attach())
    waiting = driver.submit("waiting", pairs=frozenset({("gpu", "a100")}))
    driver.cut()
    queue = Queue(driver.settings, driver.now)
    recovery.restore(queue.state, driver.paper.rows(), 2, driver.now, WALL + driver.now + jump_seconds)
    queue.apply(e.Tick(), driver.now)
    assert name in queue.operations
    assert driver.now - 8 * 86400 < queue.operations[waiting].task.queued_at <= driver.now
    queue.apply(e.Tick(), driver.now + driver.settings.retain_seconds)
    assert name not in queue.operations


def test_properties_that_workers_offered_are_known_before_they_are_back(driver: Restartable) -> None:
    driver.attach("w1", pairs=LINUX | {("special", "yes")})
    driver.attach("w2")
    restarted(driver)
    driver.attach("w2")
    name = driver.submit(pairs=frozenset({("special", "yes")}))
    assert driver.operation(name).stage is Stage.QUEUED


def test_a_property_that_nobody_comes_back_with_is_refused_in_the_end(driver: Restartable) -> None:
    name = driver.submit(pairs=frozenset({("strange", "1")}))
    restarted(driver)
    driver.do(e.WaiterJoined(name))
    driver.pass_time(driver.settings.settle_seconds)
    outcome = driver.operation(name).outcome
    assert outcome is not None
    assert "unknown platform property strange" in str(outcome.error)


def test_what_was_killed_for_its_memory_gets_more_under_the_next_scheduler_too_but_not_twice(
    driver: Restartable,
) -> None:
    gib = 1 << 30
    worker = driver.attach(slots=8, memory_bytes=64 * gib)
    name = driver.submit(pairs=LINUX)

    def kill(size_bytes: int) -> None:
        lease = driver.leases(worker)[0]
        finished = e.Finished(
            worker, lease.lease_id, lease.epoch, Failure.NONE, Outcome(), exceeded_memory_bytes=size_bytes
        )
        driver.do(finished)

    driver.do(e.Credit(worker, 0, None))
    kill(9 * gib)
    assert driver.operation(name).stage is Stage.QUEUED
    restarted(driver)
    task = driver.operation(name).task
    assert (task.enlarged, task.need.memory_bytes, task.losses) == (True, 32 * gib, [])
    driver.do(e.WaiterJoined(name))
    worker = driver.attach("another", slots=8, memory_bytes=64 * gib)
    assert driver.queue.fleet.workers[worker].used_memory_bytes == 32 * gib
    kill(33 * gib)
    assert driver.operation(name).outcome is not None, "that was tried once"


def test_whose_operation_it_is_is_kept(driver: Restartable) -> None:
    name = driver.submit("a")
    driver.operation(name).owner = Owner("team", "ann", "build")
    assert restarted(driver).operation(name).owner == Owner("team", "ann", "build")


def test_a_run_that_began_before_the_restart_is_learned_with_its_whole_length(driver: Restartable) -> None:
    name = driver.submit(action_class="c++")
    worker = driver.attach()
    candidate, (lease,) = driver.operation(name).task.candidate, driver.leases(worker)
    driver.pass_time(50)
    restarted(driver)
    driver.attach(held=[lease])
    driver.pass_time(1)
    driver.do(e.Finished(worker, lease.lease_id, lease.epoch, Failure.NONE, usage=Usage(49.0)))
    assert driver.queue.state.statistics.estimate(candidate).expected_seconds == 49.0


def test_what_was_learned_is_kept(driver: Restartable) -> None:
    name = driver.submit()
    candidate = replace(driver.operation(name).task.candidate, action_class="c++")
    driver.queue.state.statistics.learn(candidate, Usage(3.0, 1 << 20))
    driver.cut()
    assert not driver.paper.statistics  # it has time
    driver.changes.hurry()
    restarted(driver)
    estimate = driver.queue.state.statistics.estimate(candidate)
    assert (estimate.expected_seconds, estimate.peak_memory_bytes, estimate.samples) == (3.0, 1 << 20, 1)
    driver.paper.statistics["strange"] = ("strange", b"\xff")
    restarted(driver)
    assert [text.partition(":")[0] for text in driver.restored.unreadable] == ["statistics 'strange'"]


def test_rows_that_cannot_be_read_are_left_out_with_what_hangs_on_them(driver: Restartable) -> None:
    good, bad, orphan = driver.submit("good"), driver.submit("bad"), driver.submit("orphan")
    worker_id = driver.attach("w1")
    driver.cut()
    number = driver.operation(bad).task.arrival
    driver.paper.tasks[number] = (*driver.paper.tasks[number][:3], b"\xff\xff")
    for key, row in driver.paper.operations.items():
        if row[1] == orphan:
            driver.paper.operations[key] = (*row[:4], b"\xff")
    strange = {
        "torn": b"\xc1",
        "without slots": msgspec.msgpack.encode(WorkerRecord("w2", 0)),
        "owing memory": msgspec.msgpack.encode(WorkerRecord("w3", 1, resources={"memory": -1})),
        "namesake": msgspec.msgpack.encode(WorkerRecord("w1", 1)),
    }
    driver.paper.workers |= {session: (session, record) for session, record in strange.items()}
    driver.restart()
    assert set(driver.queue.operations) == {good}
    # The task, its operation, the orphan's, its task, and the workers.
    assert len(driver.restored.unreadable) == 4 + len(strange)
    assert driver.restored.unread_workers == list(strange)
    assert worker_id in driver.queue.fleet.workers


def test_a_later_version_may_add_to_what_is_written_down() -> None:
    class Later(LiveRecord, frozen=True):
        colour: str = "green"

    later = msgspec.msgpack.encode(Later(priority=3))
    assert msgspec.msgpack.decode(later, type=LiveRecord).priority == 3
    assert msgspec.msgpack.decode(b"\x82\xa4name\xa1w\xa5slots\x02", type=WorkerRecord).slots == 2


def test_a_task_that_began_and_ended_in_between_leaves_only_its_operation(driver: Restartable) -> None:
    name = driver.submit()
    worker_id = driver.attach()
    driver.finish(worker_id)
    batch = driver.changes.take()
    assert [row[1] for row in batch.operations] == [name]
    assert not batch.tasks
    assert not batch.live
    assert not batch.ended_tasks


def test_what_came_from_the_action_cache_is_not_written_down(driver: Restartable) -> None:
    queue = driver.queue
    name = driver.submit("a")
    candidate = driver.operation(name).task.candidate
    driver.cut()
    driver.do(e.Record("cached", "task", replace(candidate, action_digest=Digest.of(b"b")), Outcome()))
    assert "cached" in queue.operations
    assert not driver.changes
