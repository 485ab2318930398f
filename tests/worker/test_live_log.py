"""Reading what a command prints while it runs, at the worker: late, slow, vanishing and absent readers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cas.digest import Digest
from cas.memory import MemoryStore
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.agent import Agent
from rexec.worker.live_log import PIECE_BYTES, TURN_BYTES, LeaseLog
from rexec.worker.streams import CapturedStream
from tests.gate import Gate
from tests.worker.actions import Inputs, Worker, make_context
from tests.worker.scheduler import SECONDS, Scheduler, Stream

NO_END = 1 << 62


class Printing:
    """A lease whose command is this test: it prints by `prints`, and what readers get is in `sent`."""

    def __init__(self, folder: Path, max_bytes: int = 64 << 20) -> None:
        self.sent: asyncio.Queue[worker_pb2.LogPiece] = asyncio.Queue()
        self.log = LeaseLog(self.sent.put_nowait, "lease", 7)
        self.stdout = CapturedStream(str(folder / "stdout"), max_bytes)
        self.stderr = CapturedStream(str(folder / "stderr"), max_bytes)
        self._out, self._err = os.dup(self.stdout.write_fd), os.dup(self.stderr.write_fd)

    def start(self) -> None:
        self.log.began(self.stdout, self.stderr)
        for stream in (self.stdout, self.stderr):
            stream.started(asyncio.get_running_loop())

    async def prints(self, data: bytes, *, to_stderr: bool = False) -> None:
        """Returns when the worker has taken all of it."""
        stream, end = (self.stderr, self._err) if to_stderr else (self.stdout, self._out)
        expected = stream.size_bytes + stream.dropped_bytes + len(data)
        await asyncio.to_thread(_write_all, end, data)
        async with asyncio.timeout(SECONDS):
            while stream.size_bytes + stream.dropped_bytes < expected:
                await asyncio.to_thread(os.stat, "/")  # a turn of the loop in which the pipe is read

    def ask(self, number: int = 1, offset: int = 0, until: int = NO_END, stream: int = worker_pb2.STDOUT) -> None:
        asked = worker_pb2.LogStream.Name(worker_pb2.STDERR if stream == worker_pb2.STDERR else worker_pb2.STDOUT)
        self.log.ask(
            worker_pb2.ReadLog(lease_id="lease", epoch=7, stream=asked, reader=number, offset=offset, until=until)
        )

    async def piece(self) -> worker_pb2.LogPiece:
        async with asyncio.timeout(SECONDS):
            return await self.sent.get()

    async def read(self, size_bytes: int) -> bytes:
        """The next so many bytes; they come in order and without a gap."""
        data = b""
        position = None
        while len(data) < size_bytes:
            piece = await self.piece()
            assert (piece.lease_id, piece.epoch) == ("lease", 7)
            assert position in (None, piece.offset)
            assert 0 < len(piece.data) <= PIECE_BYTES
            position = piece.offset + len(piece.data)
            data += piece.data
        assert len(data) == size_bytes
        return data

    def end(self) -> None:
        for fd in (self._out, self._err):
            os.close(fd)
        self.stdout.finish()
        self.stderr.finish()
        self.log.ended()


def _write_all(end: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(end, view) :]


@pytest.fixture
async def printing(tmp_path: Path) -> AsyncIterator[Printing]:
    printing = Printing(tmp_path)
    printing.start()
    yield printing
    printing.log.ended()
    printing.stdout.close()
    printing.stderr.close()


async def test_of_a_log_that_nobody_asked_for_nothing_is_sent(printing: Printing) -> None:
    await printing.prints(b"x" * 200_000)
    printing.end()
    assert printing.sent.empty()


async def test_a_line_comes_while_the_command_still_runs(printing: Printing) -> None:
    printing.ask()
    await printing.prints(b"one\n")
    assert await printing.read(4) == b"one\n"
    await printing.prints(b"two\n")
    assert await printing.read(4) == b"two\n"


async def test_the_two_streams_are_told_apart(printing: Printing) -> None:
    printing.ask(1, stream=worker_pb2.STDOUT)
    printing.ask(2, stream=worker_pb2.STDERR)
    await printing.prints(b"to stderr", to_stderr=True)
    piece = await printing.piece()
    assert (piece.stream, piece.reader, piece.data) == (worker_pb2.STDERR, 2, b"to stderr")
    printing.end()
    assert printing.sent.empty()


@pytest.mark.parametrize("size_bytes", [1000, PIECE_BYTES, PIECE_BYTES + 1, 5 * TURN_BYTES // 2])
async def test_a_late_reader_gets_everything_from_the_start(printing: Printing, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    await printing.prints(data)
    printing.ask()
    assert await printing.read(size_bytes) == data


async def test_a_reader_may_start_anywhere(printing: Printing) -> None:
    await printing.prints(b"0123456789" * 10_000)
    printing.ask(offset=99_995)
    assert await printing.read(5) == b"56789"


async def test_no_more_is_sent_than_there_is_room_for(printing: Printing) -> None:
    printing.ask(until=5)
    await printing.prints(b"0123456789")
    assert await printing.read(5) == b"01234"
    assert printing.sent.empty()
    printing.ask(until=8, offset=0)
    assert await printing.read(3) == b"567"
    printing.end()
    assert printing.sent.empty()


async def test_a_reader_that_has_left_costs_nothing_and_others_go_on(printing: Printing) -> None:
    printing.ask(1)
    printing.ask(2)
    await printing.prints(b"a")
    assert {(await printing.piece()).reader, (await printing.piece()).reader} == {1, 2}
    printing.ask(1, until=0)
    await printing.prints(b"b")
    printing.end()
    pieces = [printing.sent.get_nowait() for _ in range(printing.sent.qsize())]
    assert [(piece.reader, piece.data) for piece in pieces] == [(2, b"b")]


async def test_a_reader_may_ask_before_the_command_starts(tmp_path: Path) -> None:
    printing = Printing(tmp_path)
    printing.ask()
    printing.start()
    await printing.prints(b"early")
    assert await printing.read(5) == b"early"
    printing.end()


async def test_the_last_bytes_are_sent_when_the_command_ends_although_the_log_rests(printing: Printing) -> None:
    printing.ask()
    await printing.prints(b"a")
    await printing.prints(b"b" * 10)
    printing.end()
    assert b"".join(printing.sent.get_nowait().data for _ in range(printing.sent.qsize())) == b"a" + b"b" * 10
    printing.ask(2)
    assert printing.sent.empty()


async def test_what_is_not_kept_is_said_once(tmp_path: Path) -> None:
    printing = Printing(tmp_path, max_bytes=100)
    printing.start()
    printing.ask()
    await printing.prints(b"x" * 150)
    await printing.prints(b"x" * 150)
    printing.end()
    pieces = [printing.sent.get_nowait() for _ in range(printing.sent.qsize())]
    assert b"".join(piece.data for piece in pieces) == b"x" * 100
    assert [piece.offset > 100 for piece in pieces if not piece.data] == [True]


@pytest.mark.parametrize("offset", [11, 1 << 40, NO_END])
async def test_an_offset_past_the_end_gives_nothing_yet(printing: Printing, offset: int) -> None:
    await printing.prints(b"0123456789")
    printing.ask(offset=offset)
    printing.end()
    assert printing.sent.empty()


async def test_an_action_that_puts_a_pipe_in_the_place_of_its_output_blocks_nobody(printing: Printing) -> None:
    await printing.prints(b"x" * 200_000)
    os.unlink(printing.stdout.spill_path)
    os.mkfifo(printing.stdout.spill_path)
    printing.ask()
    printing.ask(2, stream=worker_pb2.STDERR)
    await printing.prints(b"other", to_stderr=True)
    assert (await printing.piece()).data == b"other"


@asynccontextmanager
async def attached(tmp_path: Path, store: MemoryStore, **changes: Any) -> AsyncIterator[tuple[Worker, Scheduler]]:
    """An agent with real commands, and the scheduler that it dials."""
    context = await make_context(tmp_path / "work", store, reconnect_min_seconds=0.001, **changes)
    scheduler = Scheduler()
    running = asyncio.create_task(Agent(context, scheduler.dial, "session").run())
    try:
        yield Worker(context, Inputs(store), tmp_path / "work"), scheduler
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        context.workspace.close()


def read_log(stream: Stream, lease: worker_pb2.Lease, *, offset: int = 0, until: int = NO_END, number: int = 1) -> None:
    request = worker_pb2.ReadLog(
        lease_id=lease.lease_id,
        epoch=lease.epoch,
        stream=worker_pb2.STDOUT,
        reader=number,
        offset=offset,
        until=until,
    )
    stream.down.put_nowait(worker_pb2.ToWorker(read_log=request))


async def log_bytes(stream: Stream, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        data += (await stream.until(lambda message: message.HasField("log"))).log.data
    return data


async def test_each_line_of_an_action_is_read_before_it_may_print_the_next(tmp_path: Path, store: MemoryStore) -> None:
    with Gate(tmp_path / "gate") as gate:
        async with attached(tmp_path, store) as (worker, scheduler):
            stream = await scheduler.stream()
            await stream.hello()
            lease = await worker.lease("/bin/sh", "-c", f"for i in 1 2 3; do echo $i; {gate.wait}; done")
            stream.lease(lease)
            read_log(stream, lease)
            for line in (b"1\n", b"2\n", b"3\n"):
                assert await log_bytes(stream, 2) == line
                gate.open()
            assert await worker.stdout(await stream.finished()) == "1\n2\n3\n"


async def test_a_reader_who_takes_nothing_does_not_hold_up_100_megabytes(tmp_path: Path, store: MemoryStore) -> None:
    async with attached(tmp_path, store) as (worker, scheduler):
        stream = await scheduler.stream()
        await stream.hello()
        lease = await worker.lease("/bin/sh", "-c", "head -c 100000000 /dev/zero")
        stream.lease(lease)
        read_log(stream, lease, until=PIECE_BYTES)
        finished = await stream.finished()
        assert finished.action_result.stdout_digest.size_bytes == 100_000_000
        assert sum(len(message.log.data) for message in stream.seen) <= PIECE_BYTES


async def test_after_a_broken_stream_the_log_goes_on_where_it_is_asked_for(tmp_path: Path, store: MemoryStore) -> None:
    with Gate(tmp_path / "gate") as gate:
        async with attached(tmp_path, store) as (worker, scheduler):
            stream = await scheduler.stream()
            await stream.hello()
            lease = await worker.lease("/bin/sh", "-c", f"echo one; {gate.wait}; echo two; {gate.wait}")
            stream.lease(lease)
            read_log(stream, lease)
            assert await log_bytes(stream, 4) == b"one\n"
            stream.cut()
            again = await scheduler.stream()
            await again.hello()
            gate.open()
            read_log(again, lease, offset=4, number=2)
            assert await log_bytes(again, 4) == b"two\n"
            gate.open()
            await again.finished()
            assert {message.log.reader for message in again.seen if message.HasField("log")} == {2}


async def test_a_revoked_action_has_no_log_any_more(tmp_path: Path, store: MemoryStore) -> None:
    async with attached(tmp_path, store) as (worker, scheduler):
        stream = await scheduler.stream()
        await stream.hello()
        lease = await worker.lease("/bin/sh", "-c", "echo started; exec sleep 1000")
        stream.lease(lease)
        read_log(stream, lease)
        assert await log_bytes(stream, 8) == b"started\n"
        stream.revoke(lease)
        assert (await stream.finished()).failure == worker_pb2.Finished.REVOKED
        read_log(stream, lease, number=2)
        other = await worker.lease("/bin/echo", "other")
        stream.lease(other)
        finished = await stream.finished(other.lease_id)
        assert Digest.from_proto(finished.action_result.stdout_digest) == Digest.of(b"other\n")
        assert not any(message.log.reader == 2 for message in stream.seen)


async def test_a_log_of_an_unknown_lease_or_epoch_is_not_there(tmp_path: Path, store: MemoryStore) -> None:
    async with attached(tmp_path, store) as (worker, scheduler):
        stream = await scheduler.stream()
        await stream.hello()
        lease = await worker.lease("/bin/echo", "hello")
        stream.lease(lease)
        for lease_id, epoch in (("unknown", 1), (lease.lease_id, 2), ("", -1)):
            read_log(stream, worker_pb2.Lease(lease_id=lease_id, epoch=epoch), number=5)
        await stream.finished()
        assert not any(message.HasField("log") for message in stream.seen)
