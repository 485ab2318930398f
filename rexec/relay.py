"""What a frontend passes on to the scheduler and back as it is, once it has looked at who asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Final

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

from cas.context import RequestContext
from cas.errors import MalformedRequest, NotAllowed, Unavailable
from protos.methods import GeneratedModule, Method, methods_of
from protos.rexec.scheduler.v1 import frontends_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.permission import allowed_offer
from rexec.scheduler.platform import Offer
from rexec.scheduler.scheduler_connection import Connection
from rexec.scheduler.scheduler_link import LinkBroken

Check = Callable[[str, Message, RequestContext], None]
"""Is given the name of the method, the request, which it may change, and who asks. Raises the StatusError that he gets."""

HELLO_SECONDS: Final = 60.0
"""How long a worker may take to say who it is; from then on the scheduler notices its silence."""

WAIT_SHARE: Final = 2 / 3
"""Of the time that a caller gives: how long the scheduler is waited for, so that he still hears what is wrong."""

_REQUEST_METADATA: Final = "build.bazel.remote.execution.v2.requestmetadata-bin"
"""REAPI RequestMetadata: the header that it travels in."""

_ATTACH = methods_of(frontends_pb2, "Frontends")["Attach"]


class Relayed:
    """A service whose unary methods the scheduler answers. The scheduler knows only that a frontend asks: what the caller may
    do and see is for `check` to decide."""

    def __init__(
        self, source: GeneratedModule | FileDescriptor, service_name: str, connection: Connection, check: Check
    ) -> None:
        self._connection = connection
        self._check = check
        for method in methods_of(source, service_name).values():
            if not method.client_streaming and not method.server_streaming:
                setattr(self, method.name, self._passing_on(method))

    def _passing_on(self, method: Method) -> Callable[[Message, RequestContext], Awaitable[Message]]:
        async def pass_on(request: Message, context: RequestContext) -> Message:
            self._check(method.name, request, context)
            patience = context.deadline_seconds
            link = await self._connection.up(None if patience is None else patience * WAIT_SHARE)
            # Answers depend on the client's tool (FetchService), and the log names his build.
            headers = [(_REQUEST_METADATA, context.request_metadata.SerializeToString())]
            try:
                return await link.unary(method, request, context.deadline_seconds, headers)
            except LinkBroken as broken:
                raise Unavailable(f"the connection to the scheduler broke: {broken}") from broken

        return pass_on


class RelayedWorkers:
    """rexec.worker.v1.Workers, so that a worker needs to know no other server than a frontend."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def Attach(
        self, requests: AsyncIterator[worker_pb2.FromWorker], context: RequestContext
    ) -> AsyncGenerator[worker_pb2.ToWorker, None]:
        """Raises NotAllowed, MalformedRequest, and Unavailable when nothing is said or the connection breaks: the worker comes
        back with what it holds."""
        if not context.identity.may_work:
            raise NotAllowed("not allowed")
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await _hello(requests)
        except TimeoutError:
            raise Unavailable(f"nothing heard for {HELLO_SECONDS:g} s") from None
        if hello is None:
            return
        properties = frozenset((offered.name, offered.value) for offered in hello.hello.properties)
        offer = allowed_offer(Offer(properties, frozenset(hello.hello.instance_names)), context.identity)
        hello.hello.instance_names[:] = sorted(offer.instance_names)
        link = await self._connection.up()
        try:
            async with aclosing(link.stream(_ATTACH, _with_first(hello, requests))) as messages:
                async for message in messages:
                    assert isinstance(message, worker_pb2.ToWorker)
                    yield message
        except LinkBroken as broken:
            raise Unavailable(f"the connection to the scheduler broke: {broken}") from broken


async def _hello(requests: AsyncIterator[worker_pb2.FromWorker]) -> worker_pb2.FromWorker | None:
    """The first message, None if the worker has left. Raises MalformedRequest unless it is a hello."""
    async for message in requests:
        if message.WhichOneof("message") != "hello":
            raise MalformedRequest(f"the first message is {message.WhichOneof('message') or 'empty'}, expected hello")
        return message
    return None


async def _with_first(
    first: worker_pb2.FromWorker, rest: AsyncIterator[worker_pb2.FromWorker]
) -> AsyncIterator[worker_pb2.FromWorker]:  # fmt: skip
    yield first
    async for message in rest:
        yield message
