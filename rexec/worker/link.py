"""The stream to the scheduler (rexec.worker.v1.Workers.Attach), as the agent sees it. The only file here that calls gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Protocol, cast

import grpc
from grpc import aio

from protos.methods import methods_of
from protos.rexec.worker.v1 import worker_pb2

if TYPE_CHECKING:  # types-grpcio makes these generic, the library does not
    AttachCall = aio.StreamStreamCall[worker_pb2.FromWorker, worker_pb2.ToWorker]

_ATTACH = methods_of(worker_pb2, "Workers")["Attach"]


class LinkBroken(Exception):
    """The stream is over, whoever ended it; the agent opens another."""


class Link(Protocol):
    """One stream. `send` and `receive` may be used at the same time, each by one task."""

    async def send(self, message: worker_pb2.FromWorker) -> None:
        """Raises LinkBroken."""
        ...

    async def receive(self) -> worker_pb2.ToWorker:
        """The next message. Raises LinkBroken, also when the scheduler ends the stream in good order."""
        ...


Dial = Callable[[], AbstractAsyncContextManager[Link]]
"""Opens a stream; leaving the context ends it. May wait until the scheduler can be reached, and raises LinkBroken."""


def dial_over(channel: aio.Channel, headers: Iterable[tuple[str, str]] = ()) -> Dial:
    """Streams over `channel`, each with `headers` as metadata; they are iterated for each stream."""
    attach = channel.stream_stream(
        _ATTACH.path,
        request_serializer=worker_pb2.FromWorker.SerializeToString,
        response_deserializer=worker_pb2.ToWorker.FromString,
    )

    @asynccontextmanager
    async def dial() -> AsyncIterator[Link]:
        # wait_for_ready: while the server is away the channel tries to connect by itself, and the call starts when it is back.
        call = cast("AttachCall", attach(metadata=tuple(headers), wait_for_ready=True))
        try:
            yield _GrpcLink(call)
        finally:
            call.cancel()

    return dial


class _GrpcLink:
    def __init__(self, call: AttachCall) -> None:
        self._call = call

    async def send(self, message: worker_pb2.FromWorker) -> None:
        try:
            await self._call.write(message)
        except (grpc.RpcError, aio.UsageError, asyncio.InvalidStateError) as failure:
            raise LinkBroken(_reason(failure)) from failure

    async def receive(self) -> worker_pb2.ToWorker:
        try:
            message = await self._call.read()
            if message is not aio.EOF:
                return cast(worker_pb2.ToWorker, message)
            reason = f"{(await self._call.code()).name}: {await self._call.details() or 'the stream was ended'}"
        except grpc.RpcError as failure:
            raise LinkBroken(_reason(failure)) from failure
        raise LinkBroken(reason)


def _reason(failure: Exception) -> str:
    if isinstance(failure, aio.AioRpcError):
        return f"{failure.code().name}: {failure.details()}"
    return str(failure) or type(failure).__name__
