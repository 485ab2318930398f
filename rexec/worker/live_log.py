"""What a running command prints, sent to those who read along (worker.proto, ReadLog and LogPiece).

The streams keep the output anyway, so there is nothing to copy and nothing to lose: a reader is a position in it, and may
start late or read slowly. The action is never held up, because nobody waits for a reader. What keeps a log that is read
from taking the link away from leases and results: a reader gets no more than the scheduler has made room for
(ReadLog.until), and after each turn the log rests for a moment, in which a command that prints line by line fills one piece
instead of many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.streams import CapturedStream

PIECE_BYTES: Final = 64 << 10
"""The most in one message (worker.proto, LogPiece.data)."""

TURN_BYTES: Final = 4 * PIECE_BYTES
"""The most that a reader gets in one turn, on the event loop: 2.5 MB/s with the rests between. What a faster command prints
is read from the stored output once it has ended."""

REST_SECONDS: Final = 0.1
"""Between two turns. Short for a person who watches."""


@dataclass(slots=True)
class _Reader:
    stream: worker_pb2.LogStream
    position: int
    until: int = 0
    knows_of_cut: bool = False


class LeaseLog:
    """The output of one lease and its readers, who may come before the command has started."""

    def __init__(self, send: Callable[[worker_pb2.LogPiece], None], lease_id: str = "", epoch: int = 0) -> None:
        self._send = send
        self._lease_id = lease_id
        self._epoch = epoch
        self._readers: dict[int, _Reader] = {}
        self._streams: dict[worker_pb2.LogStream, CapturedStream] = {}
        self._rest: asyncio.TimerHandle | None = None
        self._is_over = False

    def ask(self, request: worker_pb2.ReadLog) -> None:
        """Somebody reads, or reads on, or has stopped reading."""
        if request.until <= 0:
            self._readers.pop(request.reader, None)
            return
        reader = self._readers.get(request.reader)
        if reader is None:
            if self._is_over:
                return
            reader = self._readers[request.reader] = _Reader(request.stream, max(0, request.offset))
        reader.until = max(reader.until, request.until)
        self._look()

    def began(self, stdout: CapturedStream, stderr: CapturedStream) -> None:
        """The command is about to start, and prints into these."""
        self._streams = {worker_pb2.STDOUT: stdout, worker_pb2.STDERR: stderr}
        for stream in self._streams.values():
            stream.on_growth = self._look

    def ended(self) -> None:
        """The output is about to be deleted: send what there is room for. Again does nothing."""
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        self._give()
        for stream in self._streams.values():
            stream.on_growth = None
        self._streams.clear()
        self._readers.clear()
        self._is_over = True

    def forget_readers(self) -> None:
        """The stream that they came on has broken."""
        self._readers.clear()

    def _look(self) -> None:
        """Send what is new, unless something was sent a moment ago."""
        if self._readers and self._rest is None and self._give():
            self._rest = asyncio.get_running_loop().call_later(REST_SECONDS, self._rested)

    def _rested(self) -> None:
        self._rest = None
        self._look()

    def _give(self) -> bool:
        """One turn for each reader; whether anything was sent."""
        sent = False
        for number, reader in self._readers.items():
            stream = self._streams.get(reader.stream)
            if stream is None:
                continue
            end = min(reader.until, reader.position + TURN_BYTES)
            while reader.position < end:
                data = stream.read_at(reader.position, min(PIECE_BYTES, end - reader.position))
                if not data:
                    break
                self._piece(number, reader, reader.position, data)
                reader.position += len(data)
                sent = True
            if stream.dropped_bytes and reader.position == stream.size_bytes and not reader.knows_of_cut:
                reader.knows_of_cut = True
                self._piece(number, reader, stream.size_bytes + stream.dropped_bytes, b"")
        return sent

    def _piece(self, number: int, reader: _Reader, offset: int, data: bytes) -> None:
        self._send(
            worker_pb2.LogPiece(
                lease_id=self._lease_id,
                epoch=self._epoch,
                stream=reader.stream,
                reader=number,
                offset=offset,
                data=data,
            )
        )
