"""The stream to the scheduler that there is at the moment: what waits to be sent, and how many leases may still come down it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.link import Link, LinkBroken, send_all

FAREWELL_SECONDS = 1.0
"""How long a leaving agent waits for the scheduler to end the stream: a stream that is cut may lose what was said last."""


class PresentStream:
    """One after the other; between two of them nothing is sent."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._outbox: asyncio.Queue[worker_pb2.FromWorker] | None = None
        self._granted = 0
        """Leases that the scheduler may still send, as far as it knows."""
        self._received = 0
        """Leases received on this stream."""

    @property
    def is_attached(self) -> bool:
        """Whether the scheduler has welcomed it."""
        return self._outbox is not None

    def opened(self, link: Link) -> None:
        """There is one, and the scheduler has said nothing yet."""
        self._link = link

    def welcomed(self) -> None:
        """From now on messages are taken."""
        self._outbox = asyncio.Queue()
        self._granted = self._received = 0

    def closed(self) -> None:
        """There is none."""
        self._outbox = self._link = None

    def send(self, message: worker_pb2.FromWorker) -> None:
        """Have it sent. Between streams nothing is lost: what matters is told again after the next Hello."""
        if self._outbox is not None:
            self._outbox.put_nowait(message)

    async def send_all(self) -> None:
        """Send what there is, until the stream breaks. Raises LinkBroken."""
        assert self._link is not None
        assert self._outbox is not None, "the scheduler has not welcomed it"
        await send_all(self._link, self._outbox)

    def lease_came(self) -> None:
        """One of those that were granted."""
        self._received += 1
        self._granted -= 1

    def grant(self, room: int) -> None:
        """Tell the scheduler how many leases there is room for, if it thinks otherwise."""
        if self._outbox is not None and room != self._granted:
            self._granted = room
            self.send(worker_pb2.FromWorker(credit=worker_pb2.Credit(leases=room, leases_received=self._received)))

    async def take_leave(self, connection: asyncio.Task[None]) -> None:
        """Have the scheduler hear all that was said. `connection` reads until the stream has ended."""
        link, outbox = self._link, self._outbox
        if link is None or outbox is None:
            return
        with suppress(TimeoutError, LinkBroken):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await outbox.join()
                await link.finish()
                await asyncio.wait([connection])
