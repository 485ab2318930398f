"""What every `Scheduler` does, whether the queue is in this process or at the other end of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

import pytest
from msgspec.structs import replace

from cas.digest import Digest
from cas.errors import Code, NoWorkerFits, OperationNotFound, QueueFull, StatusError
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.live_logs import STARTS_OVER
from rexec.scheduler.log_name import Output
from rexec.scheduler.platform import Requirement
from rexec.scheduler.scheduler import Inlining, LogRest, OperationState, Run, Scheduler
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate, Owner, Stage
from tests.scheduler.parted import eventually, parted
from tests.scheduler.world import GUARD_SECONDS, World

ALL = frozenset(Stage)
KEEPALIVE_SECONDS = 1_000.0

Opener = Callable[[World], AbstractAsyncContextManager[Scheduler]]


@asynccontextmanager
async def in_this_process(world: World) -> AsyncIterator[Scheduler]:
    yield world.broker


@asynccontextmanager
async def elsewhere(world: World) -> AsyncIterator[Scheduler]:
    async with parted(world) as (scheduler, _wire):
        yield scheduler


@pytest.fixture(params=[in_this_process, elsewhere], ids=lambda opener: opener.__name__)
def opener(request: pytest.FixtureRequest) -> Opener:
    chosen: Opener = request.param
    return chosen


@pytest.fixture
async def scheduler(opener: Opener, world: World) -> AsyncIterator[Scheduler]:
    async with opener(world) as scheduler:
        yield scheduler


def candidate(name: str = "a", instance_name: str = "main", **changes: object) -> Candidate:
    """An action that any worker can run."""
    run = Run(re_pb2.Action(), re_pb2.Command(arguments=[name], output_paths=["out"]), re_pb2.RequestMetadata(), 1e9)
    made = Candidate(
        instance_name,
        Digest.of(name.encode()),
        Requirement(instance_name, frozenset()),
        timeout_seconds=60,
        payload=run,
    )
    return replace(made, **changes)


def response(name: str = "done") -> re_pb2.ExecuteResponse:
    return re_pb2.ExecuteResponse(message=name, cached_result=True)


async def next_of(states: AsyncIterator[OperationState]) -> OperationState:
    async with asyncio.timeout(GUARD_SECONDS):
        return await anext(states)


async def until_done(scheduler: Scheduler, name: str) -> OperationState:
    async with asyncio.timeout(GUARD_SECONDS), aclosing(scheduler.watch(name, KEEPALIVE_SECONDS)) as states:
        async for state in states:
            if state.done:
                return state
    raise AssertionError("the stream ended before the operation was complete")


async def test_an_action_goes_through_its_stages(scheduler: Scheduler, world: World) -> None:
    owner = Owner("team", "ann", "build 1")
    name = await scheduler.submit(candidate(owner=owner), Inlining(stdout=True, files=frozenset({"out"})))
    assert name.startswith("main/operations/")
    async with aclosing(scheduler.watch(name, KEEPALIVE_SECONDS)) as states:
        queued = await next_of(states)
        assert (queued.name, queued.stage, queued.done, queued.response) == (name, Stage.QUEUED, False, None)
        assert (queued.instance_name, queued.action_digest) == ("main", Digest.of(b"a"))
        assert (queued.inlining, queued.owner) == (Inlining(stdout=True, files=frozenset({"out"})), owner)
        assert queued.reason
        worker = await world.worker()
        lease = await worker.lease()
        executing = await next_of(states)
        assert (executing.stage, executing.reason) == (Stage.EXECUTING, "")
        assert executing.metadata is not None
        assert executing.metadata.worker == "w1"
        await worker.finish(lease, files={"out": b"made"})
        completed = await next_of(states)
        while not completed.done:
            completed = await next_of(states)
        assert completed.response is not None
        assert completed.response.result.output_files[0].path == "out"
        with pytest.raises(StopAsyncIteration):
            await next_of(states)


async def test_a_completed_operation_can_be_made_and_is_complete_at_once(scheduler: Scheduler) -> None:
    name = await scheduler.record(candidate(), Inlining(), response())
    async with aclosing(scheduler.watch(name, KEEPALIVE_SECONDS)) as states:
        state = await next_of(states)
        assert (state.name, state.stage, state.response) == (name, Stage.COMPLETED, response())
        with pytest.raises(StopAsyncIteration):
            await next_of(states)
    assert (await scheduler.state(name)).response == response()


async def test_an_operation_that_is_named_twice_is_made_once(scheduler: Scheduler, world: World) -> None:
    name = "main/operations/mine"
    assert await scheduler.submit(candidate(), Inlining(), name) == name
    assert await scheduler.submit(candidate(), Inlining(), name) == name
    assert (
        await scheduler.record(candidate(), Inlining(), response(), "main/operations/other") == "main/operations/other"
    )
    assert (
        await scheduler.record(candidate(), Inlining(), response("not this one"), "main/operations/other")
        == "main/operations/other"
    )
    assert (await scheduler.state("main/operations/other")).response == response()
    assert len(await scheduler.page("main", ALL, "", 10)) == 2
    worker = await world.worker()
    await worker.finish(await worker.lease(), files={"out": b"made"})
    assert (await until_done(scheduler, name)).done


async def test_equal_actions_run_once_and_each_has_an_operation_of_its_own(scheduler: Scheduler, world: World) -> None:
    names = [await scheduler.submit(candidate(), Inlining()) for _ in range(3)]
    assert len(set(names)) == 3
    worker = await world.worker()
    await worker.finish(await worker.lease(), files={"out": b"made"})
    for name in names:
        assert (await until_done(scheduler, name)).done


async def test_every_method_knows_only_names_that_exist(scheduler: Scheduler) -> None:
    unknown = "main/operations/unknown"
    with pytest.raises(OperationNotFound, match="unknown"):
        await scheduler.state(unknown)
    with pytest.raises(OperationNotFound):
        await scheduler.cancel(unknown)
    with pytest.raises(OperationNotFound):
        await scheduler.forget(unknown)
    async with aclosing(scheduler.watch(unknown, KEEPALIVE_SECONDS)) as states:
        with pytest.raises(OperationNotFound):
            await next_of(states)
    async with aclosing(scheduler.log(unknown, Output.STDOUT, 0)) as parts:
        with pytest.raises(StatusError) as caught:
            async with asyncio.timeout(GUARD_SECONDS):
                await anext(parts)
    assert caught.value.code is Code.NOT_FOUND


async def test_the_instance_without_a_name_has_names_without_a_prefix(scheduler: Scheduler) -> None:
    name = await scheduler.submit(candidate(instance_name=""), Inlining())
    assert name.startswith("operations/")
    assert (await scheduler.state(name)).instance_name == ""


async def test_what_no_worker_can_run_is_refused_with_the_reason(scheduler: Scheduler, world: World) -> None:
    await world.worker()
    world.clock.advance(world.settings.settle_seconds + 1)
    picky = candidate(requirement=Requirement("main", frozenset({("colour", "blue")})))
    with pytest.raises(StatusError, match="colour") as caught:
        await scheduler.submit(picky, Inlining())
    assert caught.value.code is NoWorkerFits.code


async def test_a_full_queue_says_when_to_come_back(opener: Opener) -> None:
    async with World(SchedulerSettings(max_queued_operations=1)) as world, opener(world) as scheduler:
        await scheduler.submit(candidate("a"), Inlining())
        with pytest.raises(QueueFull) as caught:
            await scheduler.submit(candidate("b"), Inlining())
    assert [detail.type_url for detail in caught.value.to_proto().details] == [
        "type.googleapis.com/google.rpc.RetryInfo"
    ]


async def test_a_cancelled_operation_is_complete_and_stays_so(scheduler: Scheduler) -> None:
    name = await scheduler.submit(candidate(), Inlining())
    await scheduler.cancel(name)
    await scheduler.cancel(name)
    state = await until_done(scheduler, name)
    assert state.response is not None
    assert state.response.status.code == Code.CANCELLED


async def test_a_completed_operation_can_be_forgotten_and_a_live_one_cannot(scheduler: Scheduler) -> None:
    done, live = (
        await scheduler.record(candidate(), Inlining(), response()),
        await scheduler.submit(candidate("b"), Inlining()),
    )
    for name in (done, live):
        await scheduler.forget(name)
    assert [state.name for state in await scheduler.page("main", ALL, "", 10)] == [live]


async def test_pages_are_in_order_of_names_and_of_one_instance_and_stage(scheduler: Scheduler) -> None:
    names = [f"main/operations/{number}" for number in (3, 1, 2)]
    for number, name in enumerate(names):
        await scheduler.submit(candidate(str(number)), Inlining(), name)
    await scheduler.submit(candidate(instance_name=""), Inlining(), "operations/5")
    await scheduler.record(candidate("c"), Inlining(), response(), "main/operations/4")

    async def page(stages: frozenset[Stage], after: str, limit: int) -> list[str]:
        return [state.name.rpartition("/")[2] for state in await scheduler.page("main", stages, after, limit)]

    assert await page(ALL, "", 10) == ["1", "2", "3", "4"]
    assert await page(ALL, "", 2) == ["1", "2"]
    assert await page(ALL, "main/operations/2", 10) == ["3", "4"]
    assert await page(frozenset({Stage.COMPLETED}), "", 10) == ["4"]
    assert await page(frozenset({Stage.EXECUTING}), "", 10) == []


async def test_large_responses_make_more_pages_and_none_is_lost(scheduler: Scheduler) -> None:
    large = re_pb2.ExecuteResponse(message="x" * (1 << 20))
    for number in range(8):
        await scheduler.record(candidate(str(number)), Inlining(), large, f"main/operations/{number}")
    seen: list[str] = []
    while page := await scheduler.page("main", ALL, f"main/operations/{seen[-1]}" if seen else "", 10):
        seen += [state.name.rpartition("/")[2] for state in page]
    assert seen == [str(number) for number in range(8)]


async def test_whoever_waits_counts_until_the_stream_is_closed(scheduler: Scheduler, world: World) -> None:
    name = await scheduler.submit(candidate(), Inlining())

    def waiters() -> int:
        return world.broker._queue.operations[name].waiters

    streams = [scheduler.watch(name, KEEPALIVE_SECONDS) for _ in range(2)]
    for stream in streams:
        await next_of(stream)
    await eventually(lambda: waiters() == 2)
    await streams[0].aclose()
    await eventually(lambda: waiters() == 1)
    await streams[1].aclose()
    await eventually(lambda: waiters() == 0)


async def test_what_is_printed_comes_while_the_action_runs_and_its_rest_with_the_result(
    scheduler: Scheduler, world: World
) -> None:
    name = await scheduler.submit(candidate(), Inlining())
    worker = await world.worker()
    lease = await worker.lease()
    async with asyncio.timeout(GUARD_SECONDS), aclosing(scheduler.log(name, Output.STDERR, 2)) as parts:
        first = asyncio.ensure_future(anext(parts))
        asked = (await worker.hear("read_log")).read_log
        assert (asked.stream, asked.offset) == (worker_pb2.STDERR, 2)
        worker.say(
            log=worker_pb2.LogPiece(
                lease_id=lease.lease_id,
                epoch=lease.epoch,
                stream=worker_pb2.STDERR,
                reader=asked.reader,
                offset=2,
                data=b"printed",
            )
        )
        assert await first == b"printed"
        await worker.finish(lease, files={"out": b"made"})
        rest = await anext(parts)
        assert isinstance(rest, LogRest)
        assert rest.offset == 9
        assert rest.state.response is not None


async def test_output_that_starts_over_is_told_as_such(scheduler: Scheduler, world: World) -> None:
    name = await scheduler.submit(candidate(), Inlining())
    first, second = await world.worker("w1"), await world.worker("w2")
    lease = await first.lease()
    async with (
        asyncio.timeout(GUARD_SECONDS),
        aclosing(scheduler.watch(name, 30)) as states,
        aclosing(scheduler.log(name, Output.STDOUT, 0)) as parts,
    ):
        await anext(states)  # or nobody waits for it, and it would not be tried again
        part = asyncio.ensure_future(anext(parts))
        asked = (await first.hear("read_log")).read_log
        first.say(
            log=worker_pb2.LogPiece(
                lease_id=lease.lease_id,
                epoch=lease.epoch,
                stream=worker_pb2.STDOUT,
                reader=asked.reader,
                offset=0,
                data=b"printed",
            )
        )
        assert await part == b"printed"
        part = asyncio.ensure_future(anext(parts))
        failure = worker_pb2.Finished.INFRASTRUCTURE
        first.say(finished=worker_pb2.Finished(lease_id=lease.lease_id, epoch=lease.epoch, failure=failure))
        assert await part == STARTS_OVER
        part = asyncio.ensure_future(anext(parts))
        again = await second.lease()
        asked = (await second.hear("read_log")).read_log
        assert (asked.lease_id, asked.offset) == (again.lease_id, 0)
        part.cancel()
        await asyncio.wait([part])


async def test_when_the_scheduler_stops_whoever_waits_is_told_to_come_back(opener: Opener) -> None:
    async with World() as world:
        async with opener(world) as scheduler:
            name = await scheduler.submit(candidate(), Inlining())
            stream = scheduler.watch(name, KEEPALIVE_SECONDS)
            await next_of(stream)
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            if opener is in_this_process:
                await world.stop()
        with pytest.raises(StatusError) as caught:
            async with asyncio.timeout(GUARD_SECONDS):
                await waiting
        await stream.aclose()
    assert caught.value.code is Code.UNAVAILABLE
