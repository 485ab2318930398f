"""The Status service: pages, rights, what clients must not ask, and what workers say of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cas.context import Identity, RequestContext
from cas.errors import MalformedRequest, NotAllowed
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import status_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.status import MAX_INSTANCES, StatusService, narrowed, token_of
from tests.scheduler.world import GUARD_SECONDS, FakeWorker, World

LINUX = [("OSFamily", "linux")]
OF_MAIN = Identity("m", instance_names=frozenset({"main"}))


def status(world: World) -> StatusService:
    return StatusService(world.broker.status)


async def operations(
    world: World, identity: Identity | None = None, **request: Any
) -> status_pb2.FindOperationsResponse:
    context = RequestContext(identity=identity or Identity())
    return await status(world).FindOperations(status_pb2.FindOperationsRequest(**request), context)


async def workers(world: World, identity: Identity | None = None, **request: Any) -> status_pb2.FindWorkersResponse:
    context = RequestContext(identity=identity or Identity())
    return await status(world).FindWorkers(status_pb2.FindWorkersRequest(**request), context)


async def overview(world: World, identity: Identity | None = None, **request: Any) -> status_pb2.Overview:
    context = RequestContext(identity=identity or Identity())
    return await status(world).GetOverview(status_pb2.GetOverviewRequest(**request), context)


async def started(world: World, count: int, instance_name: str = "main") -> list[str]:
    """Operations of as many actions, in order."""
    names = []
    for number in range(count):
        action = await world.action(f"{instance_name}{number}", platform=LINUX)
        stream = world.execute(action, instance_name=instance_name)
        await stream.next()
        names.append(stream.name)
    return names


async def heard(worker: FakeWorker, world: World) -> None:
    """Until what the worker has said is taken: it is answered in order."""
    lease = worker_pb2.Progress(lease_id="none", epoch=1)
    worker.say(progress=lease)
    await worker.hear("revoke")


class TestOperations:
    async def test_each_has_its_stage_reason_and_worker(self, world: World) -> None:
        worker = await world.worker()
        first, second, third = await started(world, 3)
        lease = await worker.lease()
        world.clock.advance(4)
        running, *waiting = (await operations(world)).operations
        assert (running.name, running.stage, running.worker) == (first, re_pb2.ExecutionStage.EXECUTING, "w1")
        assert (running.running_seconds, running.age_seconds, running.reason) == (4.0, 4.0, "")
        assert (running.attempts, waiting[0].attempts) == (1, 0)
        assert [(operation.name, operation.ahead) for operation in waiting] == [(second, 0), (third, 1)]
        assert all(operation.stage == re_pb2.ExecutionStage.QUEUED for operation in waiting)
        assert all("busy" in operation.reason and operation.category == "busy" for operation in waiting)
        assert waiting[0].summary == "out"
        await worker.finish(lease)
        (ended,) = (await operations(world, stages=[re_pb2.ExecutionStage.COMPLETED])).operations
        assert (ended.name, ended.result, ended.reason, ended.summary) == (first, "succeeded", "", "")

    async def test_a_page_ends_where_the_next_begins_though_operations_come_and_go(self, world: World) -> None:
        names = await started(world, 5)
        first = await operations(world, page_size=2)
        await world.cancel(names[1])
        await world.cancel(names[2])
        rest = await operations(world, page_size=10, page_token=first.next_page_token)
        assert [operation.name for operation in first.operations] == names[:2]
        assert [operation.name for operation in rest.operations] == names[3:]
        assert not rest.next_page_token

    async def test_stages_and_owners_choose(self, world: World) -> None:
        await started(world, 2)
        owner = (await operations(world)).operations[0].owner
        assert len((await operations(world, invocation=owner.invocation, user=owner.user)).operations) == 2
        for other in ("tenant", "user", "invocation"):
            assert not (await operations(world, None, **{other: "x"})).operations
        assert not (await operations(world, stages=[re_pb2.ExecutionStage.EXECUTING])).operations
        every = [re_pb2.ExecutionStage.QUEUED, re_pb2.ExecutionStage.COMPLETED]
        assert len((await operations(world, stages=every)).operations) == 2

    async def test_a_failure_and_a_hit_are_told_apart(self, world: World) -> None:
        worker = await world.worker()
        action = await world.action("same")
        for code in (1, 0):
            stream = world.execute(action)
            await stream.next()
            await worker.finish(await worker.lease(), exit_code=code)
            await stream.response()
        await world.execute(action).response()
        ended = (await operations(world, stages=[re_pb2.ExecutionStage.COMPLETED])).operations
        assert [operation.result for operation in ended] == ["failed", "succeeded", "cached"]

    @pytest.mark.parametrize(
        ("request_", "text"),
        [
            ({"page_size": -1}, "page_size is -1"),
            ({"stages": [99]}, "stages has 99"),
            ({"stages": [0]}, "stages has 0"),
            ({"page_token": "*"}, "page_token"),
            ({"page_token": "\u00e9"}, "page_token"),
            ({"page_token": "YWJj"}, "page_token"),
            ({"page_token": token_of(("x", "name"))}, "page_token"),
            ({"page_token": token_of(("1" * 40, "name"))}, "page_token"),
            ({"instances": status_pb2.Instances()}, "instances is empty"),
            ({"instances": status_pb2.Instances(names=["x"] * (MAX_INSTANCES + 1))}, "1001 instances"),
        ],
    )
    async def test_nonsense_is_refused(self, world: World, request_: dict[str, Any], text: str) -> None:
        with pytest.raises(MalformedRequest, match=text.replace("*", r"\*")):
            await operations(world, **request_)

    async def test_a_page_is_never_larger_than_agreed(self, world: World) -> None:
        await started(world, 3)
        assert len((await operations(world, page_size=2**31 - 1)).operations) == 3

    async def test_others_get_their_turn_between_the_steps(self, world: World) -> None:
        await started(world, 60)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(others())
        async with asyncio.timeout(GUARD_SECONDS):
            assert len((await operations(world)).operations) == 60
        other.cancel()
        assert turns >= 3


class TestWorkers:
    async def test_what_a_worker_says_of_itself_is_shown(self, world: World) -> None:
        worker = await world.worker(slots=2)
        await started(world, 1)
        await worker.lease()
        worker.say(
            heartbeat=worker_pb2.Heartbeat(
                load=1.5, cache_bytes=10, free_disk_bytes=20, available_memory_bytes=30
            )
        )  # fmt: skip
        await heard(worker, world)
        world.clock.advance(3)
        (found,) = (await workers(world)).workers
        assert (found.name, found.worker_id, found.state) == ("w1", "w1-session", status_pb2.READY)
        assert (found.slots, found.busy_slots, found.attached_seconds) == (2, 1, 3.0)
        said = found.vitals
        assert (said.load, said.cache_bytes, said.free_disk_bytes, said.available_memory_bytes) == (1.5, 10, 20, 30)
        assert said.age_seconds == 3.0
        assert [(task.summary, task.running_seconds) for task in found.running] == [("out", 3.0)]

    async def test_why_a_worker_takes_nothing_is_shown(self, world: World) -> None:
        worker = await world.worker()
        for reason in ("100 MiB left on the disk", ""):
            worker.say(heartbeat=worker_pb2.Heartbeat(pause_reason=reason))
            await heard(worker, world)
            (found,) = (await workers(world)).workers
            assert (found.state, found.reason) == (status_pb2.READY, reason)

    @pytest.mark.parametrize("load", [float("nan"), float("inf"), -float("inf")])
    async def test_a_load_that_is_no_number_is_not_passed_on(self, world: World, load: float) -> None:
        worker = await world.worker()
        worker.say(heartbeat=worker_pb2.Heartbeat(load=load))
        await heard(worker, world)
        assert (await workers(world)).workers[0].vitals.load == 0.0

    async def test_states_choose_and_pages_follow_each_other(self, world: World) -> None:
        for name in ("b", "a", "c"):
            await world.worker(name)
        away = await world.worker("d")
        await away.vanish()
        assert await self.names(world) == ["a", "b", "c", "d"]
        assert await self.names(world, states=[status_pb2.AWAY]) == ["d"]
        assert await self.names(world, states=[status_pb2.QUARANTINED]) == []
        first = await workers(world, page_size=3)
        assert await self.names(world, page_token=first.next_page_token) == ["d"]
        with pytest.raises(MalformedRequest, match="states has 7"):
            await workers(world, states=[7])

    async def names(self, world: World, **request: Any) -> list[str]:
        return [worker.name for worker in (await workers(world, **request)).workers]

    async def test_one_that_is_gone_is_forgotten_with_all_it_said(self, world: World) -> None:
        worker = await world.worker()
        await worker.vanish()
        world.clock.advance(world.settings.grace_seconds + 1)
        assert not (await workers(world)).workers
        assert world.broker.vitals.of("w1-session") is None


class TestRights:
    @pytest.mark.parametrize("call", [overview, operations, workers])
    async def test_who_may_not_execute_or_has_no_instance_is_told_nothing(self, world: World, call: Any) -> None:
        for identity in (Identity(may_execute=False), Identity(instance_names=frozenset())):
            with pytest.raises(NotAllowed, match=r"^not allowed$"):
                await call(world, identity)

    @pytest.mark.parametrize("call", [overview, operations, workers])
    async def test_nobody_asks_for_instances_that_are_not_his(self, world: World, call: Any) -> None:
        for names in ([""], ["main", ""], ["unknown"]):
            with pytest.raises(NotAllowed, match=r"^not allowed$"):
                await call(world, OF_MAIN, instances=status_pb2.Instances(names=names))
        await call(world, OF_MAIN, instances=status_pb2.Instances(names=["main"]))

    async def test_one_sees_the_operations_of_his_instances(self, world: World) -> None:
        mine, others = await started(world, 1, "main"), await started(world, 1, "")
        assert await self.seen(world) == [*mine, *others]
        assert await self.seen(world, OF_MAIN) == mine
        unnamed = status_pb2.Instances(names=[""])
        assert [found.name for found in (await operations(world, instances=unnamed)).operations] == others
        assert len((await overview(world, OF_MAIN)).invocations) == 1
        assert len((await overview(world)).invocations) == 2

    async def seen(self, world: World, identity: Identity | None = None) -> Sequence[str]:
        return [found.name for found in (await operations(world, identity)).operations]

    async def test_one_sees_that_a_worker_is_busy_and_not_with_what(self, world: World) -> None:
        worker = await world.worker()
        await started(world, 1, "")
        await worker.lease()
        (found,) = (await workers(world, OF_MAIN)).workers
        assert (found.busy_slots, len(found.running)) == (1, 0)

    def test_a_request_that_is_passed_on_names_what_the_caller_may_see(self) -> None:
        request = narrowed(status_pb2.FindWorkersRequest(), OF_MAIN)
        assert list(request.instances.names) == ["main"]
        assert not narrowed(status_pb2.FindWorkersRequest(), Identity()).HasField("instances")


class TestOverview:
    async def test_it_is_made_once_a_second_for_all_who_ask_the_same(self, world: World) -> None:
        await started(world, 1)
        assert (await overview(world)).work.waiting_tasks == 1
        await started(world, 1, "")
        assert (await overview(world)).work.waiting_tasks == 1
        assert (await overview(world, OF_MAIN)).work.waiting_tasks == 1
        world.clock.advance(1)
        assert (await overview(world)).work.waiting_tasks == 2
        assert (await overview(world, OF_MAIN)).work.waiting_tasks == 1

    async def test_it_says_which_server_and_since_when(self, world: World) -> None:
        world.clock.advance(30)
        told = await overview(world)
        assert told.uptime_seconds == 30.0
        assert told.software_version
