"""Behaviours 53 and 55: what a server says of itself, and how it fails."""

from __future__ import annotations

import asyncio
import random

from google.longrunning import operations_pb2
from google.rpc import status_pb2
from grpc import aio

from integration.conformance.actions import parked, start
from integration.conformance.blobs import digest_of, fresh
from integration.conformance.case import NotSupported, Phase, behaviour
from integration.conformance.client import METHODS, Client
from integration.conformance.expect import (
    INTERNAL,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNKNOWN,
    code_of,
    expect,
    expect_code,
    expect_equal,
    expect_in,
    expect_offered,
    expect_refused,
    fail,
    name_of,
    retry_info_of,
    status_of,
)  # fmt: skip
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

SHA256 = re_pb2.DigestFunction.SHA256


@behaviour(53, "the lowest API version is 2.0")
async def versions(client: Client) -> None:
    """Bazel up to 4 speaks nothing newer, and refuses a server whose range does not hold it."""
    low, high = client.capabilities.low_api_version, client.capabilities.high_api_version
    expect_in(low.major, (2,), "major of low_api_version")
    expect_offered(low.minor == 0, f"clients of 2.0 are not served: low_api_version is {low.major}.{low.minor}")
    expect((high.major, high.minor) >= (2, 0), f"expected high_api_version from 2.0 on, got {high.major}.{high.minor}")
    deprecated = client.capabilities.deprecated_api_version
    expect((deprecated.major, deprecated.minor) <= (2, 0), "expected 2.0 not to be out of the range of versions")


@behaviour(53, "SHA256 is in the singular digest_function and in both lists", execution=True)
async def functions(client: Client) -> None:
    """Older clients know only the singular field."""
    expect_in(SHA256, client.cache.digest_functions, "CacheCapabilities.digest_functions")
    expect_equal(client.execution.digest_function, SHA256, "ExecutionCapabilities.digest_function")
    expect_in(SHA256, client.execution.digest_functions, "ExecutionCapabilities.digest_functions")


@behaviour(53, "cache and execution capabilities come together", execution=True)
async def together(client: Client) -> None:
    """In one answer, for an instance that executes."""
    capabilities = await client.call("GetCapabilities", re_pb2.GetCapabilitiesRequest())
    expect(capabilities.HasField("cache_capabilities"), "expected cache_capabilities, got none")
    expect(capabilities.HasField("execution_capabilities"), "expected execution_capabilities, got none")
    expect_equal(capabilities.execution_capabilities.exec_enabled, True, "exec_enabled")


@behaviour(53, "an unknown instance name is refused")
async def unknown_instance(client: Client) -> None:
    """Better than a build that finds nothing cached and does not know why."""
    request = re_pb2.GetCapabilitiesRequest(instance_name=f"surely/unknown-{fresh(4).hex()}")
    status = await expect_refused(
        client.call("GetCapabilities", request), "GetCapabilities of an unknown instance", INVALID_ARGUMENT, 5, 7
    )
    expect(bool(status.message), "expected the refusal to say why, it has no text")


@behaviour(53, "every advertised digest function works")
async def each_function(client: Client) -> None:
    """Up and down, with the function named in the request."""
    tried = 0
    for function in client.cache.digest_functions:
        name = re_pb2.DigestFunction.Value.Name(function)
        try:
            digest_of(b"", function)
        except NotSupported:
            continue
        for size in (0, 1, 1024, 1025, 5000):
            data = fresh(size)
            (digest,) = await client.put(data, function=function)
            expect_equal(
                await client.missing([digest], function=function), set(), f"missing {name} blobs after an upload"
            )
            expect_equal(
                await client.fetch(digest, function=function) == data, True, f"{size} bytes come back with {name}"
            )
        wrong = re_pb2.BatchUpdateBlobsRequest(digest_function=function)
        wrong.requests.add(digest=digest_of(fresh(9), function), data=fresh(9))
        answer = await client.call("BatchUpdateBlobs", wrong)
        expect_code(answer.responses[0].status, f"the wrong content for a {name} digest", INVALID_ARGUMENT)
        tried += 1
    expect(tried > 0, "expected a digest function that the kit knows among those advertised, got none")


@behaviour(53, "GetCapabilities is answered while no worker can be had", execution=True)
async def without_workers(client: Client) -> None:
    """A client that is told that there is no execution gives up for good; one that executes too early only waits."""
    call = start(client, await parked(client))
    first = await call.read()
    capabilities = await client.call("GetCapabilities", re_pb2.GetCapabilitiesRequest(), timeout=5)
    expect_equal(
        capabilities.execution_capabilities.exec_enabled, True, "exec_enabled while an action waits for a worker"
    )
    call.cancel()
    await client.call("CancelOperation", operations_pb2.CancelOperationRequest(name=first.name))


@behaviour(
    55,
    "an overloaded server says RESOURCE_EXHAUSTED or UNAVAILABLE with RetryInfo",
    execution=True,
    phase=Phase.LAST,
    timeout_seconds=60,
)
async def overload(client: Client) -> None:
    """More actions than may wait; those that were taken are not lost."""
    limit = int(client.options.need("queue_limit"))
    calls, names = [], []
    try:
        for _ in range(limit + 10):
            call = start(client, await parked(client), timeout=60)
            try:
                first = await call.read()
            except aio.AioRpcError as error:
                _expect_overload(status_of(error))
                return
            calls.append(call)
            names.append(first.name)
        fail(f"expected the queue to be full after {limit} waiting actions, {len(calls)} were taken")
    finally:
        for call in calls:
            call.cancel()
        for name in names:
            await client.call("CancelOperation", operations_pb2.CancelOperationRequest(name=name))


def _expect_overload(status: status_pb2.Status) -> None:
    expect_code(status, "an action too many", RESOURCE_EXHAUSTED, UNAVAILABLE)
    info = retry_info_of(status)
    if info is None:
        fail(f"expected RetryInfo with {name_of(status.code)}, got {[detail.type_url for detail in status.details]}")
    expect(info.retry_delay.ToNanoseconds() > 0, f"expected a retry delay above 0, got {info.retry_delay}")


async def _code(client: Client, path: str, data: bytes) -> int:
    try:
        await client.raw(path, data, timeout=10)
    except aio.AioRpcError as error:
        return code_of(error)
    return 0


@behaviour(55, "requests that make no sense never surface as UNKNOWN or INTERNAL")
async def nonsense(client: Client) -> None:
    """Every method with an empty request, with texts and numbers at their extremes, and with random bytes. Of bytes that are
    no message many gRPC libraries say INTERNAL before the server sees them, so that is let pass there.
    """
    dice = random.Random(55)
    for name, method in METHODS.items():
        if method.client_streaming or method.server_streaming:
            continue
        requests = [dice.randbytes(size) for size in (1, 2, 5, 20, 100)]
        message = method.request_type()
        for field in message.DESCRIPTOR.fields:
            if field.name == "instance_name" or field.is_repeated:
                continue
            if field.type == field.TYPE_STRING:
                setattr(message, field.name, "../\u2028/" * 20)
            elif field.message_type is re_pb2.Digest.DESCRIPTOR:
                getattr(message, field.name).size_bytes = -(1 << 63)
        for data in (b"", message.SerializeToString(), *requests):
            code = await _code(client, method.path, data)
            wrong = (UNKNOWN,) if data in requests else (UNKNOWN, INTERNAL)
            expect(code not in wrong, f"expected a client's error of {name} for {data[:20]!r}, got {name_of(code)}")


@behaviour(55, "trees and commands that make no sense are the client's error", execution=True)
async def nonsense_trees(client: Client) -> None:
    """Names with slashes, dots and NUL, twice the same name, an Action that is none: INVALID_ARGUMENT or
    FAILED_PRECONDITION, never INTERNAL, never run.
    """
    (empty, file) = await client.put(re_pb2.Directory(), fresh())
    roots = []
    for name in ("..", ".", "", "a/b", "/etc", "nul\0", "x" * 10_000):
        roots.append(re_pb2.Directory(files=[re_pb2.FileNode(name=name, digest=file)]))
        roots.append(re_pb2.Directory(directories=[re_pb2.DirectoryNode(name=name, digest=empty)]))
    twice = re_pb2.Directory(files=[re_pb2.FileNode(name="same", digest=file)] * 2)
    both = re_pb2.Directory(
        files=[re_pb2.FileNode(name="same", digest=file)], directories=[re_pb2.DirectoryNode(name="same", digest=empty)]
    )
    (command,) = await client.put(re_pb2.Command(arguments=["/bin/true"]))
    for root in (*roots, twice, both):
        (digest,) = await client.put(root)
        (action,) = await client.put(re_pb2.Action(command_digest=command, input_root_digest=digest, salt=fresh(8)))
        code = await _execute_code(client, action)
        expect_in(code, (INVALID_ARGUMENT, 9), f"the status of an input root with {str(root)[:60]!r}")
    for garbage in (fresh(50), b"\xff" * 30):
        (digest,) = await client.put(garbage)
        expect_in(await _execute_code(client, digest), (INVALID_ARGUMENT, 9), "the status of an Action that is none")
    (nothing,) = await client.put(re_pb2.Command())
    (action,) = await client.put(re_pb2.Action(command_digest=nothing, input_root_digest=empty, salt=fresh(8)))
    expect_in(await _execute_code(client, action), (INVALID_ARGUMENT, 9), "the status of a Command without arguments")


async def _execute_code(client: Client, digest: re_pb2.Digest) -> int:
    last = None
    try:
        async with asyncio.timeout(20):
            async for operation in start(client, digest):
                last = operation
    except aio.AioRpcError as error:
        return code_of(error)
    response = re_pb2.ExecuteResponse()
    if last is None or not last.response.Unpack(response):
        fail("expected a status for an action that makes no sense, the stream ended without one")
    return int(response.status.code)
