"""Actions of the kit: shell scripts, running them, and what came of it.

Every action is salted, so that no server has a result for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf import duration_pb2
from google.rpc import status_pb2
from grpc import aio

from integration.conformance.blobs import digest_of, fresh
from integration.conformance.case import Failed, NotSupported
from integration.conformance.client import Client
from integration.conformance.expect import expect, expect_code, expect_equal, fail, shown, status_of
from integration.conformance.inputs import Inputs, with_tools
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

PATH = "/usr/local/bin:/usr/bin:/bin"
RUN_SECONDS = 60.0
UUID = "cat /proc/sys/kernel/random/uuid"
"""A command that prints something else each time it runs."""

Stage = re_pb2.ExecutionStage


async def action(
    client: Client,
    script: str | Sequence[str],
    *,
    inputs: Inputs | None = None,
    outputs: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    platform: Sequence[tuple[str, str]] | None = None,
    timeout_seconds: float = 0,
    command: Mapping[str, Any] | None = None,
    without: Sequence[bytes] = (),
    function: int = 1,
    do_not_cache: bool = False,
) -> re_pb2.Digest:
    """Upload an action, all but the blobs `without`; its digest. `script` is for /bin/sh, or a whole argv."""
    root, blobs = with_tools(client.options.busybox, inputs or Inputs()).encoded(function)
    arguments = ["/bin/sh", "-c", script] if isinstance(script, str) else list(script)
    variables = {"PATH": PATH} if environment is None else environment
    properties = [*client.options.platform, *(platform or ())]
    properties_message = re_pb2.Platform(
        properties=[re_pb2.Platform.Property(name=name, value=value) for name, value in sorted(properties)]
    )
    message = re_pb2.Command(
        arguments=arguments,
        output_paths=sorted(outputs),
        environment_variables=[
            re_pb2.Command.EnvironmentVariable(name=name, value=variables[name]) for name in sorted(variables)
        ],
        **(command or {}),
    )
    if properties and not message.HasField("platform"):
        message.platform.CopyFrom(properties_message)
    encoded = message.SerializeToString(deterministic=True)
    asked = re_pb2.Action(
        command_digest=digest_of(encoded, function),
        input_root_digest=root,
        salt=fresh(16),
        do_not_cache=do_not_cache,
    )
    if properties:
        asked.platform.CopyFrom(properties_message)
    if timeout_seconds:
        asked.timeout.CopyFrom(
            duration_pb2.Duration(seconds=int(timeout_seconds), nanos=int(timeout_seconds % 1 * 1e9))
        )
    uploads = [blob for blob in [*blobs, encoded, asked.SerializeToString(deterministic=True)] if blob not in without]
    await client.put(*uploads, function=function)
    return digest_of(asked.SerializeToString(deterministic=True), function)


def start(client: Client, digest: re_pb2.Digest, *, timeout: float = RUN_SECONDS, **options: Any) -> Any:
    """An Execute call: a stream of Operations."""
    metadata = options.pop("metadata", ())
    request = re_pb2.ExecuteRequest(action_digest=digest, **options)
    return client.call("Execute", request, timeout=timeout, metadata=metadata)


async def operations(
    client: Client, digest: re_pb2.Digest, *, timeout: float = RUN_SECONDS, **options: Any
) -> list[operations_pb2.Operation]:
    """All Operations of an Execute. Raises AioRpcError."""
    return [operation async for operation in start(client, digest, timeout=timeout, **options)]


async def execute(
    client: Client, digest: re_pb2.Digest, *, timeout: float = RUN_SECONDS, **options: Any
) -> re_pb2.ExecuteResponse:
    """How the action ended, whatever the status. Raises AioRpcError."""
    seen = await operations(client, digest, timeout=timeout, **options)
    expect(bool(seen), "expected Execute to send Operations, got an empty stream")
    return response_of(seen[-1])


async def run(
    client: Client, script: str | Sequence[str], *, request: Mapping[str, Any] | None = None, **options: Any
) -> re_pb2.ActionResult:
    """The result of a new action that must end with exit code 0."""
    digest = await action(client, script, **options)
    response = await execute(client, digest, **(request or {}))
    return await succeeded(client, response)


async def succeeded(client: Client, response: re_pb2.ExecuteResponse) -> re_pb2.ActionResult:
    """The result of an action that must have ended with exit code 0."""
    expect_code(response.status, "ExecuteResponse.status", 0)
    if response.result.exit_code:
        stdout, stderr = await stdout_of(client, response.result), await stderr_of(client, response.result)
        fail(
            f"expected the action's script to succeed, it ended with {response.result.exit_code};"
            f" stdout {stdout[-300:]!r}, stderr {stderr[-300:]!r}"
        )
    return response.result


async def status_of_execute(client: Client, digest: re_pb2.Digest, **options: Any) -> status_pb2.Status:
    """The status of an action that cannot be run: that of the RPC, or of ExecuteResponse."""
    try:
        response = await execute(client, digest, **options)
    except aio.AioRpcError as error:
        return status_of(error)
    return response.status


def response_of(operation: operations_pb2.Operation) -> re_pb2.ExecuteResponse:
    """The ExecuteResponse of a completed Operation."""
    expect(operation.done, f"expected the stream to end with a completed Operation, the last one is {operation.name}")
    if operation.HasField("error"):
        fail(f"expected Operation.error to be unset, got {shown(operation.error)}")
    response = re_pb2.ExecuteResponse()
    if not operation.response.Unpack(response):
        fail(f"expected an ExecuteResponse in the Operation, got {operation.response.type_url!r}")
    return response


def metadata_of(operation: operations_pb2.Operation) -> re_pb2.ExecuteOperationMetadata:
    metadata = re_pb2.ExecuteOperationMetadata()
    if not operation.metadata.Unpack(metadata):
        fail(f"expected ExecuteOperationMetadata in Operation.metadata, got {operation.metadata.type_url!r}")
    return metadata


def stage_of(operation: operations_pb2.Operation) -> int:
    return metadata_of(operation).stage


async def stdout_of(client: Client, result: re_pb2.ActionResult) -> bytes:
    return result.stdout_raw or await client.fetch(result.stdout_digest)


async def stderr_of(client: Client, result: re_pb2.ActionResult) -> bytes:
    return result.stderr_raw or await client.fetch(result.stderr_digest)


def file_of(result: re_pb2.ActionResult, path: str) -> re_pb2.OutputFile:
    """An output file that must be there."""
    found = [file for file in result.output_files if file.path == path]
    expect(len(found) == 1, f"expected one output file {path!r}, got {outputs_shown(result)}")
    return found[0]


def directory_of(result: re_pb2.ActionResult, path: str) -> re_pb2.OutputDirectory:
    """An output directory that must be there."""
    found = [directory for directory in result.output_directories if directory.path == path]
    expect(len(found) == 1, f"expected one output directory {path!r}, got {outputs_shown(result)}")
    return found[0]


def outputs_shown(result: re_pb2.ActionResult) -> str:
    return (
        f"files {[file.path for file in result.output_files]}, directories"
        f" {[directory.path for directory in result.output_directories]}, symlinks"
        f" {[(link.path, link.target) for link in result.output_symlinks]}"
    )


async def content_of(client: Client, result: re_pb2.ActionResult, path: str) -> bytes:
    """What is in an output file that must be there."""
    return await client.fetch(file_of(result, path).digest)


async def tree_of(client: Client, directory: re_pb2.OutputDirectory) -> re_pb2.Tree:
    expect(
        directory.HasField("tree_digest"), f"expected a tree_digest for output directory {directory.path!r}, got none"
    )
    return re_pb2.Tree.FromString(await client.fetch(directory.tree_digest))


class Started:
    """An action under way."""

    def __init__(self, client: Client, call: Any, first: operations_pb2.Operation) -> None:
        self._client = client
        self.call = call
        self.name: str = first.name
        self.latest = first

    async def next(self) -> operations_pb2.Operation:
        """The next Operation; fails when the stream ends instead."""
        operation = await self.call.read()
        if operation is aio.EOF:
            fail(f"expected another Operation of {self.name}, the stream ended with {await self.call.code()}")
        self.latest = operation
        expect_equal(operation.name, self.name, "the name of an operation on its own stream")
        return self.latest

    async def reach(self, stage: int) -> operations_pb2.Operation:
        """Read until the stage is `stage`. A server that tells no stages is given a second."""
        if not self.latest.HasField("metadata") and not self.latest.done:
            await asyncio.sleep(1)
            return self.latest
        while stage_of(self.latest) != stage:
            if self.latest.done:
                status = response_of(self.latest).status
                fail(f"waited for stage {Stage.Value.Name(stage)}, the operation ended with {shown(status)}")
            await self.next()
        return self.latest

    async def end(self) -> re_pb2.ExecuteResponse:
        """The response, once the stream has ended."""
        while not self.latest.done:
            await self.next()
        rest = await self.call.read()
        expect(rest is aio.EOF, f"expected the stream of {self.name} to end after done, got another Operation")
        return response_of(self.latest)

    async def cancel(self) -> None:
        """CancelOperation."""
        await self._client.call("CancelOperation", operations_pb2.CancelOperationRequest(name=self.name))


@asynccontextmanager
async def started(
    client: Client, digest: re_pb2.Digest, *, timeout: float = RUN_SECONDS, cancel: bool = True, **options: Any
) -> AsyncIterator[Started]:
    """An Execute whose first Operation has come. What is still running at the end of the block is cancelled."""
    call = start(client, digest, timeout=timeout, **options)
    first = await call.read()
    expect(first is not aio.EOF, "expected Execute to send an Operation, got an empty stream")
    running = Started(client, call, first)
    try:
        yield running
    finally:
        call.cancel()
        if cancel and not running.latest.done:
            try:
                async with asyncio.timeout(10):
                    await running.cancel()
            except (aio.AioRpcError, TimeoutError):
                # The case itself has the verdict on CancelOperation; here it only tidies up.
                pass


async def parked(client: Client, **options: Any) -> re_pb2.Digest:
    """An action that waits for a worker that does not come. Raises NotSupported where nothing is known to wait so."""
    if not client.parks:
        name, value = client.options.absent
        raise NotSupported(f"needs an --absent property; actions do not wait for {name}={value} here")
    return await action(client, "true", platform=[client.options.absent], **options)


async def parks(client: Client) -> bool:
    """Whether an action that asks for the absent property waits: it is neither refused nor ended within 2 s."""
    try:
        async with asyncio.timeout(2), started(client, await parked(client)) as waiting:
            await waiting.end()
    except TimeoutError:
        return True
    except (Failed, aio.AioRpcError):
        pass
    return False
