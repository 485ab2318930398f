"""Every service method of the server with requests that nobody should send: each is answered, or refused with the status of
a refusal, and the next proper request is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from google.longrunning import operations_proto_pb2
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from cas.context import RequestContext
from cas.errors import Code, StatusError
from cas.services.action_cache import ActionCacheService
from cas.services.bytestream import ByteStream
from cas.services.cas import ContentAddressableStorage
from cas.uploads import Uploads
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2
from protos.methods import Method, methods_of
from protos.rexec.scheduler.v1 import frontends_pb2, status_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.frontends import FrontendsService
from rexec.scheduler.status import StatusService
from tests.fuzz.hostile import HELD, examples, guarded, messages
from tests.scheduler.world import World

SERVICES = [
    (re_pb2, "ContentAddressableStorage"),
    (re_pb2, "ActionCache"),
    (re_pb2, "Execution"),
    (bytestream_pb2, "ByteStream"),
    (operations_proto_pb2, "Operations"),
    (worker_pb2, "Workers"),
    (status_pb2, "Status"),
    (frontends_pb2, "Frontends"),
]
METHODS = [method for source, service in SERVICES for method in methods_of(source, service).values()]
REFUSALS = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.RESOURCE_EXHAUSTED,
        Code.UNAVAILABLE,
        Code.PERMISSION_DENIED,
        Code.CANCELLED,
        Code.ALREADY_EXISTS,
    }
)
"""What the server may say to nonsense. Not UNKNOWN and not INTERNAL: these are for faults of its own."""

ANSWERS = 20
"""Messages that are read of a stream that goes on for ever."""


class Server:
    """All services, in one process and without gRPC."""

    def __init__(self, world: World, uploads: Uploads, frontends: FrontendsService) -> None:
        self.world = world
        services = [
            ContentAddressableStorage(world.instances),
            ActionCacheService(world.instances),
            world.execution,
            ByteStream(world.instances, uploads),
            world.operations,
            world.workers,
            StatusService(world.broker.status),
            frontends,
        ]
        self.methods: dict[str, Callable[..., Any]] = {
            method.path: getattr(service, method.name)
            for (source, name), service in zip(SERVICES, services, strict=True)
            for method in methods_of(source, name).values()
        }

    async def call(self, method: Method, requests: list[Message]) -> Code:
        """How the call ends. Whoever waits for more is cut off."""
        implementation = self.methods[method.path]
        argument = _each(requests) if method.client_streaming else requests[0]
        context = RequestContext(method=method.path)
        try:
            async with asyncio.timeout(0.05 if method.name in _WAITING else 20):
                if not method.server_streaming:
                    (await implementation(argument, context)).SerializeToString()
                    return Code.OK
                async with aclosing(implementation(argument, context)) as answers:
                    count = 0
                    async for answer in answers:
                        answer.SerializeToString()
                        count += 1
                        if count == ANSWERS:
                            break
        except StatusError as failure:
            return failure.code
        except TimeoutError:
            assert method.name in _WAITING
        return Code.OK


_WAITING = frozenset({"Execute", "WaitExecution", "WaitOperation", "Attach", "Connect", "ReadLog"})
"""Calls that rightly wait: for a worker, or for what a worker or a frontend says."""


async def _each(requests: Iterable[Message]) -> AsyncIterator[Message]:
    for request in requests:
        yield request


async def served(method: Method, requests: list[Message]) -> Code:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(World())
        frontends = FrontendsService(world.instances, world.broker, world.workers, world.clock)
        await stack.enter_async_context(frontends)
        server = Server(world, await stack.enter_async_context(Uploads()), frontends)
        held = await world.upload(HELD)
        code = await server.call(method, requests)
        proper = re_pb2.FindMissingBlobsRequest(blob_digests=[held.to_proto()])
        response = await ContentAddressableStorage(world.instances).FindMissingBlobs(proper, RequestContext())
        assert not response.missing_blob_digests
        return code


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@given(data=st.data())
@examples(25)
def test_a_request_of_anything_at_all_is_answered_or_refused(method: Method, data: st.DataObject) -> None:
    most = 5 if method.client_streaming else 1
    requests = data.draw(st.lists(messages(method.request_type), min_size=1, max_size=most))
    with guarded():
        assert asyncio.run(served(method, requests)) in REFUSALS | {Code.OK}


@given(data=st.data())
@examples(200)
def test_a_frontend_that_has_said_who_it_is_may_ask_for_anything_at_all(data: st.DataObject) -> None:
    requests = data.draw(st.lists(messages(frontends_pb2.FrontendRequest), min_size=1, max_size=5))
    for number, request in enumerate(requests):
        request.id = number
    with guarded():
        assert asyncio.run(answers_to(requests)) <= REFUSALS


async def answers_to(requests: list[frontends_pb2.FrontendRequest]) -> set[Code]:
    """What the requests of a frontend are refused with. Its stream must not end."""
    refused = set()

    async def said() -> AsyncIterator[frontends_pb2.FromFrontend]:
        hello = frontends_pb2.FrontendHello(frontend_name="f", session_id="s")
        yield frontends_pb2.FromFrontend(hello=hello, requests=requests)
        await asyncio.Event().wait()

    async with World() as world:
        frontends = FrontendsService(world.instances, world.broker, world.workers, world.clock)
        async with frontends, aclosing(frontends.Connect(said(), RequestContext())) as answers:
            try:
                async with asyncio.timeout(0.02):
                    async for message in answers:
                        refused |= {
                            Code(answer.failure.code) for answer in message.answers if answer.HasField("failure")
                        }
            except TimeoutError:
                pass  # it says nothing more
    return refused
