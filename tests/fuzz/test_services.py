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
from protos.rexec.scheduler.v1 import status_pb2
from protos.rexec.worker.v1 import worker_pb2
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

    def __init__(self, world: World, uploads: Uploads) -> None:
        self.world = world
        services = [
            ContentAddressableStorage(world.instances),
            ActionCacheService(world.instances),
            ByteStream(world.instances, uploads),
            world.execution,
            world.operations,
            world.workers,
            StatusService(world.broker.status),
        ]
        self.methods: dict[str, Callable[..., Any]] = {
            name: getattr(service, name) for service in services for name in dir(service) if name[0].isupper()
        }

    async def call(self, method: Method, requests: list[Message]) -> Code:
        """How the call ends. Whoever waits for more is cut off."""
        implementation = self.methods[method.name]
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


_WAITING = frozenset({"Execute", "WaitExecution", "WaitOperation", "Attach"})
"""Calls that rightly wait: for a worker, or for what a worker says."""


async def _each(requests: Iterable[Message]) -> AsyncIterator[Message]:
    for request in requests:
        yield request


async def served(method: Method, requests: list[Message]) -> Code:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(World())
        server = Server(world, await stack.enter_async_context(Uploads()))
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
