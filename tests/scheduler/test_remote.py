"""A frontend whose connection to the scheduler breaks, at every moment at which it can: nobody notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from google.protobuf.message import Message

from cas.errors import Code, OperationNotFound, StatusError, Unavailable
from protos.rexec.scheduler.v1 import frontends_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.log_name import Output
from rexec.scheduler.remote import UNCLAIMED_SECONDS, RemoteScheduler
from rexec.scheduler.scheduler import Inlining, LogRest
from rexec.scheduler.scheduler_connection import REFUSED_PAUSE_SECONDS, SILENT_HEARTBEATS
from rexec.scheduler.scheduler_link import LinkBroken, Refused
from rexec.scheduler.task import Stage
from tests.scheduler.parted import Served, Wire, eventually, parted, remote_over
from tests.scheduler.test_scheduler_contract import KEEPALIVE_SECONDS, candidate, next_of, response, until_done
from tests.scheduler.world import GUARD_SECONDS, HandClock, World

NAME = "main/operations/mine"
MANY = 10_000


@pytest.fixture
async def link(world: World) -> AsyncIterator[tuple[RemoteScheduler, Wire]]:
    async with parted(world) as opened:
        yield opened


class Once:
    """Breaks the connection at the first message of a kind that passes by."""

    def __init__(self, field: str) -> None:
        self._field = field
        self.has_happened = False

    def __call__(self, message: Message) -> None:
        if self.has_happened:
            return
        parts: list[Message] = []
        if isinstance(message, frontends_pb2.FromFrontend):
            parts = list(message.requests)
        elif isinstance(message, frontends_pb2.ToFrontend):
            parts = list(message.answers)
        if any(part.HasField(self._field) for part in parts):
            self.has_happened = True
            raise LinkBroken("cut by the test")


def waiters(world: World, name: str = NAME) -> int:
    operation = world.broker._queue.operations.get(name)
    return operation.waiters if operation is not None else 0


async def run_by(world: World, worker_name: str = "w1") -> None:
    """A worker runs the next action."""
    worker = await world.worker(worker_name)
    await worker.finish(await worker.lease(), files={"out": b"made"})


@pytest.mark.parametrize("way", ["on_send", "on_receive"])
async def test_a_submission_that_is_lost_on_its_way_or_whose_answer_is_happens_once(
    link: tuple[RemoteScheduler, Wire], world: World, way: str
) -> None:
    scheduler, wire = link
    cutting = Once("submit" if way == "on_send" else "state")
    setattr(wire, way, cutting)
    assert await scheduler.submit(candidate(), Inlining(), NAME) == NAME
    assert cutting.has_happened
    assert wire.connections == 2
    async with aclosing(scheduler.watch(NAME, KEEPALIVE_SECONDS)) as states:
        assert (await next_of(states)).stage is Stage.QUEUED
        await eventually(lambda: waiters(world) == 1)
        assert list(world.broker._queue.operations) == [NAME]
        await run_by(world)
    assert (await until_done(scheduler, NAME)).done


@pytest.mark.parametrize("request_kind", ["state", "page", "cancel", "forget", "record"])
@pytest.mark.parametrize("way", ["on_send", "on_receive"])
async def test_each_request_whose_answer_does_not_come_is_repeated(
    link: tuple[RemoteScheduler, Wire], request_kind: str, way: str
) -> None:
    scheduler, wire = link
    await scheduler.record(candidate("other"), Inlining(), response(), NAME)
    answers = {"state": "state", "page": "page", "cancel": "done", "forget": "done", "record": "done"}
    cutting = Once(request_kind if way == "on_send" else answers[request_kind])
    setattr(wire, way, cutting)
    match request_kind:
        case "state":
            assert (await scheduler.state(NAME)).response == response()
        case "page":
            assert [state.name for state in await scheduler.page("main", frozenset(Stage), "", 5)] == [NAME]
        case "cancel":
            await scheduler.cancel(NAME)
        case "forget" if way == "on_send":
            await scheduler.forget(NAME)
        case "forget":
            with pytest.raises(OperationNotFound):  # it was forgotten the first time
                await scheduler.forget(NAME)
        case "record":
            await scheduler.record(candidate(), Inlining(), response(), "main/operations/new")
            assert len(await scheduler.page("main", frozenset(Stage), "", 5)) == 2
    assert cutting.has_happened
    assert wire.connections == 2


async def test_a_stream_stays_open_while_nobody_answers_and_goes_on_with_what_happened_meanwhile(
    link: tuple[RemoteScheduler, Wire], world: World
) -> None:
    scheduler, wire = link
    await scheduler.submit(candidate(), Inlining(), NAME)
    async with aclosing(scheduler.watch(NAME, KEEPALIVE_SECONDS)) as states:
        await next_of(states)
        worker = await world.worker()
        lease = await worker.lease()
        while (await next_of(states)).stage is not Stage.EXECUTING:
            pass
        serving, wire.server = wire.server, None
        wire.cut()
        await eventually(lambda: bool(scheduler.connection.trouble()))
        await eventually(lambda: waiters(world) == 0)
        await worker.finish(lease, files={"out": b"made"})
        waiting = asyncio.ensure_future(anext(states))
        wire.server = serving
        async with asyncio.timeout(GUARD_SECONDS):
            assert (await waiting).done
    assert wire.connections == 2


async def test_a_stream_counts_once_however_often_the_connection_breaks(
    link: tuple[RemoteScheduler, Wire], world: World
) -> None:
    scheduler, wire = link
    await scheduler.submit(candidate(), Inlining(), NAME)
    streams = [scheduler.watch(NAME, KEEPALIVE_SECONDS) for _ in range(3)]
    for stream in streams:
        await next_of(stream)
    for number in range(2, 5):
        wire.cut()
        await eventually(lambda number=number: wire.connections == number)  # type: ignore[misc]
        await eventually(lambda: waiters(world) == 3)
    for left, stream in zip((2, 1, 0), streams, strict=True):
        await stream.aclose()
        await eventually(lambda left=left: waiters(world) == left)  # type: ignore[misc]


async def test_a_stream_that_is_closed_while_nobody_answers_is_not_waited_for_again(
    link: tuple[RemoteScheduler, Wire], world: World
) -> None:
    scheduler, wire = link
    await scheduler.submit(candidate(), Inlining(), NAME)
    states = scheduler.watch(NAME, KEEPALIVE_SECONDS)
    await next_of(states)
    serving, wire.server = wire.server, None
    wire.cut()
    await eventually(lambda: bool(scheduler.connection.trouble()))
    await states.aclose()
    wire.server = serving
    assert (await scheduler.state(NAME)).stage is Stage.QUEUED
    assert waiters(world) == 0


async def test_a_client_that_leaves_while_its_action_is_submitted_is_not_waited_for(
    link: tuple[RemoteScheduler, Wire], world: World
) -> None:
    scheduler, wire = link
    serving, wire.server = wire.server, None
    wire.cut()
    await eventually(lambda: bool(scheduler.connection.trouble()))
    submitting = asyncio.ensure_future(scheduler.submit(candidate(), Inlining(), NAME))
    await asyncio.sleep(0)
    submitting.cancel()
    await asyncio.wait([submitting])
    wire.server = serving
    assert await scheduler.page("main", frozenset(Stage), "", 5) == []


async def test_a_scheduler_that_took_over_with_the_queue_goes_on_with_it(link: tuple[RemoteScheduler, Wire]) -> None:
    scheduler, wire = link
    await scheduler.submit(candidate(), Inlining(), NAME)
    async with aclosing(scheduler.watch(NAME, KEEPALIVE_SECONDS)) as states, World() as successor:
        await next_of(states)
        await successor.broker.submit(candidate(), Inlining(), NAME)
        async with Served(successor) as wire.server:
            wire.cut()
            await eventually(lambda: waiters(successor) == 1)
            await run_by(successor)
            async with asyncio.timeout(GUARD_SECONDS):
                while not (await anext(states)).done:
                    pass
            wire.server = None


async def test_a_scheduler_that_lost_the_queue_gets_what_clients_wait_for_again(
    link: tuple[RemoteScheduler, Wire],
) -> None:
    scheduler, wire = link
    await scheduler.submit(candidate(), Inlining(stdout=True), NAME)
    async with aclosing(scheduler.watch(NAME, KEEPALIVE_SECONDS)) as states, World() as successor:
        await next_of(states)
        async with Served(successor) as wire.server:
            wire.cut()
            await eventually(lambda: waiters(successor) == 1)
            await run_by(successor)
            async with asyncio.timeout(GUARD_SECONDS):
                state = [state async for state in states][-1]
            assert (state.name, state.done, state.inlining) == (NAME, True, Inlining(stdout=True))
            wire.server = None


async def test_what_was_submitted_elsewhere_and_is_lost_is_not_found(
    link: tuple[RemoteScheduler, Wire], world: World
) -> None:
    scheduler, wire = link
    await world.broker.submit(candidate(), Inlining(), NAME)
    async with aclosing(scheduler.watch(NAME, KEEPALIVE_SECONDS)) as states, World() as successor:
        await next_of(states)
        async with Served(successor) as wire.server:
            wire.cut()
            with pytest.raises(OperationNotFound):
                await next_of(states)
            wire.server = None


async def test_the_operations_of_a_frontend_that_vanishes_are_waited_for_no_more(world: World) -> None:
    async with AsyncExitStack() as stack:
        scheduler, wire = await stack.enter_async_context(parted(world))
        names = [f"main/operations/{number}" for number in range(MANY)]
        await asyncio.gather(
            *(scheduler.submit(candidate(str(number % 100)), Inlining(), name) for number, name in enumerate(names))
        )
        operations = world.broker._queue.operations
        assert sum(operation.waiters for operation in operations.values()) == MANY
        wire.server = None
        wire.cut()
        await eventually(lambda: sum(operation.waiters for operation in operations.values()) == 0)
        assert len(operations) == MANY  # for whoever comes back within the grace


async def test_the_first_scheduler_that_answers_is_taken(world: World) -> None:
    dead, alive = Wire(), Wire()
    async with Served(world) as alive.server, remote_over(dead.dial, alive.dial) as scheduler:
        await scheduler.submit(candidate(), Inlining(), NAME)
        assert scheduler.connection.place == 1
        dead.server, alive.server = alive.server, None
        alive.cut()
        await eventually(lambda: scheduler.connection.place == 0 and not scheduler.connection.trouble())
        assert (await scheduler.state(NAME)).name == NAME
        dead.server = None


async def test_a_scheduler_that_was_replaced_and_does_not_know_it_is_left_alone(world: World) -> None:
    old, new = Wire(), Wire()
    async with Served(world, 1) as before, Served(world, 2) as new.server, remote_over(new.dial, old.dial) as scheduler:
        await scheduler.submit(candidate(), Inlining(), NAME)
        old.server, serving, new.server = before, new.server, None
        new.cut()
        await eventually(lambda: "of generation 1, and 2 has been seen" in scheduler.connection.trouble())
        new.server = serving
        assert (await scheduler.state(NAME)).name == NAME
        assert scheduler.connection.place == 0
        new.server = old.server = None


async def test_a_request_gives_up_when_nobody_answers_and_says_when_to_come_back() -> None:
    async with remote_over(Wire().dial, wait_seconds=0.01) as scheduler:
        for asked in (
            scheduler.submit(candidate(), Inlining()),
            scheduler.state(NAME),
            scheduler.page("main", frozenset(Stage), "", 5),
            scheduler.cancel(NAME),
            anext(scheduler.watch(NAME, KEEPALIVE_SECONDS)),
            scheduler.connection.up(),
        ):
            with pytest.raises(Unavailable, match="nobody is there") as caught:
                async with asyncio.timeout(GUARD_SECONDS):
                    await asked
            assert [detail.type_url for detail in caught.value.to_proto().details] == [
                "type.googleapis.com/google.rpc.RetryInfo"
            ]
        assert scheduler._asked == {}


async def test_everything_that_waits_ends_at_once_when_the_scheduler_refuses_until_it_does_not(world: World) -> None:
    clock, wire = HandClock(), Wire()

    def refuse(_: Message) -> None:
        raise Refused("not this one")

    async with Served(world) as wire.server, RemoteScheduler([wire.dial], name="f", clock=clock) as scheduler:
        for _ in range(2):  # those that wait when it says so, and those that come afterwards
            wire.on_receive = refuse
            for asked in [
                asyncio.ensure_future(asked)
                for asked in (
                    scheduler.submit(candidate(), Inlining()),
                    scheduler.state(NAME),
                    scheduler.page("main", frozenset(Stage), "", 5),
                    scheduler.cancel(NAME),
                    anext(scheduler.watch(NAME, KEEPALIVE_SECONDS)),
                    anext(scheduler.log(NAME, Output.STDOUT, 0)),
                    scheduler.connection.up(),
                )
            ]:
                with pytest.raises(Unavailable, match="not this one"):
                    async with asyncio.timeout(GUARD_SECONDS):
                        await asked
            assert scheduler._asked == {}
        assert wire.connections == 1
        wire.on_receive = None
        clock.advance(REFUSED_PAUSE_SECONDS)
        await eventually(lambda: not scheduler.connection.trouble())
        assert await scheduler.submit(candidate(), Inlining(), NAME) == NAME
        wire.server = None


async def test_a_scheduler_that_refuses_ends_nothing_while_another_one_is_away(world: World) -> None:
    def refuse() -> Any:
        raise Refused("not this one")

    wire = Wire()
    async with remote_over(refuse, wire.dial) as scheduler:
        submitting = asyncio.ensure_future(scheduler.submit(candidate(), Inlining(), NAME))
        await eventually(lambda: "nobody is there" in scheduler.connection.trouble())
        async with Served(world) as wire.server:
            assert await submitting == NAME
            wire.server = None


async def test_a_stream_that_has_nothing_new_says_so_without_asking(world: World) -> None:
    clock, wire = HandClock(), Wire()
    async with Served(world) as wire.server, RemoteScheduler([wire.dial], name="f", clock=clock) as scheduler:
        await scheduler.submit(candidate(), Inlining(), NAME)
        sent: list[Message] = []
        wire.on_send = sent.append
        async with aclosing(scheduler.watch(NAME, 7.0)) as states:
            first = await next_of(states)
            for _ in range(3):
                waiting = asyncio.ensure_future(anext(states))
                await clock.timer_set()
                clock.advance(7.0)
                async with asyncio.timeout(GUARD_SECONDS):
                    assert await waiting == first
            assert sent == []
        wire.server = None


async def test_an_operation_that_no_stream_comes_to_follow_is_not_waited_for_any_longer(world: World) -> None:
    clock, wire = HandClock(), Wire()
    async with Served(world) as wire.server, RemoteScheduler([wire.dial], name="f", clock=clock) as scheduler:
        await scheduler.submit(candidate(), Inlining(), NAME)
        done = await scheduler.record(candidate("b"), Inlining(), response())
        assert waiters(world) == 1
        for _ in range(int(UNCLAIMED_SECONDS)):
            await scheduler.state(done)  # so that the scheduler is not silent
            clock.advance(1.0)
        await eventually(lambda: waiters(world) == 0)
        assert scheduler._own == {}
        wire.server = None


async def test_a_scheduler_that_is_silent_counts_as_gone(world: World) -> None:
    clock, wire = HandClock(), Wire()
    async with Served(world) as wire.server, RemoteScheduler([wire.dial], name="f", clock=clock) as scheduler:
        await scheduler.submit(candidate(), Inlining(), NAME)
        for _ in range(SILENT_HEARTBEATS):  # of two seconds each, and nothing can be heard while this goes on
            clock.advance(2.0)
        await eventually(lambda: "nothing heard for 10 s" in scheduler.connection.trouble())
        assert not world.broker._queue.operations[NAME].outcome
        wire.server = None


async def test_a_log_is_read_on_from_where_it_was(link: tuple[RemoteScheduler, Wire], world: World) -> None:
    scheduler, wire = link
    await scheduler.submit(candidate(), Inlining(), NAME)
    worker = await world.worker()
    lease = await worker.lease()

    async def piece(data: bytes, offset: int) -> None:
        asked = (await worker.hear("read_log")).read_log
        assert asked.offset == offset
        worker.say(
            log=worker_pb2.LogPiece(
                lease_id=lease.lease_id,
                epoch=lease.epoch,
                stream=worker_pb2.STDOUT,
                reader=asked.reader,
                offset=offset,
                data=data,
            )
        )

    async with asyncio.timeout(GUARD_SECONDS), aclosing(scheduler.log(NAME, Output.STDOUT, 0)) as parts:
        part = asyncio.ensure_future(anext(parts))
        await piece(b"before ", 0)
        assert await part == b"before "
        part = asyncio.ensure_future(anext(parts))
        wire.cut()
        assert (await worker.hear("read_log")).read_log.until == 0  # nobody reads any more
        await piece(b"after", 7)
        assert await part == b"after"
        await worker.finish(lease, stdout=b"before after!", files={"out": b"made"})
        rest = await anext(parts)
        assert isinstance(rest, LogRest)
        assert rest.offset == 12


async def test_leaving_a_frontend_ends_what_waits_and_leaves_no_task(world: World) -> None:
    before = asyncio.all_tasks()
    async with parted(world) as (scheduler, _wire):
        await scheduler.submit(candidate(), Inlining(), NAME)
        states = scheduler.watch(NAME, KEEPALIVE_SECONDS)
        await next_of(states)
        waiting = asyncio.ensure_future(anext(states))
        reading = asyncio.ensure_future(anext(scheduler.log(NAME, Output.STDOUT, 0)))
        await asyncio.sleep(0)
    for stream in (waiting, reading):
        with pytest.raises(StatusError) as caught:
            async with asyncio.timeout(GUARD_SECONDS):
                await stream
        assert caught.value.code is Code.UNAVAILABLE
    await states.aclose()
    await eventually(lambda: asyncio.all_tasks() <= before)
