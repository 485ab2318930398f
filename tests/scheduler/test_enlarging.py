"""What was killed for the memory it took is run once more with more, where there is more."""

from __future__ import annotations

import pytest
from google.rpc import status_pb2

from cas.errors import Code
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler import events as e
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Demand, Failure, Outcome, Stage, Task
from tests.scheduler.rules import LINUX, Driver
from tests.scheduler.world import World

GIB = 1 << 30
KILLED = Outcome(response="killed: 2.1 GiB, slot 2 GiB")


def killed(rules: Driver, worker: str, memory_bytes: int = 2 * GIB + 1) -> list[e.Effect]:
    """The worker's oldest lease was killed at that size."""
    lease = rules.leases(worker)[0]
    finished = e.Finished(worker, lease.lease_id, lease.epoch, Failure.NONE, KILLED, exceeded_memory_bytes=memory_bytes)
    return list(rules.do(finished))


def task_of(rules: Driver, name: str) -> Task:
    return rules.operation(name).task


def granted(effects: list[e.Effect]) -> list[e.LeaseGranted]:
    return [effect for effect in effects if isinstance(effect, e.LeaseGranted)]


def test_it_runs_again_on_the_same_worker_with_more_of_it() -> None:
    rules = Driver()
    worker = rules.attach(slots=8, memory_bytes=16 * GIB)
    name = rules.submit(pairs=LINUX)
    effects = killed(rules, worker)
    (again,) = granted(effects)
    assert again.worker_id == worker
    assert again.attempt == 1, "it was no attempt"
    assert again.memory_bytes == 8 * GIB
    assert task_of(rules, name).losses == []
    assert rules.operation(name).outcome is None
    assert rules.queue.fleet.workers[worker].used_memory_bytes == 8 * GIB
    rules.finish(worker)
    assert rules.operation(name).outcome is not None


def test_it_gets_no_more_than_the_largest_worker_has_and_waits_for_that() -> None:
    rules = Driver()
    small = rules.attach("small", slots=4, memory_bytes=8 * GIB)
    large = rules.attach("large", memory_bytes=9 * GIB)
    busy = rules.submit(pairs=LINUX, demand=Demand(memory_bytes=9 * GIB))
    name = rules.submit(pairs=LINUX)
    assert granted(killed(rules, small, 5 * GIB)) == []
    assert rules.operation(name).stage is Stage.QUEUED
    rules.finish(large)
    (again,) = granted(list(rules.do(e.Credit(large, 1, None))))
    assert (again.worker_id, again.memory_bytes) == (large, 0), "that is what its slot stands for there"
    assert rules.operation(busy).outcome is not None


def test_killed_again_it_has_failed_with_what_the_worker_said() -> None:
    rules = Driver()
    worker = rules.attach(slots=8, memory_bytes=16 * GIB)
    name = rules.submit(pairs=LINUX)
    killed(rules, worker)
    killed(rules, worker, 12 * GIB)
    assert rules.operation(name).outcome == KILLED


@pytest.mark.parametrize(
    ("slots", "memory_bytes"), [(1, 2 * GIB), (8, 0)], ids=["the worker has no more", "memory is not counted"]
)
def test_where_there_is_no_more_it_has_failed_at_once(slots: int, memory_bytes: int) -> None:
    rules = Driver()
    worker = rules.attach(slots=slots, memory_bytes=memory_bytes)
    name = rules.submit(pairs=LINUX)
    killed(rules, worker)
    assert rules.operation(name).outcome == KILLED


def test_workers_that_it_cannot_go_to_do_not_count() -> None:
    rules = Driver()
    worker = rules.attach("w", memory_bytes=2 * GIB)
    rules.attach("other system", memory_bytes=64 * GIB, pairs=frozenset({("OSFamily", "windows")}))
    leaving = rules.attach("leaving", memory_bytes=64 * GIB, credit=0)
    rules.do(e.Draining(leaving))
    name = rules.submit(pairs=LINUX)
    killed(rules, worker)
    assert rules.operation(name).outcome == KILLED


def test_one_that_asked_for_memory_and_took_more_gets_more() -> None:
    rules = Driver()
    worker = rules.attach(slots=8, memory_bytes=16 * GIB)
    rules.submit(pairs=LINUX, demand=Demand(memory_bytes=3 * GIB))
    (again,) = granted(killed(rules, worker, 3 * GIB + 5))
    assert again.memory_bytes == 12 * GIB


@pytest.mark.parametrize(
    ("given_gib", "had_gib", "gets_gib"),
    [(2, 2, 8), (2, 3.9, 8), (2, 4.1, 12), (2, 7, 16), (3, 3, 12), (5, 5, 24), (20, 21, 64)],
)
def test_it_gets_four_times_what_it_had_been_given_and_twice_what_it_had_in_round_figures(
    given_gib: int, had_gib: float, gets_gib: int
) -> None:
    rules = Driver()
    worker = rules.attach(slots=64, memory_bytes=64 * GIB)
    rules.submit(pairs=LINUX, demand=Demand(memory_bytes=given_gib * GIB))
    (again,) = granted(killed(rules, worker, int(had_gib * GIB)))
    assert again.memory_bytes == gets_gib * GIB


def test_the_first_grant_tells_what_it_may_take_where_that_is_not_the_slots_share() -> None:
    rules = Driver(SchedulerSettings())
    rules.attach(slots=8, memory_bytes=16 * GIB, credit=0)
    rules.submit(pairs=LINUX)
    rules.submit(pairs=LINUX, demand=Demand(memory_bytes=5 * GIB))
    effects = list(rules.do(e.Credit("w1-session", 8, None)))
    assert sorted(grant.memory_bytes for grant in granted(effects)) == [0, 5 * GIB]


@pytest.mark.parametrize("killed_again", [False, True])
async def test_over_the_wire_clients_see_one_action(world: World, killed_again: bool) -> None:
    worker = world.silent_worker()
    linux = re_pb2.Platform.Property(name="OSFamily", value="linux")
    resources = {"memory": 8 * GIB, "cpu": 4000}
    worker.say(
        hello=worker_pb2.Hello(worker_name="w", session_id="s", slots=4, properties=[linux], resources=resources)
    )
    await worker.hear("welcome")
    worker.say(credit=worker_pb2.Credit(leases=4))
    stream = world.execute(await world.action())
    await stream.next()
    lease = await worker.lease()
    assert not lease.HasField("demand")
    first = finished(lease, "killed: 3 GiB, slot 2 GiB")
    worker.say(finished=first)
    await worker.hear("acknowledged")
    again = await worker.lease()
    assert (again.demand.slots, again.demand.memory_bytes) == (1, 8 * GIB)
    second = finished(again, "killed: 9 GiB, slot 8 GiB") if killed_again else succeeded(again)
    worker.say(finished=second)
    response = await stream.response()
    if killed_again:
        assert response.status.code == Code.FAILED_PRECONDITION
        assert response.status.message == response.message == "killed: 9 GiB, slot 8 GiB"
        assert not response.status.details
    else:
        assert (response.status.code, response.result.exit_code) == (0, 0)


def finished(lease: worker_pb2.Lease, message: str) -> worker_pb2.Finished:
    return worker_pb2.Finished(
        lease_id=lease.lease_id,
        epoch=lease.epoch,
        action_result=re_pb2.ActionResult(exit_code=137),
        status=status_pb2.Status(code=int(Code.FAILED_PRECONDITION), message=message),
        message=message,
        exceeded_memory_bytes=3 * GIB,
    )


def succeeded(lease: worker_pb2.Lease) -> worker_pb2.Finished:
    return worker_pb2.Finished(lease_id=lease.lease_id, epoch=lease.epoch, action_result=re_pb2.ActionResult())
