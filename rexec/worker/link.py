"""The stream to the scheduler (rexec.worker.v1.Workers.Attach), as the agent sees it. The only file here that calls gRPC."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Protocol, cast
from urllib.parse import unquote

import grpc
from grpc import aio

from protos.methods import methods_of
from protos.rexec.worker.v1 import worker_pb2

if TYPE_CHECKING:  # types-grpcio makes these generic, the library does not
    AttachCall = aio.StreamStreamCall[worker_pb2.FromWorker, worker_pb2.ToWorker]

_ATTACH = methods_of(worker_pb2, "Workers")["Attach"]

LINK_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # A scheduler that hangs, or whose machine is gone, is left for another one after 15 s at most.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # The agent chooses its own pauses; these are how soon an attempt of its can come to anything.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)
"""Of a channel that carries the stream and nothing else, beside those that every channel has."""

_REFUSALS = frozenset(
    {
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)

_CONNECT_FAILED = re.compile(
    r"(?:ipv4|ipv6|unix):(?P<address>\S+): .*?(?P<reason>[^:()]+)(?: \(\d+\))?$", re.DOTALL
).search
"""The end of what gRPC says of a connection that the system refused: an address, some words, the system's reason."""

_NAME_UNKNOWN = re.compile(r"errors resolving (?P<address>\S+): .*?(?P<reason>[^:\[\]]+)\]?$", re.DOTALL).search
"""The same for a host name that stands for no address."""


class LinkBroken(Exception):
    """The stream is over, whoever ended it; the agent opens another."""


class NotReached(LinkBroken):
    """There is no connection to the scheduler; the text names the address and why."""


class Refused(LinkBroken):
    """The scheduler does not want this worker as it is: the same again is hardly going to help."""


class Link(Protocol):
    """One stream. `send` and `receive` may be used at the same time, each by one task."""

    async def send(self, message: worker_pb2.FromWorker) -> None:
        """Raises LinkBroken."""
        ...

    async def receive(self) -> worker_pb2.ToWorker:
        """The next message. Raises LinkBroken, also when the scheduler ends the stream in good order."""
        ...

    async def finish(self) -> None:
        """Nothing more will be sent: the scheduler ends the stream when it has heard everything. Raises LinkBroken."""
        ...


_MAX_TOGETHER_BYTES = 256 << 10
"""Messages travel as one until they have so many bytes."""

Dial = Callable[[], AbstractAsyncContextManager[Link]]
"""Opens a stream; leaving the context ends it. Raises LinkBroken, here or when the stream is used first."""


def dial_over(channel: aio.Channel, headers: Iterable[tuple[str, str]] = ()) -> Dial:
    """Streams over `channel`, each with `headers` as metadata; they are iterated for each stream."""
    attach = channel.stream_stream(
        _ATTACH.path,
        request_serializer=worker_pb2.FromWorker.SerializeToString,
        response_deserializer=worker_pb2.ToWorker.FromString,
    )

    @asynccontextmanager
    async def dial() -> AsyncIterator[Link]:
        # Without wait_for_ready, which would wait for a server that is away without a word of why it cannot be reached.
        call = cast("AttachCall", attach(metadata=tuple(headers)))
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
            raise _broken(failure) from failure

    async def finish(self) -> None:
        try:
            await self._call.done_writing()
        except (grpc.RpcError, aio.UsageError, asyncio.InvalidStateError) as failure:
            raise _broken(failure) from failure

    async def receive(self) -> worker_pb2.ToWorker:
        try:
            message = await self._call.read()
            if message is not aio.EOF:
                return cast(worker_pb2.ToWorker, message)
            code, details = await self._call.code(), await self._call.details()
        except grpc.RpcError as failure:
            raise _broken(failure) from failure
        raise _ended(code, details or "the stream was ended")


def _broken(failure: Exception) -> LinkBroken:
    if isinstance(failure, aio.AioRpcError):
        return _ended(failure.code(), failure.details() or "")
    return LinkBroken(str(failure) or type(failure).__name__)


def _ended(code: grpc.StatusCode, details: str) -> LinkBroken:
    if code in _REFUSALS:
        return Refused(f"{code.name}: {details}")
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith("failed to connect"):
        failed = _CONNECT_FAILED(details)
        return NotReached(f"{unquote(failed['address'])}: {failed['reason'].strip().lower()}" if failed else details)
    if code is grpc.StatusCode.UNAVAILABLE and (unknown := _NAME_UNKNOWN(details)):
        return NotReached(f"{unknown['address']}: {unknown['reason'].strip().lower()}")
    return LinkBroken(f"{code.name}: {details}")


async def send_all(link: Link, outbox: asyncio.Queue[worker_pb2.FromWorker]) -> None:
    """Send what is put, until it is cancelled; what waits behind a message travels with it as far as it is small."""
    while True:
        message = await outbox.get()
        together, size = 1, message.ByteSize()
        while size < _MAX_TOGETHER_BYTES and not outbox.empty():
            another = outbox.get_nowait()
            size += another.ByteSize()
            together += 1
            if together == 2:  # what was put may be kept, to be said again on the next stream
                message = worker_pb2.FromWorker.FromString(message.SerializeToString())
            message.also.append(another)
        await link.send(message)
        for _ in range(together):
            outbox.task_done()


def first_of(group: BaseExceptionGroup[LinkBroken]) -> LinkBroken:
    """One of the failures that ended a stream's tasks."""
    broken = group.exceptions[0]
    return first_of(broken) if isinstance(broken, BaseExceptionGroup) else broken
