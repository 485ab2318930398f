"""The scheduler as an autoscaler sees it (rexec/autoscale/work_source.py): the one in this process, or one over gRPC."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
import structlog
from grpc import aio

from cas.connection_settings import ConnectionSettings
from cas.errors import StatusError
from protos.methods import methods_of
from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.connection import CannotConnect, headers, open_channel
from rexec.scheduler.autoscaling import Follower
from rexec.scheduler.broker import Broker
from rexec.scheduler_channel import OPTIONS

if TYPE_CHECKING:  # types-grpcio makes these generic, the library does not
    FollowCall = aio.StreamStreamCall[autoscaling_pb2.FromAutoscaler, autoscaling_pb2.ToAutoscaler]

log = structlog.get_logger()

FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 5.0
"""Between attempts to reach a scheduler; a random part of it is left out."""


class _Ended(Exception):
    """The scheduler has ended the stream; the text says with what."""


_FOLLOW = methods_of(autoscaling_pb2, "Autoscaling")["Follow"]


class BrokerSource:
    """A WorkSource: the broker of this process."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._follower: Follower | None = None
        self._pools: autoscaling_pb2.FromAutoscaler | None = None

    async def snapshots(self) -> AsyncGenerator[autoscaling_pb2.ToAutoscaler, None]:
        """See WorkSource."""
        while True:
            try:
                self._follower = self._broker.autoscaling.follow()
                async with aclosing(self._follower.snapshots()) as snapshots:
                    if self._pools is not None:
                        await self._follower.tell(self._pools)
                    async for snapshot in snapshots:
                        yield snapshot
            except StatusError as error:
                log.debug("the scheduler is not to be followed", why=str(error))
            finally:
                if self._follower is not None:
                    self._follower.close()
                self._follower = None
            await asyncio.sleep(LONGEST_PAUSE_SECONDS)

    async def tell(self, message: autoscaling_pb2.FromAutoscaler) -> None:
        """See WorkSource."""
        if message.HasField("pools"):
            self._pools = message
        if self._follower is None:
            return
        try:
            await self._follower.tell(message)
        except StatusError as error:
            log.error("the scheduler does not take what it is told of the pools", why=str(error))


class RemoteSource:
    """A WorkSource: the first of several schedulers that answers."""

    def __init__(self, servers: Sequence[str], settings: ConnectionSettings) -> None:
        """Addresses are grpc://, grpcs:// or unix:. Raises CannotConnect and ValueError."""
        self._servers = [(server, headers(server, settings)) for server in servers]
        self._settings = settings
        for server in servers:
            open_channel(
                server, settings, OPTIONS
            )  # fails now if it ever does; one that is not used connects to nothing
        self._call: FollowCall | None = None
        self._writing = asyncio.Lock()
        self._pools: autoscaling_pb2.FromAutoscaler | None = None
        self._has_pools = asyncio.Event()
        self.trouble = "the scheduler is not reached yet"
        """Why nothing is heard; "" while something is."""

    async def snapshots(self) -> AsyncGenerator[autoscaling_pb2.ToAutoscaler, None]:
        """See WorkSource."""
        await self._has_pools.wait()  # they are the first message
        attempts, pause, said = 0, FIRST_PAUSE_SECONDS, ""
        while True:
            server, shown = self._servers[attempts % len(self._servers)]
            try:
                async with aclosing(self._follow(server, shown)) as snapshots:
                    async for snapshot in snapshots:
                        if self.trouble:
                            log.info("follows the scheduler", server=server)
                            self.trouble, said, pause = "", "", FIRST_PAUSE_SECONDS
                        yield snapshot
                raise AssertionError("a stream ends with an exception")
            except _Ended as error:
                ending = str(error)
            except aio.AioRpcError as error:
                ending = f"{error.code().name}: {error.details()}"
            except (grpc.RpcError, aio.UsageError, CannotConnect, OSError) as error:
                ending = str(error)
            self.trouble = f"the scheduler at {server} is not reached: {ending}"
            if self.trouble != said:
                said = self.trouble
                log.warning("the scheduler is not reached, and tried again", server=server, why=ending)
            attempts += 1
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(LONGEST_PAUSE_SECONDS, pause * 2)

    async def tell(self, message: autoscaling_pb2.FromAutoscaler) -> None:
        """See WorkSource."""
        if message.HasField("pools"):
            self._pools = message
            self._has_pools.set()
        if self._call is not None:
            await self._write(self._call, message)

    async def _follow(
        self, server: str, shown: Iterable[tuple[str, str]]
    ) -> AsyncGenerator[autoscaling_pb2.ToAutoscaler, None]:
        """One stream, until it ends. Raises _Ended and what gRPC raises."""
        async with open_channel(server, self._settings, OPTIONS) as channel:
            follow: Any = channel.stream_stream(
                _FOLLOW.path,
                request_serializer=autoscaling_pb2.FromAutoscaler.SerializeToString,
                response_deserializer=autoscaling_pb2.ToAutoscaler.FromString,
            )
            call: FollowCall = follow(metadata=tuple(shown))
            try:
                assert self._pools is not None
                # Before they are written, which may take as long as connecting: what is told meanwhile comes after them.
                self._call = call
                await self._write(call, self._pools)
                while True:
                    message = await call.read()
                    if message is aio.EOF:
                        raise _Ended(f"{(await call.code()).name}: {await call.details() or 'the stream was ended'}")
                    yield cast(autoscaling_pb2.ToAutoscaler, message)
            finally:
                self._call = None
                call.cancel()

    async def _write(self, call: FollowCall, message: autoscaling_pb2.FromAutoscaler) -> None:
        async with self._writing:
            # Whoever reads is told how it ended, and says it again to the next one.
            with suppress(grpc.RpcError, aio.UsageError, asyncio.InvalidStateError):
                await call.write(message)
