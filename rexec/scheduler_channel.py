"""Connections of a frontend to the scheduler over gRPC, and what else travels to the same place.

Each connection has a channel of its own, which is made and thrown away with it: gRPC's own pauses between attempts would add
to ours, and a scheduler that is silent must take everything along that still waits for it. Blobs have other channels, so
that large ones hold up no lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc import aio

from cas.connection_settings import ConnectionSettings
from cas.errors import MalformedRequest, StatusError, from_status
from protos.methods import Method, methods_of
from protos.rexec.scheduler.v1 import frontends_pb2
from rexec.connection import CannotConnect, headers, open_channel
from rexec.scheduler.scheduler_link import Dial, Headers, LinkBroken, Refused, SchedulerLink
from rexec.scheduler.wire import read_error

if TYPE_CHECKING:  # types-grpcio makes these generic, the library does not
    ConnectCall = aio.StreamStreamCall[frontends_pb2.FromFrontend, frontends_pb2.ToFrontend]

_CONNECT = methods_of(frontends_pb2, "Frontends")["Connect"]

OPTIONS: tuple[tuple[str, int | str], ...] = (
    # Without it channels to the same address share their connection, and the pauses between attempts.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)
"""Beside those of every channel."""

_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)
"""What Frontends.Connect ends with where a frontend is not let in, and at a server that is no scheduler."""

_RECONNECTS = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 500))
"""Of the channels that blobs travel over: a scheduler that is back is found at once."""


def dial_over(server: str, settings: ConnectionSettings) -> Dial:
    """Connections to the scheduler at grpc://, grpcs:// or unix:. Raises CannotConnect and ValueError."""
    shown = headers(server, settings)
    open_channel(server, settings, OPTIONS)  # fails now if it ever does; a channel that is not used connects to nothing

    @asynccontextmanager
    async def dial() -> AsyncIterator[SchedulerLink]:
        try:
            opened = open_channel(server, settings, OPTIONS)
            async with opened as channel:
                yield _GrpcLink(channel, shown)
        except Refused as refused:
            raise Refused(f"the scheduler {server} refuses this frontend: {refused}") from refused
        except (LinkBroken, CannotConnect) as error:  # CannotConnect: a certificate that is being replaced
            raise LinkBroken(f"the scheduler {server} is not reached: {error}") from error

    return dial


class _GrpcLink:
    """A `SchedulerLink` over a channel of its own."""

    def __init__(self, channel: aio.Channel, shown: Iterable[tuple[str, str]]) -> None:
        self._channel = channel
        self._headers = shown
        connect: Any = channel.stream_stream(
            _CONNECT.path,
            request_serializer=frontends_pb2.FromFrontend.SerializeToString,
            response_deserializer=frontends_pb2.ToFrontend.FromString,
        )
        self._call: ConnectCall = connect(metadata=tuple(shown))

    async def send(self, message: frontends_pb2.FromFrontend) -> None:
        try:
            await self._call.write(message)
        except (grpc.RpcError, aio.UsageError, asyncio.InvalidStateError) as failure:
            if self._call.done():  # what it ended with says more than that it is over
                raise _ended_with(await self._call.code(), await self._call.details()) from failure
            raise _broken(failure) from failure

    async def receive(self) -> frontends_pb2.ToFrontend:
        try:
            message = await self._call.read()
            if message is not aio.EOF:
                return cast(frontends_pb2.ToFrontend, message)
            code, details = await self._call.code(), await self._call.details()
        except grpc.RpcError as failure:
            raise _broken(failure) from failure
        raise _ended_with(code, details)

    async def unary(
        self, method: Method, request: Message, deadline_seconds: float | None = None, headers: Headers = ()
    ) -> Message:
        call: Any = self._channel.unary_unary(
            method.path,
            request_serializer=method.request_type.SerializeToString,
            response_deserializer=method.response_type.FromString,
        )
        try:
            answer: Message = await call(request, metadata=(*self._headers, *headers), timeout=deadline_seconds)
        except aio.AioRpcError as error:
            raise _failure(error) from error
        except asyncio.CancelledError as error:
            raise _unless_cancelled(error) from error
        return answer

    async def stream(
        self, method: Method, requests: Message | AsyncIterator[Message]
    ) -> AsyncGenerator[Message, None]:  # fmt: skip
        make: Any = self._channel.stream_stream if method.client_streaming else self._channel.unary_stream
        call: Any = make(
            method.path,
            request_serializer=method.request_type.SerializeToString,
            response_deserializer=method.response_type.FromString,
        )(requests, metadata=tuple(self._headers))
        try:
            while True:
                try:
                    message = await call.read()
                    if message is aio.EOF:
                        if await call.code() is not grpc.StatusCode.OK:
                            raise await _ended(call)
                        return
                except aio.AioRpcError as error:
                    raise _failure(error) from error
                except asyncio.CancelledError as error:
                    raise _unless_cancelled(error) from error
                yield message
        finally:
            call.cancel()


def _unless_cancelled(error: asyncio.CancelledError) -> BaseException:
    """What a cancelled call means: gRPC says the same of a channel that was closed under it."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return error
    return LinkBroken("the connection was closed")


def _broken(failure: Exception) -> LinkBroken:
    if isinstance(failure, aio.AioRpcError):
        return _ended_with(failure.code(), failure.details())
    return LinkBroken(str(failure) or type(failure).__name__)


def _ended_with(code: grpc.StatusCode, details: str | None) -> LinkBroken:
    """What the status of Frontends.Connect means."""
    if code in _REFUSALS:
        return Refused(f"{code.name}: {details}")
    return LinkBroken(f"{code.name}: {details}" if details else "the stream was ended")


async def _ended(call: Any) -> Exception:
    return _told(await call.code(), await call.details() or "", await call.trailing_metadata())


def _failure(error: aio.AioRpcError) -> Exception:
    return _told(error.code(), error.details() or error.code().name, error.trailing_metadata())


def _told(code: grpc.StatusCode, text: str, trailers: Any) -> Exception:
    """The failure that the other side told, with its details; LinkBroken if it is not there to tell anything."""
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return LinkBroken(text)
    details = dict(trailers or ()).get("grpc-status-details-bin", b"")
    try:
        status = status_pb2.Status.FromString(details if isinstance(details, bytes) else b"")
        failure: StatusError = read_error(status)
    except (DecodeError, MalformedRequest):
        failure = from_status(code.value[0], text)
    return failure


class FollowingChannel(aio.Channel):
    """A channel to whichever of several servers is the one to talk to when a call is made."""

    def __init__(self, channels: Sequence[aio.Channel], place: Callable[[], int]) -> None:
        """`place` is the index of the one to talk to."""
        self._channels = tuple(channels)
        self._place = place

    def _following(self, kind: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        calls = [getattr(channel, kind)(*arguments, **options) for channel in self._channels]
        return lambda *request, **call: calls[self._place()](*request, **call)

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return self._following("unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return self._following("unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return self._following("stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return self._following("stream_stream", arguments, options)

    async def __aenter__(self) -> FollowingChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        for channel in self._channels:
            await channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channels[self._place()].get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channels[self._place()].wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channels[self._place()].channel_ready()


def following_channel(
    servers: Sequence[str], settings: ConnectionSettings, place: Callable[[], int]
) -> FollowingChannel:  # fmt: skip
    """A channel for blobs to those servers. Raises CannotConnect and ValueError."""
    return FollowingChannel([open_channel(server, settings, _RECONNECTS) for server in servers], place)


class FollowingHeaders:
    """The headers for whichever of several servers is the one to talk to."""

    def __init__(self, servers: Sequence[str], settings: ConnectionSettings, place: Callable[[], int]) -> None:
        """Raises CannotConnect."""
        self._shown = [headers(server, settings) for server in servers]
        self._place = place

    def __iter__(self) -> Any:
        return iter(self._shown[self._place()])
