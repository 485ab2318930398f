"""Following the output of an action from its worker to its readers, with every way in which that can be disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cas.context import Identity, RequestContext
from cas.errors import (
    MalformedRequest,
    NotAllowed,
    NotFound,
    OffsetOutOfRange,
    ResourceExhausted,
    StatusError,
    Unavailable,
)
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.live_logs import MAX_PIECE_BYTES, STARTS_OVER, WINDOW_BYTES
from rexec.scheduler.log_name import Output, is_log_name, log_name, parse_log_name
from rexec.scheduler.log_streams import LogStreams
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.statistics import MIN_SAMPLES
from rexec.scheduler.task import Usage
from tests.scheduler.world import GUARD_SECONDS, FakeWorker, Stream, World, metadata_of

EXECUTING = re_pb2.ExecutionStage.EXECUTING
INFRASTRUCTURE = worker_pb2.Finished.INFRASTRUCTURE


class Reader:
    """One ByteStream.Read of a log."""

    def __init__(
        self, world: World, name: str, offset: int = 0, limit: int = 0, identity: Identity | None = None
    ) -> None:
        request = bytestream_pb2.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
        context = RequestContext(identity=identity) if identity else RequestContext()
        self._pieces: AsyncGenerator[bytes, None] = LogStreams(world.instances, world.broker).read(request, context)

    async def next(self) -> bytes:
        async with asyncio.timeout(GUARD_SECONDS):
            return await anext(self._pieces)

    async def rest(self) -> bytes:
        """Everything up to the end of the call."""
        async with asyncio.timeout(GUARD_SECONDS):
            return b"".join([piece async for piece in self._pieces])

    async def close(self) -> None:
        await self._pieces.aclose()


class Run:
    """An action that a worker is running, and its log."""

    def __init__(self, world: World, stream: Stream, worker: FakeWorker, lease: worker_pb2.Lease) -> None:
        self.world = world
        self.stream = stream
        self.worker = worker
        self.lease = lease
        self.stdout = log_name(stream.name, Output.STDOUT)

    def reader(self, offset: int = 0, limit: int = 0) -> tuple[Reader, asyncio.Task[bytes]]:
        """A reader, and his wait for the first piece."""
        reader = Reader(self.world, self.stdout, offset, limit)
        return reader, asyncio.create_task(reader.next())

    async def asked(self) -> worker_pb2.ReadLog:
        return (await self.worker.hear("read_log")).read_log

    def prints(self, request: worker_pb2.ReadLog, data: bytes, offset: int = 0) -> None:
        """The worker sends bytes to the reader of that request."""
        self.worker.say(
            log=worker_pb2.LogPiece(
                lease_id=request.lease_id,
                epoch=request.epoch,
                stream=request.stream,
                reader=request.reader,
                offset=offset,
                data=data,
            )
        )


async def running(world: World, name: str = "w1", stream: Stream | None = None) -> Run:
    """An action in stage EXECUTING, at a new worker of that name."""
    stream = stream or world.execute(await world.action())
    if not stream.name:
        await stream.next()
    worker = await world.worker(name)
    lease = await worker.lease()
    worker.running(lease)
    await stream.until(EXECUTING)
    return Run(world, stream, worker, lease)


async def test_names_are_told_while_the_action_runs(world: World) -> None:
    stream = world.execute(await world.action())
    assert metadata_of(await stream.next()).stdout_stream_name == ""
    run = await running(world, stream=stream)
    metadata = metadata_of(await world.get(stream.name))
    operation_id = stream.name.removeprefix("main/operations/")
    assert metadata.stdout_stream_name == f"main/logstreams/{operation_id}.stdout" == run.stdout
    assert metadata.stderr_stream_name == f"main/logstreams/{operation_id}.stderr"


async def test_bytes_are_read_while_the_action_runs_and_the_rest_from_its_result(world: World) -> None:
    run = await running(world)
    reader, first = run.reader()
    asked = await run.asked()
    assert (asked.lease_id, asked.epoch) == (run.lease.lease_id, run.lease.epoch)
    assert (asked.stream, asked.offset, asked.until) == (worker_pb2.STDOUT, 0, WINDOW_BYTES)
    run.prints(asked, b"one\n")
    assert await first == b"one\n"
    await run.worker.finish(run.lease, stdout=b"one\ntwo\nthree\n")
    assert await reader.rest() == b"two\nthree\n"


async def test_stderr_is_another_log(world: World) -> None:
    run = await running(world)
    reader = Reader(world, log_name(run.stream.name, Output.STDERR))
    first = asyncio.create_task(reader.next())
    asked = await run.asked()
    assert asked.stream == worker_pb2.STDERR
    run.prints(asked, b"oops")
    assert await first == b"oops"
    await run.worker.finish(run.lease, stdout=b"not this")
    assert await reader.rest() == b""


async def test_who_reads_before_the_action_runs_waits_for_it(world: World) -> None:
    stream = world.execute(await world.action())
    await stream.next()
    reader = Reader(world, log_name(stream.name, Output.STDOUT))
    first = asyncio.create_task(reader.next())
    run = await running(world, stream=stream)
    run.prints(await run.asked(), b"early bird")
    assert await first == b"early bird"
    await reader.close()


@pytest.mark.parametrize(("offset", "limit", "expected"), [(0, 0, b"0123456789"), (4, 0, b"456789"), (10, 0, b""),
                                                           (2, 3, b"234"), (8, 100, b"89"), (0, 1, b"0")])  # fmt: skip
async def test_a_completed_log_is_read_from_the_store(world: World, offset: int, limit: int, expected: bytes) -> None:
    run = await running(world)
    await run.worker.finish(run.lease, stdout=b"0123456789")
    await run.stream.response()
    assert await Reader(world, run.stdout, offset, limit).rest() == expected


async def test_the_log_of_a_cached_result_can_be_read(world: World) -> None:
    action = await world.action()
    run = await running(world, stream=world.execute(action))
    await run.worker.finish(run.lease, stdout=b"printed once")
    await run.stream.response()
    cached = world.execute(action)
    assert (await cached.response()).cached_result
    assert await Reader(world, log_name(cached.name, Output.STDOUT)).rest() == b"printed once"


async def test_a_live_read_keeps_offset_and_limit(world: World) -> None:
    run = await running(world)
    reader, first = run.reader(offset=4, limit=3)
    asked = await run.asked()
    assert asked.offset == 4
    run.prints(asked, b"45", offset=4)
    assert await first == b"45"
    run.prints(asked, b"6789", offset=6)
    assert await reader.rest() == b"6"


async def test_an_offset_that_the_log_never_reaches_is_out_of_range(world: World) -> None:
    run = await running(world)
    _reader, first = run.reader(offset=1 << 40)
    assert (await run.asked()).until == (1 << 40) + WINDOW_BYTES
    await run.worker.finish(run.lease, stdout=b"short")
    with pytest.raises(OffsetOutOfRange, match="past the end of a log of 5 bytes"):
        await first


@pytest.mark.parametrize(("offset", "limit", "failure"), [(-1, 0, OffsetOutOfRange), (-(1 << 63), 0, OffsetOutOfRange),
                                                          ((1 << 63) - 1, 0, OffsetOutOfRange),
                                                          (0, -1, MalformedRequest)])  # fmt: skip
async def test_hostile_offsets_are_refused_at_once(
    world: World, offset: int, limit: int, failure: type[StatusError]
) -> None:
    run = await running(world)
    with pytest.raises(failure):
        await Reader(world, run.stdout, offset, limit).next()
    assert len(world.broker.logs) == 0


@pytest.mark.parametrize("name", ["main/logstreams/nothing.stdout", "logstreams/nothing.stderr", "main/logstreams/x",
                                  "main/logstreams/.stdout", "main/logstreams/a.stdin", "logstreams/",
                                  "main/logstreams/\0.stdout"])  # fmt: skip
async def test_unknown_logs_are_not_found(world: World, name: str) -> None:
    with pytest.raises(NotFound):
        await Reader(world, name).next()


async def test_a_log_is_not_found_under_another_instance_or_without_rights(world: World) -> None:
    run = await running(world)
    with pytest.raises(NotFound):
        await Reader(world, run.stdout.removeprefix("main/")).next()
    with pytest.raises(MalformedRequest, match="unknown instance name 'other'"):
        await Reader(world, run.stdout.replace("main/", "other/")).next()
    for identity in (Identity("nobody", may_read=False), Identity("else", instance_names=frozenset({""}))):
        with pytest.raises(NotAllowed):
            await Reader(world, run.stdout, identity=identity).next()


async def test_a_log_is_gone_with_its_operation(world: World) -> None:
    run = await running(world)
    await run.worker.finish(run.lease, stdout=b"x")
    await run.stream.response()
    world.clock.advance(world.settings.retain_seconds + 1)
    with pytest.raises(NotFound):
        await Reader(world, run.stdout).next()


async def test_an_action_that_runs_again_starts_its_log_over_visibly(world: World) -> None:
    run = await running(world)
    reader, first = run.reader()
    run.prints(await run.asked(), b"half a li")
    assert await first == b"half a li"
    following = asyncio.create_task(reader.next())
    await run.worker.finish(run.lease, failure=INFRASTRUCTURE, result=False, credit=0)
    again = await running(world, "w2", run.stream)
    assert await following == STARTS_OVER
    following = asyncio.create_task(reader.next())
    left = await run.asked()
    assert left.until == 0
    asked = await again.asked()
    assert (asked.epoch, asked.offset) == (2, 0)
    again.prints(asked, b"half a line\n")
    assert await following == b"half a line\n"
    await again.worker.finish(again.lease, stdout=b"half a line\nand another\n")
    assert await reader.rest() == b"and another\n"


async def test_who_has_seen_nothing_is_not_told_of_a_retry(world: World) -> None:
    run = await running(world)
    reader, first = run.reader()
    await run.asked()
    await run.worker.finish(run.lease, failure=INFRASTRUCTURE, result=False, credit=0)
    again = await running(world, "w2", run.stream)
    again.prints(await again.asked(), b"line")
    assert await first == b"line"
    await reader.close()


async def test_a_reader_who_slept_through_a_whole_retry_gets_all_of_the_second_run(world: World) -> None:
    run = await running(world)
    reader, first = run.reader()
    run.prints(await run.asked(), b"first run")
    assert await first == b"first run"
    await run.worker.finish(run.lease, failure=INFRASTRUCTURE, result=False, credit=0)
    again = await running(world, "w2", run.stream)
    await again.worker.finish(again.lease, stdout=b"second run")
    await run.stream.response()
    assert await reader.rest() == STARTS_OVER + b"second run"


async def hedged(world: World) -> tuple[Run, Run]:
    """An action that its first worker is slow with, and its second run on another one."""
    stream = world.execute(await world.action())
    await stream.next()
    (task,) = world.broker._queue.tasks.values()
    for _ in range(MIN_SAMPLES):
        world.broker._queue.state.statistics.learn(task.candidate, Usage(1.0))
    run = await running(world, "w1", stream)
    spare = await world.worker("spare")
    await run.worker.heard()
    await spare.heard()
    world.clock.advance(world.settings.heartbeat_timeout_seconds / 2)
    lease = await spare.lease()
    assert lease.epoch == 2
    return run, Run(world, stream, spare, lease)


async def test_the_log_of_an_action_that_runs_twice_is_that_of_the_first_run_if_that_wins(world: World) -> None:
    run, second = await hedged(world)
    reader, first = run.reader()
    run.prints(await run.asked(), b"first ")
    assert await first == b"first "
    await run.worker.finish(run.lease, stdout=b"first run")
    assert (await second.worker.hear("revoke")).revoke.lease_id == second.lease.lease_id
    assert await reader.rest() == b"run"


async def test_the_log_of_an_action_whose_second_run_wins_starts_over(world: World) -> None:
    run, second = await hedged(world)
    reader, first = run.reader()
    run.prints(await run.asked(), b"first ")
    assert await first == b"first "
    await second.worker.finish(second.lease, stdout=b"second run")
    assert await reader.rest() == STARTS_OVER + b"second run"


async def test_the_log_goes_on_with_the_second_run_when_the_first_one_fails(world: World) -> None:
    run, second = await hedged(world)
    reader, first = run.reader()
    run.prints(await run.asked(), b"first ")
    assert await first == b"first "
    following = asyncio.create_task(reader.next())
    await run.worker.finish(run.lease, failure=INFRASTRUCTURE, result=False, credit=0)
    assert await following == STARTS_OVER
    following = asyncio.create_task(reader.next())
    second.prints(await second.asked(), b"second")
    assert await following == b"second"
    await second.worker.finish(second.lease, stdout=b"second run")
    assert await reader.rest() == b" run"


async def test_cancelling_an_action_that_runs_twice_ends_its_log_once(world: World) -> None:
    run, _second = await hedged(world)
    reader, first = run.reader()
    run.prints(await run.asked(), b"begun")
    assert await first == b"begun"
    await world.cancel(run.stream.name)
    assert await reader.rest() == b""


async def test_a_cancelled_action_ends_its_log(world: World) -> None:
    run = await running(world)
    reader, first = run.reader()
    run.prints(await run.asked(), b"begun")
    assert await first == b"begun"
    await world.cancel(run.stream.name)
    assert await reader.rest() == b""
    assert await Reader(world, run.stdout, offset=5).rest() == b""


async def test_cancelling_one_of_two_operations_ends_only_its_log(world: World) -> None:
    action = await world.action()
    run = await running(world, stream=world.execute(action))
    other = world.execute(action)
    await other.next()
    reader, first = run.reader()
    asked = await run.asked()
    theirs = Reader(world, log_name(other.name, Output.STDOUT))
    waiting = asyncio.create_task(theirs.next())
    await run.asked()
    await world.cancel(other.name)
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert (await run.asked()).until == 0
    run.prints(asked, b"still here")
    assert await first == b"still here"
    await reader.close()


async def test_a_reader_that_vanishes_is_taken_off_the_worker(world: World) -> None:
    run = await running(world)
    reader, first = run.reader()
    asked = await run.asked()
    run.prints(asked, b"x")
    await first
    await reader.close()
    left = await run.asked()
    assert (left.reader, left.until) == (asked.reader, 0)
    assert len(world.broker.logs) == 0
    run.prints(asked, b"too late", offset=1)  # on its way when the reader left: no fault of the worker's
    await run.worker.finish(run.lease)
    assert (await run.stream.response()).result.exit_code == 0


async def test_a_slow_reader_gets_no_more_than_his_window(world: World) -> None:
    run = await running(world)
    reader, first = run.reader()
    asked = await run.asked()
    piece = b"x" * MAX_PIECE_BYTES
    for offset in range(0, WINDOW_BYTES, MAX_PIECE_BYTES):
        run.prints(asked, piece, offset)
    assert await first == piece
    assert await reader.next() == piece
    # Half of the window is consumed: there is room for as much again.
    assert (await run.asked()).until == WINDOW_BYTES + 2 * MAX_PIECE_BYTES
    assert await reader.next() == piece
    assert await reader.next() == piece
    assert (await run.asked()).until == 2 * WINDOW_BYTES
    await reader.close()


async def test_reading_a_log_is_not_waiting_for_the_action() -> None:
    async with World(SchedulerSettings(abandon_seconds=5)) as world:
        run = await running(world)
        reader, first = run.reader()
        run.prints(await run.asked(), b"x")
        await first
        await run.stream.close()
        world.clock.advance(5)
        assert await reader.rest() == b""
        await run.worker.hear("revoke")
        assert (await run.asked()).until == 0


@pytest.mark.parametrize("runs", [False, True])
async def test_a_reader_hears_something_even_if_nothing_is_printed(runs: bool) -> None:
    async with World(SchedulerSettings(keepalive_seconds=7)) as world:
        stream = world.execute(await world.action())
        await stream.next()
        if runs:
            await running(world, stream=stream)
        reader = Reader(world, log_name(stream.name, Output.STDOUT))
        for _ in range(2):
            piece = asyncio.create_task(reader.next())
            await world.clock.timer_set()
            world.clock.advance(7)
            assert await piece == b""
        await reader.close()


async def test_a_worker_that_comes_back_is_asked_again_from_where_the_reader_is(world: World) -> None:
    run = await running(world)
    reader, first = run.reader()
    asked = await run.asked()
    run.prints(asked, b"one")
    assert await first == b"one"
    following = asyncio.create_task(reader.next())
    await run.worker.vanish()
    run.worker = await world.worker(held=[run.lease], credit=0)
    again = await run.asked()
    assert (again.reader, again.offset, again.until) == (asked.reader, 3, WINDOW_BYTES)
    run.prints(again, b"two", offset=3)
    assert await following == b"two"
    await reader.close()


async def test_output_that_the_worker_does_not_keep_is_told_once(world: World) -> None:
    run = await running(world)
    reader, first = run.reader()
    asked = await run.asked()
    run.prints(asked, b"x" * 10)
    run.prints(asked, b"", offset=5000)
    run.prints(asked, b"", offset=6000)
    assert await first == b"x" * 10 + b"\nrexec: what comes after the first 10 bytes is not kept\n"
    await run.worker.finish(run.lease, stdout=b"x" * 10)
    assert await reader.rest() == b""


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 1},
        {"offset": -1},
        {"offset": (1 << 63) - 1},
        {"data": b"x" * (MAX_PIECE_BYTES + 1)},
        {"lease_id": "another"},
        {"epoch": 9},
        {"stream": worker_pb2.STDERR},
    ],
    ids=str,
)
async def test_a_worker_that_sends_what_nobody_asked_for_is_cut_off(world: World, change: dict[str, object]) -> None:
    run = await running(world)
    reader, first = run.reader()
    asked = await run.asked()
    values: dict[str, object] = {
        "lease_id": asked.lease_id,
        "epoch": asked.epoch,
        "stream": asked.stream,
        "reader": asked.reader,
        "data": b"x",
    }
    run.worker.say(log=worker_pb2.LogPiece(**{**values, **change}))  # type: ignore[arg-type]
    with pytest.raises(MalformedRequest):
        await run.worker.hear("lease")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await reader.close()


async def test_more_than_the_window_is_refused(world: World) -> None:
    run = await running(world)
    reader, first = run.reader()
    asked = await run.asked()
    for offset in range(0, WINDOW_BYTES + MAX_PIECE_BYTES, MAX_PIECE_BYTES):
        run.prints(asked, b"x" * MAX_PIECE_BYTES, offset)
    await first
    with pytest.raises(MalformedRequest, match="bytes of a log at"):
        await run.worker.hear("lease")
    await reader.close()


async def test_a_worker_cannot_write_into_the_log_of_another(world: World) -> None:
    run = await running(world)
    reader, first = run.reader()
    asked = await run.asked()
    liar = Run(world, run.stream, await world.worker("w2"), run.lease)
    liar.prints(asked, b"lies")
    with pytest.raises(MalformedRequest):
        await liar.worker.hear("lease")
    run.prints(asked, b"truth")
    assert await first == b"truth"
    await reader.close()


async def test_readers_are_counted() -> None:
    async with World(SchedulerSettings(max_log_readers=1)) as world:
        run = await running(world)
        reader, first = run.reader()
        run.prints(await run.asked(), b"x")
        await first
        with pytest.raises(ResourceExhausted, match="1 logs are read already"):
            await Reader(world, run.stdout).next()
        await reader.close()


async def test_readers_are_told_that_the_server_stops(world: World) -> None:
    run = await running(world)
    _reader, first = run.reader()
    await run.asked()
    await world.stop()
    with pytest.raises(Unavailable):
        await first


@pytest.mark.parametrize(("name", "expected"), [
    ("logstreams/1.stdout", True),
    ("a/b/logstreams/1.stderr", True),
    ("main/logstreams/1/secret", True),
    ("logstreams/blobs/" + "0" * 64 + "/5", False),
    ("logstreams/compressed-blobs/zstd/" + "0" * 64 + "/5", False),
    ("blobs/" + "0" * 64 + "/5", False),
    ("logstreams", False),
    ("", False),
    ("logstreams/" * 100_000, False),
])  # fmt: skip
def test_logs_are_told_from_blobs(name: str, expected: bool) -> None:
    assert is_log_name(name) is expected


def test_the_name_that_a_log_is_written_by_cannot_be_read() -> None:
    with pytest.raises(MalformedRequest, match="is for writing"):
        parse_log_name("main/logstreams/1.stdout/secret")


@pytest.mark.parametrize("operation", ["operations/1", "main/operations/1", "a/b/operations/1-2.3"])
@pytest.mark.parametrize("output", Output)
def test_names_go_there_and_back(operation: str, output: Output) -> None:
    name = log_name(operation, output)
    assert is_log_name(name)
    parsed = parse_log_name(name)
    assert (parsed.operation_name, parsed.output) == (operation, output)
    assert parsed.instance_name == operation.rpartition("operations/")[0].removesuffix("/")


@given(
    st.lists(
        st.text(max_size=8) | st.sampled_from(["logstreams", "operations", "blobs", "x.stdout", ".", ""]), max_size=6
    )
)
@example(["logstreams", "operations/x.stdout"])
def test_every_name_is_a_log_or_refused(segments: list[str]) -> None:
    name = "/".join(segments)
    is_log = is_log_name(name)
    try:
        parsed = parse_log_name(name)
    except (MalformedRequest, NotFound):
        return
    assert is_log
    # Without an instance the slash may be there or not, as in the names of blobs.
    assert log_name(parsed.operation_name, parsed.output) == (
        name[1:] if not segments[0] and len(segments) == 3 else name
    )
