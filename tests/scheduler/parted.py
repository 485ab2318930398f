"""A scheduler whose services are in another process, as far as they can tell: a RemoteScheduler, a real connection on the
loopback, the Frontends service and a Broker in a World. The connection can be cut and the scheduler replaced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Self

from google.protobuf.message import Message

from cas.connection_settings import ConnectionSettings
from protos.methods import Method
from protos.rexec.scheduler.v1 import frontends_pb2
from rexec.rpc import RpcServer
from rexec.scheduler.clock import SystemClock
from rexec.scheduler.frontends import FrontendsService
from rexec.scheduler.remote import RemoteScheduler
from rexec.scheduler.scheduler_link import Dial, Headers, LinkBroken, SchedulerLink
from rexec.scheduler_channel import dial_over
from tests.scheduler.world import GUARD_SECONDS, World

Look = Callable[[Message], None]


class Served:
    """The scheduler's side: a world, and a port that its Frontends service answers on."""

    def __init__(self, world: World, generation: int = 0) -> None:
        self.world = world
        self._generation = generation
        self._stack = AsyncExitStack()
        self.address = ""

    async def __aenter__(self) -> Self:
        self.frontends = FrontendsService(
            self.world.instances, self.world.broker, self.world.workers, SystemClock(), generation=self._generation
        )
        server = RpcServer()
        server.add(frontends_pb2, "Frontends", self.frontends)
        self.address = f"grpc://127.0.0.1:{server.listen('127.0.0.1:0')}"
        self._stack.push_async_callback(server.stop, 0)
        await self._stack.enter_async_context(self.frontends)
        await server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


class Wire:
    """Connections to whichever scheduler is there, which a test cuts: at once, or when a message passes by."""

    def __init__(self) -> None:
        self.server: Served | None = None
        """None: nobody answers."""
        self.on_send: Look | None = None
        """Is shown every message to the scheduler before it is sent; may raise LinkBroken."""
        self.on_receive: Look | None = None
        """Is shown every message from the scheduler before it is taken; may raise LinkBroken."""
        self._links: list[_CutLink] = []
        self.connections = 0

    def cut(self) -> None:
        """Break the connection that there is."""
        for link in self._links:
            link.broken.set()

    @asynccontextmanager
    async def dial(self) -> AsyncIterator[SchedulerLink]:
        """See Dial."""
        if self.server is None:
            raise LinkBroken("nobody is there")
        async with dial_over(self.server.address, ConnectionSettings())() as inner:
            link = _CutLink(inner, self)
            self._links.append(link)
            self.connections += 1
            try:
                yield link
            finally:
                self._links.remove(link)


class _CutLink:
    def __init__(self, inner: SchedulerLink, wire: Wire) -> None:
        self._inner = inner
        self._wire = wire
        self.broken = asyncio.Event()

    async def send(self, message: frontends_pb2.FromFrontend) -> None:
        if self._wire.on_send is not None:
            self._wire.on_send(message)
        await self._inner.send(message)

    async def receive(self) -> frontends_pb2.ToFrontend:
        reading = asyncio.ensure_future(self._inner.receive())
        cutting = asyncio.ensure_future(self.broken.wait())
        try:
            await asyncio.wait((reading, cutting), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise LinkBroken("cut")
            message = reading.result()
        finally:
            reading.cancel()
            cutting.cancel()
        if self._wire.on_receive is not None:
            self._wire.on_receive(message)
        return message

    async def unary(
        self, method: Method, request: Message, deadline_seconds: float | None = None, headers: Headers = ()
    ) -> Message:
        return await self._inner.unary(method, request, deadline_seconds, headers)

    def stream(self, method: Method, requests: Message | AsyncIterator[Message]) -> AsyncGenerator[Message, None]:
        return self._inner.stream(method, requests)


def remote_over(*dials: Dial, wait_seconds: float = GUARD_SECONDS) -> RemoteScheduler:
    """A RemoteScheduler that makes names in order."""
    serial = count(1)
    return RemoteScheduler(
        dials, name="frontend", wait_seconds=wait_seconds, new_id=lambda: f"00000000-0000-0000-0000-{next(serial):012}"
    )


@asynccontextmanager
async def parted(world: World) -> AsyncIterator[tuple[RemoteScheduler, Wire]]:
    """A RemoteScheduler for the world's broker, and the wire between them."""
    wire = Wire()
    async with Served(world) as wire.server, remote_over(wire.dial) as scheduler:
        yield scheduler, wire


async def eventually(what: Callable[[], bool]) -> None:
    """Until `what` is true; others run meanwhile. Fails when it never is."""
    async with asyncio.timeout(GUARD_SECONDS):
        while not what():  # noqa: ASYNC110  # what is looked at belongs to others, and tells nobody
            await asyncio.sleep(0)
