"""Following what a running action prints, from worker to worker until it has ended.

Nothing is asked of a worker until somebody reads, and each reader asks for himself: for bytes from where he is, and for no
more than there is room for here (worker.proto, ReadLog.until). Room is made as bytes are consumed, so a reader that is slow,
or does not read at all, costs `WINDOW_BYTES` and holds up nobody, and one that comes late gets everything from the start.

When a lease comes to nothing and the action runs again its output starts over, and a line says so to those who have seen
some of it. When the action has ended, what the reader has not seen yet is in the result: `LogRest` says from where.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Final

from cas.errors import MalformedRequest, ResourceExhausted
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.clock import Clock
from rexec.scheduler.log_name import Output
from rexec.scheduler.scheduler import LogRest, OperationState
from rexec.scheduler.settings import SchedulerSettings

WINDOW_BYTES: Final = 256 << 10
"""Bytes on their way or waiting for one reader: what a worker sends in one turn, so that it need not wait for an answer."""

MAX_PIECE_BYTES: Final = 64 << 10
"""The most in one message (worker.proto, LogPiece.data), and the most handed on at once."""

STARTS_OVER: Final = b"\nrexec: the action runs again, and its output starts over\n"

_STREAMS: Final = {Output.STDOUT: worker_pb2.STDOUT, Output.STDERR: worker_pb2.STDERR}


@dataclass(frozen=True, slots=True)
class Running:
    """The lease that an action runs under."""

    worker_id: str
    lease_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where the log of an operation is to be found."""

    epoch: int
    """Of the lease whose output it is, 0 if there was none."""
    running: Running | None = None
    """While the command runs, or is about to."""
    ended: OperationState | None = None
    """Once there is a result, or never will be."""


@dataclass(eq=False, slots=True)
class _Reader:
    number: int
    running: Running
    stream: worker_pb2.LogStream
    received: int
    """The offset of the next byte that the worker sends."""
    changed: asyncio.Event
    until: int = 0
    waiting: bytearray = field(default_factory=bytearray)
    """Received and not consumed."""
    is_cut: bool = False


class LiveLogs:
    """All readers of running actions."""

    def __init__(
        self, send: Callable[[str, worker_pb2.ToWorker], None], clock: Clock, settings: SchedulerSettings
    ) -> None:
        """`send` tells a worker, named by its id, and does nothing while that one is away."""
        self._send = send
        self._clock = clock
        self._keepalive_seconds = settings.keepalive_seconds
        self._max_readers = settings.max_log_readers
        self._readers: dict[int, _Reader] = {}
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._readers)

    async def read(
        self, look: Callable[[], Place], changed: asyncio.Event, output: Output, offset: int
    ) -> AsyncGenerator[bytes | LogRest, None]:
        """The output from `offset` as it comes, then a LogRest; empty bytes when nothing has come for a while.

        `look` says where the log is now, and `changed` is set whenever that may be another place. Raises what `look` does,
        and ResourceExhausted.
        """
        followed = 0
        seen = False
        while True:
            changed.clear()
            place = look()
            if place.running is None and place.ended is None:
                if await self._quiet(changed):
                    yield b""
                continue
            if followed not in (0, place.epoch):
                offset = 0
                if seen:
                    seen = False
                    yield STARTS_OVER
                    continue  # that may have taken any time
            followed = place.epoch
            if place.ended is not None:
                yield LogRest(offset, place.ended)
                return
            assert place.running is not None
            reader = self._join(place.running, output, offset, changed)
            try:
                while True:
                    changed.clear()
                    while reader.waiting:
                        data = self._consume(reader)
                        seen = True
                        yield data
                    if look().running != place.running:
                        break
                    if await self._quiet(changed):
                        yield b""
            finally:
                self._leave(reader)
            offset = reader.received

    def take(self, worker_id: str, piece: worker_pb2.LogPiece) -> None:
        """Bytes from a worker. Raises MalformedRequest if nobody asked for these."""
        reader = self._readers.get(piece.reader)
        if reader is None:
            return  # he has left, and the worker does not know it yet
        size_bytes = len(piece.data)
        running = Running(worker_id, piece.lease_id, piece.epoch)
        if reader.running != running or reader.stream != piece.stream or size_bytes > MAX_PIECE_BYTES:
            raise MalformedRequest(
                f"{size_bytes} bytes of the log of lease {piece.lease_id[:100]!r} for reader {piece.reader}, who reads"
                f" {reader.running.lease_id!r} in pieces of at most {MAX_PIECE_BYTES} bytes"
            )
        if size_bytes:
            if piece.offset != reader.received or piece.offset + size_bytes > reader.until:
                raise MalformedRequest(
                    f"{size_bytes} bytes of a log at {piece.offset}, expected from {reader.received} to {reader.until}"
                )
            reader.received += size_bytes
            reader.waiting += piece.data
        elif piece.offset > reader.received and not reader.is_cut:
            reader.is_cut = True
            reader.waiting += b"\nrexec: what comes after the first %d bytes is not kept\n" % reader.received
        reader.changed.set()

    def welcomed(self, worker_id: str) -> None:
        """A worker is back, on another stream: it has forgotten its readers."""
        for reader in self._readers.values():
            if reader.running.worker_id == worker_id:
                self._ask(reader, reader.until)

    async def _quiet(self, changed: asyncio.Event) -> bool:
        """Wait for a change; whether it took so long that the reader must hear something."""
        due = self._clock.monotonic() + self._keepalive_seconds
        timer = self._clock.call_at(due, changed.set)
        try:
            await changed.wait()
        finally:
            timer.cancel()
        return self._clock.monotonic() >= due

    def _join(self, running: Running, output: Output, offset: int, changed: asyncio.Event) -> _Reader:
        if len(self._readers) >= self._max_readers:
            raise ResourceExhausted(f"{self._max_readers} logs are read already, the most allowed")
        self._last_number += 1
        reader = _Reader(self._last_number, running, _STREAMS[output], offset, changed)
        self._readers[reader.number] = reader
        self._make_room(reader)
        return reader

    def _consume(self, reader: _Reader) -> bytes:
        data = bytes(reader.waiting[:MAX_PIECE_BYTES])
        del reader.waiting[:MAX_PIECE_BYTES]
        self._make_room(reader)
        return data

    def _make_room(self, reader: _Reader) -> None:
        until = reader.received + WINDOW_BYTES - len(reader.waiting)
        if until - reader.until >= WINDOW_BYTES // 2:
            reader.until = until
            self._ask(reader, until)

    def _leave(self, reader: _Reader) -> None:
        del self._readers[reader.number]
        self._ask(reader, 0)

    def _ask(self, reader: _Reader, until: int) -> None:
        running = reader.running
        request = worker_pb2.ReadLog(
            lease_id=running.lease_id,
            epoch=running.epoch,
            stream=reader.stream,
            reader=reader.number,
            offset=reader.received,
            until=until,
        )
        self._send(running.worker_id, worker_pb2.ToWorker(read_log=request))
