"""Taking workers out of service: whose, which, and what becomes of what they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cas.context import Identity, RequestContext
from cas.errors import MalformedRequest, NotAllowed
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import fleet_pb2, status_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.fleet_service import MAX_LISTED, FleetService
from rexec.scheduler.status import StatusService
from rexec.scheduler.task import Usage
from tests.scheduler.test_durability import restarted
from tests.scheduler.world import FakeWorker, World, stage_of

LINUX = [("OSFamily", "linux")]
OLD = [*LINUX, ("os", "debian-11")]


async def drain(world: World, identity: Identity | None = None, **request: Any) -> fleet_pb2.DrainWorkersResponse:
    context = RequestContext(identity=identity or Identity())
    return await FleetService(world.broker).DrainWorkers(fleet_pb2.DrainWorkersRequest(**request), context)


async def shown(world: World) -> dict[str, status_pb2.FoundWorker]:
    found = await StatusService(world.broker.status).FindWorkers(status_pb2.FindWorkersRequest(), RequestContext())
    return {worker.name: worker for worker in found.workers}


async def running(world: World, worker: FakeWorker, *, takes_seconds: float = 0.0) -> worker_pb2.Lease:
    """A lease whose command runs, of an action that is known to take so long."""
    await world.execute(await world.action(f"takes {takes_seconds}", platform=LINUX)).next()
    lease = await worker.lease()
    if takes_seconds:
        state = world.broker._queue.state
        state.statistics.learn(state.leases[lease.lease_id].task.candidate, Usage(takes_seconds))
    worker.running(lease)
    await worker.heard()
    return lease


async def test_a_drained_worker_ends_what_it_runs_and_is_shown_meanwhile(world: World) -> None:
    worker = await world.worker("w1")
    lease = await running(world, worker)
    answer = await drain(world, names=["w1", "no such"], grace_seconds=60, reason="new kernel")
    (drained,) = answer.workers
    assert (drained.name, drained.worker_id, drained.kept, drained.handed_back) == ("w1", "w1-session", 1, 0)
    assert list(answer.unknown) == ["no such"]
    told = (await worker.hear("drain")).drain
    assert (told.grace.ToSeconds(), told.reason, list(told.hand_back)) == (60, "drained: new kernel", [])
    found = (await shown(world))["w1"]
    assert (found.state, found.reason) == (status_pb2.DRAINING, "drained: new kernel")
    assert len(found.running) == 1
    await worker.finish(lease)
    worker.end()
    assert [message async for message in worker.stream] == []
    assert await shown(world) == {}


async def test_workers_are_chosen_by_name_by_properties_or_all(world: World) -> None:
    for name, properties in (("a", LINUX), ("b", OLD), ("c", OLD)):
        await world.worker(name, properties=properties)
    of_old = await drain(world, properties=[re_pb2.Platform.Property(name="os", value="debian-11")])
    assert [worker.name for worker in of_old.workers] == ["b", "c"]
    assert [worker.name for worker in (await drain(world, names=["a"])).workers] == ["a"]
    assert [worker.name for worker in (await drain(world, all=True)).workers] == ["a", "b", "c"]
    assert (await drain(world, names=["A"])).unknown == ["A"]


async def test_the_workers_of_others_are_left_alone(world: World) -> None:
    await serving(world, "ours", "main")
    await serving(world, "shared", "main", "")
    await serving(world, "for all")
    operator = Identity("o", instance_names=frozenset({"main"}))
    assert [worker.name for worker in (await drain(world, operator, all=True)).workers] == ["ours"]
    assert (await drain(world, operator, names=["shared"])).unknown == ["shared"]
    with pytest.raises(NotAllowed):
        await drain(world, operator, all=True, instances=status_pb2.Instances(names=["main", ""]))
    for stranger in (Identity(may_operate=False), Identity(instance_names=frozenset())):
        with pytest.raises(NotAllowed):
            await drain(world, stranger, all=True)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"names": ["a"], "all": True},
        {"all": True, "grace_seconds": -1},
        {"all": True, "grace_seconds": float("nan")},
        {"all": True, "grace_seconds": 1e9},
        {"all": True, "reason": "x" * 301},
        {"names": ["a"] * (MAX_LISTED + 1)},
        {"properties": [re_pb2.Platform.Property(name="a")] * 101},
        {"all": True, "instances": status_pb2.Instances()},
    ],
)
async def test_requests_that_make_no_sense_drain_nobody(world: World, request_: dict[str, Any]) -> None:
    await world.worker("a")
    with pytest.raises(MalformedRequest):
        await drain(world, **request_)
    assert (await shown(world))["a"].state == status_pb2.READY


async def test_what_is_known_to_outlast_the_grace_is_handed_back_at_once_and_counts_no_attempt(world: World) -> None:
    leaving = await world.worker("leaving", slots=3)
    long = await running(world, leaving, takes_seconds=600)
    await running(world, leaving, takes_seconds=20)
    await running(world, leaving)  # nobody knows
    (drained,) = (await drain(world, all=True, grace_seconds=30)).workers
    assert (drained.kept, drained.handed_back) == (2, 1)
    (back,) = (await leaving.hear("drain")).drain.hand_back
    assert (back.lease_id, back.epoch) == (long.lease_id, long.epoch)
    await leaving.finish(long, failure=worker_pb2.Finished.BACK_PRESSURE, result=False, credit=0)
    again = await (await world.worker("other")).lease()
    assert again.task_id == long.task_id
    assert world.counts.retries == [False]


async def test_what_has_nearly_ended_is_not_handed_back(world: World) -> None:
    worker = await world.worker("leaving")
    await running(world, worker, takes_seconds=600)
    world.clock.advance(580)
    (drained,) = (await drain(world, all=True, grace_seconds=30)).workers
    assert (drained.kept, drained.handed_back) == (1, 0)


@pytest.mark.parametrize(("grace_seconds", "outlasts"), [(30, True), (900, False)])
async def test_a_worker_on_short_notice_is_told_what_would_not_end_in_time(
    world: World, grace_seconds: int, outlasts: bool
) -> None:
    worker = await world.worker("spot")
    long = await running(world, worker, takes_seconds=600)
    leaving = worker_pb2.Draining(reason="SIGTERM")
    leaving.grace.FromSeconds(grace_seconds)
    worker.say(draining=leaving)
    if outlasts:
        assert [each.lease_id for each in (await worker.hear("drain")).drain.hand_back] == [long.lease_id]
    await worker.heard()
    found = (await shown(world))["spot"]
    assert (found.state, found.reason) == (status_pb2.DRAINING, "SIGTERM")


@pytest.mark.parametrize(("seconds", "nanos"), [(1 << 62, 0), (-(1 << 62), 0), (0, -1), (1, (1 << 31) - 1)])
async def test_a_grace_that_is_none_does_no_harm(world: World, seconds: int, nanos: int) -> None:
    worker = await world.worker("hostile")
    lease = await running(world, worker)
    leaving = worker_pb2.Draining(reason="x" * 100_000)
    leaving.grace.seconds, leaving.grace.nanos = seconds, nanos
    worker.say(draining=leaving)
    await worker.heard()
    assert len((await shown(world))["hostile"].reason) <= 300
    await worker.finish(lease)


async def test_a_worker_that_is_away_is_told_when_it_comes_back(world: World) -> None:
    worker = await world.worker("w1")
    await running(world, worker)
    await worker.vanish()
    (drained,) = (await drain(world, all=True, grace_seconds=60)).workers
    assert drained.away
    world.clock.advance(2)
    back = world.silent_worker()
    back.say(hello=hello_of("w1"))
    await back.hear("welcome")
    assert (await back.hear("drain")).drain.grace.ToSeconds() == 58


async def test_an_order_to_leave_outlives_the_scheduler(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.sqlite3"
    async with restarted(path) as (world, _):
        worker = await world.worker("w1")
        await running(world, worker)
        await drain(world, all=True, grace_seconds=60, reason="rot")
        await worker.hear("drain")
    async with restarted(path) as (world, _):
        assert [worker.state for worker in (await shown(world)).values()] == [status_pb2.AWAY]
        back = world.silent_worker()
        back.say(hello=hello_of("w1"))
        await back.hear("welcome")
        told = (await back.hear("drain")).drain
        assert (told.reason, 0 < told.grace.ToSeconds() <= 60) == ("drained: rot", True)
        back.say(credit=worker_pb2.Credit(leases=1))
        stream = world.execute(await world.action("another", platform=LINUX))
        assert stage_of(await stream.next()) == re_pb2.ExecutionStage.QUEUED


async def serving(world: World, name: str, *instance_names: str) -> None:
    """A worker of these instances, or of all."""
    worker = world.silent_worker()
    worker.say(hello=hello_of(name, *instance_names))
    await worker.hear("welcome")


def hello_of(name: str, *instance_names: str) -> worker_pb2.Hello:
    """As `World.worker` says it."""
    offered = [re_pb2.Platform.Property(name=key, value=value) for key, value in LINUX]
    return worker_pb2.Hello(
        worker_name=name, session_id=f"{name}-session", slots=1, properties=offered, instance_names=instance_names
    )
