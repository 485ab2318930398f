"""The scheduler's end of a link, played by a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.link import Link, LinkBroken

SECONDS = 30
"""A guard: nothing here takes that long."""


@dataclass
class Stream:
    """One stream, seen from the scheduler."""

    up: asyncio.Queue[worker_pb2.FromWorker] = field(default_factory=asyncio.Queue)
    down: asyncio.Queue[worker_pb2.ToWorker | None] = field(default_factory=asyncio.Queue)
    seen: list[worker_pb2.FromWorker] = field(default_factory=list)

    async def send(self, message: worker_pb2.FromWorker) -> None:
        copied = worker_pb2.FromWorker()
        copied.CopyFrom(message)  # as a wire would: what the worker changes later is not seen
        together = list(copied.also)
        copied.ClearField("also")
        for part in (copied, *together):
            self.up.put_nowait(part)

    async def receive(self) -> worker_pb2.ToWorker:
        message = await self.down.get()
        if message is None:
            raise LinkBroken("cut by the test")
        return message

    async def finish(self) -> None:
        self.cut()

    def cut(self) -> None:
        self.down.put_nowait(None)

    async def until(self, wanted: Callable[[worker_pb2.FromWorker], bool]) -> worker_pb2.FromWorker:
        """The next message that is wanted; those before it are kept in `seen`."""
        async with asyncio.timeout(SECONDS):
            while True:
                message = await self.up.get()
                self.seen.append(message)
                if wanted(message):
                    return message

    async def hello(self, **welcome: object) -> worker_pb2.Hello:
        message = await self.until(lambda m: m.HasField("hello"))
        answer = worker_pb2.Welcome(worker_id="w1", **welcome)  # type: ignore[arg-type]
        answer.heartbeat_interval.FromMilliseconds(20)
        self.down.put_nowait(worker_pb2.ToWorker(welcome=answer))
        return message.hello

    async def credit(self, leases: int) -> worker_pb2.Credit:
        return (await self.until(lambda m: m.HasField("credit") and m.credit.leases == leases)).credit

    async def finished(self, lease_id: str = "") -> worker_pb2.Finished:
        return (await self.until(lambda m: m.HasField("finished") and lease_id in ("", m.finished.lease_id))).finished

    async def running(self, lease_id: str) -> None:
        await self.until(lambda m: m.progress.lease_id == lease_id and m.progress.phase == worker_pb2.Progress.RUNNING)

    def lease(self, lease: worker_pb2.Lease) -> None:
        self.down.put_nowait(worker_pb2.ToWorker(lease=lease))

    def acknowledge(self, finished: worker_pb2.Finished) -> None:
        done = worker_pb2.Acknowledged(lease_id=finished.lease_id, epoch=finished.epoch)
        self.down.put_nowait(worker_pb2.ToWorker(acknowledged=done))

    def revoke(self, lease: worker_pb2.Lease) -> None:
        revoke = worker_pb2.Revoke(lease_id=lease.lease_id, epoch=lease.epoch, reason="cancelled")
        self.down.put_nowait(worker_pb2.ToWorker(revoke=revoke))


class Scheduler:
    """Where an agent dials to."""

    def __init__(self) -> None:
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()

    @asynccontextmanager
    async def dial(self) -> AsyncIterator[Link]:
        stream = Stream()
        self.streams.put_nowait(stream)
        yield stream

    async def stream(self) -> Stream:
        async with asyncio.timeout(SECONDS):
            return await self.streams.get()
