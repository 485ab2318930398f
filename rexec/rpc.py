"""The one file that binds services to a server library (gRPC, through grpc.aio).

A service is a plain object whose methods carry the names of its RPCs; it takes messages and a RequestContext, returns or
yields messages, and raises StatusError. Everything that happens around every call happens here, once: the request is
parsed, the caller identified, the call counted and bounded, an exception becomes a status. Another transport takes the
place of this file without a change to a service.

Plain functions around the method instead of grpc interceptors, because each interceptor costs a coroutine and a
continuation per call, and a call of grpc.aio costs 0.3 ms of CPU already.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError, Message
from grpc import aio

from cas.context import ANYONE, Identity, RequestContext
from cas.errors import Code, QueueFull, StatusError
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.methods import GeneratedModule, Method, methods_of
from rexec.auth.credentials import Credentials
from rexec.call_outcome import CallOutcome, EachParsed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from google.protobuf.descriptor import ServiceDescriptor

    ServicerContext = aio.ServicerContext[bytes, bytes]

MAX_RECEIVED_BYTES = 16 << 20
"""A request may be this large. FindMissingBlobs of 100,000 digests is 8 MiB, of SHA-512 14 MiB; Buck2 sends blobs in single
messages as large as the batch limit with its framing on top; gRPC's own default of 4 MiB would cut both off. More is not
received: a message of nothing but empty entries, two bytes each, takes 25 times its size once it is parsed."""

MAX_SENT_BYTES = 64 << 20
"""An answer may be this large; those that grow with what was asked, such as FindMissingBlobs', stay below by far."""

METADATA_NAMES = (
    "build.bazel.remote.execution.v2.requestmetadata-bin",
    "requestmetadata-bin",
    "google.devtools.remoteexecution.v1test.requestmetadata-bin",
)
"""Headers that carry REAPI's RequestMetadata: the published one, and those that older clients send."""

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
    ("grpc.max_send_message_length", MAX_SENT_BYTES),
    ("grpc.max_concurrent_streams", 100_000),
    # Calls that have come and that the event loop has not looked at yet. Of more than 1,000 gRPC by default ends some, of
    # more than 3,000 each further one, with CANCELLED, as if the client had wanted it; `max_calls` says what is the matter.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # Clients ping as often as every 10 s, also without a call; gRPC's default answers that with GOAWAY too_many_pings.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # Our own pings find clients that vanished without closing their connection.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class RpcObserver(Protocol):
    """Who is told of every call when it ends."""

    def rpc_ended(self, method: str, code: Code, seconds: float, received_bytes: int, sent_bytes: int) -> None:
        """The call of `method` ended with `code` after `seconds`; its messages, as encoded, had so many bytes."""
        ...


class Unobserved:
    """An observer that does nothing."""

    def rpc_ended(self, method: str, code: Code, seconds: float, received_bytes: int, sent_bytes: int) -> None:
        """Forget it."""


Authenticate = Callable[[Credentials], Awaitable[Identity]]
"""Who sends a call with these credentials; raises NotAuthenticated, whose cause is for the log alone."""

NOBODY = Identity(
    "nobody",
    may_read=False,
    may_execute=False,
    may_update_action_cache=False,
    may_work=False,
    may_operate=False,
    may_front=False,
    instance_names=frozenset(),
)
"""Who calls a service that is open to all: nobody looks at his credentials."""


class RpcServer:
    """Services on addresses.

    `max_calls` bounds the calls under way at once; one more gets RESOURCE_EXHAUSTED with RetryInfo.
    """

    def __init__(
        self,
        authenticate: Authenticate | None = None,
        observer: RpcObserver | None = None,
        max_calls: int = 50_000,
        share_port: bool = False,
    ) -> None:
        options = (*SERVER_OPTIONS, ("grpc.so_reuseport", int(share_port)))
        self._server = aio.server(options=options)
        self._authenticate = authenticate
        self._open_to_all: set[str] = set()
        self.services: list[ServiceDescriptor] = []
        """What has been added, for health and reflection."""
        self._observer = observer or Unobserved()
        self._max_calls = max_calls
        self._calls = 0

    def add(
        self,
        source: GeneratedModule | FileDescriptor,
        service_name: str,
        service: object,
        open_to_all: bool = False,
    ) -> None:
        """Serve `service` as the service of that name; RPCs that it has no method for answer UNIMPLEMENTED.

        Who calls one that is `open_to_all` is not asked for credentials.
        """
        handlers: dict[str, Any] = {}
        for name, method in methods_of(source, service_name).items():
            implementation = getattr(service, name, None)
            if implementation is not None:
                handlers[name] = self._handler(method, implementation)
                if open_to_all:
                    self._open_to_all.add(method.path)
        file = source if isinstance(source, FileDescriptor) else source.DESCRIPTOR
        descriptor = file.services_by_name[service_name]
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(descriptor.full_name, handlers),))
        self.services.append(descriptor)

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen on "HOST:PORT" or "unix:PATH" from `start` on; returns the port. Raises OSError if it is taken.

        A socket at PATH is the user's alone from its first moment: who connects before a chmod stays connected after it.
        """
        mask = os.umask(0o177) if address.startswith("unix:") else None
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: is another server running there?") from error
        finally:
            if mask is not None:
                os.umask(mask)

    async def start(self) -> None:
        """Answer calls."""
        await self._server.start()

    async def stop(self, grace_seconds: float) -> None:
        """Take no new call; end those under way after `grace_seconds`."""
        await self._server.stop(grace_seconds)

    # One handler shape for each of the four kinds of RPC. They get and give bytes, so that a request that does not parse
    # is INVALID_ARGUMENT (gRPC itself would answer INTERNAL and log a traceback).

    def _handler(self, method: Method, implementation: Callable[..., Any]) -> Any:
        match method.client_streaming, method.server_streaming:
            case False, False:
                return grpc.unary_unary_rpc_method_handler(self._unary(method, implementation))
            case False, True:
                return grpc.unary_stream_rpc_method_handler(self._yielding(method, implementation))
            case True, False:
                return grpc.stream_unary_rpc_method_handler(self._gathering(method, implementation))
            case _:
                return grpc.stream_stream_rpc_method_handler(self._conversing(method, implementation))

    def _unary(self, method: Method, implementation: Callable[..., Awaitable[Message]]) -> Any:
        async def call(data: bytes, context: ServicerContext) -> bytes:
            return await self._answer(method, context, lambda ctx, seen: implementation(seen.parsed(method, data), ctx))

        return call

    def _gathering(self, method: Method, implementation: Callable[..., Awaitable[Message]]) -> Any:
        async def call(requests: AsyncIterator[bytes], context: ServicerContext) -> bytes:
            return await self._answer(
                method, context, lambda ctx, seen: implementation(EachParsed(method, requests, seen), ctx)
            )

        return call

    def _yielding(self, method: Method, implementation: Callable[..., AsyncGenerator[Message, None]]) -> Any:
        async def call(data: bytes, context: ServicerContext) -> None:
            await self._stream(method, context, lambda ctx, seen: implementation(seen.parsed(method, data), ctx))

        return call

    def _conversing(self, method: Method, implementation: Callable[..., AsyncGenerator[Message, None]]) -> Any:
        async def call(requests: AsyncIterator[bytes], context: ServicerContext) -> None:
            await self._stream(
                method, context, lambda ctx, seen: implementation(EachParsed(method, requests, seen), ctx)
            )

        return call

    async def _answer(
        self,
        method: Method,
        context: ServicerContext,
        call: Callable[[RequestContext, CallOutcome], Awaitable[Message]],
    ) -> bytes:
        failure: StatusError
        with self._counted(method.path) as outcome:
            try:
                answer = await call(await self._context(method, context, outcome), outcome)
                return outcome.encoded(answer)
            except Exception as error:  # noqa: BLE001  # the edge: every failure becomes a status here
                failure = outcome.failed(error)
        await _abort(context, failure)
        raise AssertionError("abort raises")

    async def _stream(
        self,
        method: Method,
        context: ServicerContext,
        call: Callable[[RequestContext, CallOutcome], AsyncGenerator[Message, None]],
    ) -> None:
        failure: StatusError | None = None
        with self._counted(method.path) as outcome:
            try:
                async with aclosing(call(await self._context(method, context, outcome), outcome)) as answers:
                    async for answer in answers:
                        await context.write(outcome.encoded(answer))
            except Exception as error:  # noqa: BLE001  # the edge, as above
                failure = outcome.failed(error)
        if failure is not None:
            await _abort(context, failure)

    async def _context(self, method: Method, context: ServicerContext, outcome: CallOutcome) -> RequestContext:
        if self._calls > self._max_calls:
            raise QueueFull(f"{self._calls} calls are under way, and the limit is {self._max_calls}")
        headers: dict[str, str | bytes] = dict(context.invocation_metadata() or ())
        outcome.peer = peer = context.peer()
        if method.path in self._open_to_all:
            identity = NOBODY
        elif self._authenticate is None:
            identity = ANYONE
        else:
            identity = await self._authenticate(Credentials(peer, headers, context.auth_context))
        outcome.caller = identity.name
        return RequestContext(
            method=method.path,
            peer=peer,
            identity=identity,
            metadata=headers,
            request_metadata=request_metadata(headers),
            deadline_seconds=context.time_remaining(),
        )

    @contextmanager
    def _counted(self, path: str) -> Iterator[CallOutcome]:
        outcome = CallOutcome(path)
        started = time.monotonic()
        self._calls += 1
        try:
            yield outcome
        except (asyncio.CancelledError, GeneratorExit):
            outcome.code = Code.CANCELLED
            raise
        finally:
            self._calls -= 1
            seconds = time.monotonic() - started
            self._observer.rpc_ended(path, outcome.code, seconds, outcome.received_bytes, outcome.sent_bytes)


MAX_DETAILS_BYTES = 4 << 10
"""Details travel in a trailer, in base64, and clients refuse more than 8 KiB of metadata unless told otherwise. Whoever has
more to say (InputsMissing with many blobs) says it in a message: ExecuteResponse.status."""

MAX_TEXT_BYTES = 2 << 10
"""The text travels beside them, and every byte of it that is not printable ASCII takes three ("%E6"). A client that is sent
too much sees a broken stream instead of the status."""


async def _abort(context: ServicerContext, failure: StatusError) -> None:
    status = failure.to_proto()
    details = status.SerializeToString() if status.details else b""
    trailers = (("grpc-status-details-bin", details),) if 0 < len(details) <= MAX_DETAILS_BYTES else ()
    await context.abort(_GRPC_CODES[failure.code], shortened(str(failure)), trailers)


def shortened(text: str) -> str:
    """As much of the beginning of `text` as takes MAX_TEXT_BYTES in the header "grpc-message"."""
    left_bytes = MAX_TEXT_BYTES
    for place, character in enumerate(text[:MAX_TEXT_BYTES]):
        # gRPC over HTTP/2, "Percent-Encoded": what is not printable ASCII, and the percent sign.
        left_bytes -= 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if left_bytes < 0:
            return text[:place]
    return text[:MAX_TEXT_BYTES]


_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


def request_metadata(headers: Mapping[str, str | bytes]) -> re_pb2.RequestMetadata:
    """REAPI's RequestMetadata among the headers; empty if it is absent or does not parse, which is never an error."""
    for name in METADATA_NAMES:
        value = headers.get(name)
        if isinstance(value, bytes):
            try:
                return re_pb2.RequestMetadata.FromString(value)
            except DecodeError:
                return re_pb2.RequestMetadata()
    return re_pb2.RequestMetadata()
