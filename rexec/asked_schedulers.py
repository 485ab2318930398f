"""Servers that are asked for figures (externalscaler.ExternalScaler, rexec/keda.py), with the credentials of this process.

All of them say the same: frontends, or a scheduler and those that stand by for it. The one that answered last is asked first.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, cast

import grpc
from google.protobuf.message import Message
from grpc import aio

from cas.connection_settings import ConnectionSettings
from cas.context import RequestContext
from cas.errors import MalformedRequest, ResourceExhausted, Unavailable
from protos.keda import externalscaler_pb2 as keda_pb2
from protos.methods import Method, methods_of
from rexec.connection import headers, open_channel
from rexec.external_metrics import Unanswered

CALL_SECONDS: Final = 4.0
"""For each server: whoever asks waits longer than for two of them."""

_RECONNECTS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A stream may have nothing to say for hours.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)
"""A server that is back is found by the next question."""

_METHODS: Final = methods_of(keda_pb2, "ExternalScaler")


class AskedSchedulers:
    """All of them, with a channel to each."""

    def __init__(self, servers: Sequence[str], settings: ConnectionSettings) -> None:
        """Raises CannotConnect and ValueError."""
        self._servers: list[tuple[str, aio.Channel, Any]] = []
        for server in servers:
            shown = headers(server, settings)
            self._servers.append((server, open_channel(server, settings, _RECONNECTS), shown))

    async def figure(self, metric: str, labels: Mapping[str, str]) -> float:
        """See rexec.external_metrics.Ask."""
        ref = keda_pb2.ScaledObjectRef(scalerMetadata=labels)
        request = keda_pb2.GetMetricsRequest(scaledObjectRef=ref, metricName=metric)
        answer = cast(keda_pb2.GetMetricsResponse, await self.unary(_METHODS["GetMetrics"], request))
        return answer.metricValues[0].metricValueFloat

    async def unary(self, method: Method, request: Message) -> Message:
        """The first answer. Raises MalformedRequest, and Unanswered if nobody gives one."""
        said = ""
        for entry in list(self._servers):
            server, channel, shown = entry
            call: Any = channel.unary_unary(
                method.path, method.request_type.SerializeToString, method.response_type.FromString
            )
            try:
                answer: Message = await call(request, timeout=CALL_SECONDS, metadata=tuple(shown))
            except (aio.AioRpcError, OSError, ValueError) as error:
                said = _refusal(server, error)
                continue
            self._answered(entry)
            return answer
        raise Unanswered(said)

    async def stream(self, method: Method, request: Message) -> AsyncGenerator[Message, None]:
        """What the first that answers says, to its end. Raises MalformedRequest, ResourceExhausted and Unanswered."""
        said = ""
        for entry in list(self._servers):
            server, channel, shown = entry
            make: Any = channel.unary_stream(
                method.path, method.request_type.SerializeToString, method.response_type.FromString
            )
            call: Any = None
            try:
                call = make(request, metadata=tuple(shown))
                while (message := await call.read()) is not aio.EOF:
                    self._answered(entry)
                    yield message
                said = f"{server} says no more: {(await call.code()).name}: {await call.details()}"
            except (aio.AioRpcError, OSError, ValueError) as error:
                said = _refusal(server, error)
            finally:
                if call is not None:
                    call.cancel()
        raise Unanswered(said)

    def _answered(self, entry: tuple[str, aio.Channel, Any]) -> None:
        if self._servers[0] is not entry:
            self._servers.remove(entry)
            self._servers.insert(0, entry)

    async def close(self) -> None:
        """Give the connections up."""
        for _server, channel, _shown in self._servers:
            await channel.close()


def _refusal(server: str, error: Exception) -> str:
    """Why a server does not say. Raises MalformedRequest and ResourceExhausted, which others would say as well."""
    if not isinstance(error, aio.AioRpcError):  # the token's file
        return f"{server} is not asked: {error}"
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        raise MalformedRequest(error.details() or "") from error
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        raise ResourceExhausted(error.details() or "") from error
    return f"{server} does not say: {error.code().name}: {error.details()}"


class PassedOn:
    """externalscaler.ExternalScaler for a KEDA that has no credentials to show: it can show certificates, and no token."""

    def __init__(self, schedulers: AskedSchedulers) -> None:
        self._schedulers = schedulers
        for method in _METHODS.values():
            setattr(self, method.name, self._stream(method) if method.server_streaming else self._unary(method))

    def _unary(self, method: Method) -> Callable[[Message, RequestContext], Awaitable[Message]]:
        async def pass_on(request: Message, _context: RequestContext) -> Message:
            try:
                return await self._schedulers.unary(method, request)
            except Unanswered as error:
                raise Unavailable(str(error)) from error

        return pass_on

    def _stream(self, method: Method) -> Callable[[Message, RequestContext], AsyncGenerator[Message, None]]:
        async def pass_on(request: Message, _context: RequestContext) -> AsyncGenerator[Message, None]:
            try:
                async with aclosing(self._schedulers.stream(method, request)) as messages:
                    async for message in messages:
                        yield message
            except Unanswered as error:
                raise Unavailable(str(error)) from error

        return pass_on
