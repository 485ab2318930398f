"""Behaviour 26: which worker an action asks for."""

from __future__ import annotations

import asyncio

from grpc import aio

from integration.conformance.actions import (
    Stage,
    action,
    execute,
    metadata_of,
    stage_of,
    started,
    status_of_execute,
    succeeded,
)
from integration.conformance.blobs import fresh
from integration.conformance.case import NotSupported, behaviour
from integration.conformance.client import Client
from integration.conformance.expect import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    expect,
    expect_code,
    expect_equal,
    expect_offered,
    fail,
    status_of,
    within,
)
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

SOON_SECONDS = 5.0


def _platform(*properties: tuple[str, str]) -> re_pb2.Platform:
    return re_pb2.Platform(properties=[re_pb2.Platform.Property(name=n, value=v) for n, v in sorted(properties)])


async def _action(client: Client, own: re_pb2.Platform, commands: re_pb2.Platform | None) -> re_pb2.Digest:
    """An action whose Action and Command ask for different platforms."""
    digest = await action(client, "true", command={"platform": commands})
    message = re_pb2.Action.FromString(await client.fetch(digest))
    message.ClearField("platform")
    if own.properties:
        message.platform.CopyFrom(own)
    (digest,) = await client.put(message)
    return digest


async def _expect_waiting(client: Client, digest: re_pb2.Digest, what: str) -> None:
    """Hold an action to waiting: two seconds go by, and it is neither run nor refused."""
    async with started(client, digest) as waiting:
        try:
            async with asyncio.timeout(2):
                while not waiting.latest.done:
                    await waiting.next()
        except TimeoutError:
            expect_equal(stage_of(waiting.latest), Stage.QUEUED, f"the stage of {what}")
            return
        fail(f"expected {what} to wait for a worker, it ended with {waiting.latest}")


@behaviour(26, "a property that a worker offers is met", execution=True)
async def offered(client: Client) -> None:
    """Asked for by the Action, and by the Command where the Action asks for nothing."""
    wanted = _platform(*client.options.platform, client.options.offered)
    for own, commands in ((wanted, None), (re_pb2.Platform(), wanted)):
        await succeeded(client, await execute(client, await _action(client, own, commands)))


@behaviour(26, "Action.platform goes before Command.platform", execution=True)
async def action_first(client: Client) -> None:
    """Where both ask, the Command's platform is what older clients would have said and does not count."""
    good = _platform(*client.options.platform, client.options.offered)
    bad = _platform(*client.options.platform, client.options.absent)
    await succeeded(client, await execute(client, await _action(client, good, bad)))
    await _expect_waiting(client, await _action(client, bad, good), "an Action that asks for what is not there")


@behaviour(26, "Command.platform counts where the Action asks for nothing", execution=True)
async def command_platform(client: Client) -> None:
    """Bazel 2 and buildbox know no other place."""
    bad = _platform(*client.options.platform, client.options.absent)
    digest = await _action(client, re_pb2.Platform(), bad)
    await _expect_waiting(client, digest, "a Command that asks for what is not there")


@behaviour(26, "a name that is asked for twice must be offered with both values", execution=True)
async def both_values(client: Client) -> None:
    """One worker value and one that no worker has: no worker fits."""
    both = _platform(*client.options.platform, client.options.offered, client.options.absent)
    digest = await _action(client, both, None)
    try:
        await _expect_waiting(client, digest, "an action that asks for two values of one name")
    except aio.AioRpcError as error:
        expect_code(status_of(error), "an action that asks for two values", FAILED_PRECONDITION, INVALID_ARGUMENT)
        raise NotSupported("a platform with two values of one name is refused") from None


@behaviour(26, "an unknown property name is refused quickly, naming the known ones", execution=True)
async def unknown_name(client: Client) -> None:
    """A misspelt property must not look like a queue that is long today."""
    name = f"surely-unknown-{fresh(4).hex()}"
    digest = await _action(client, _platform(*client.options.platform, (name, "1")), None)
    with within(f"a refusal within {SOON_SECONDS:g} s"):
        async with asyncio.timeout(SOON_SECONDS):
            status = await status_of_execute(client, digest)
    expect_code(status, "an unknown platform property", FAILED_PRECONDITION)
    known = client.options.offered[0]
    expect(known in status.message, f"expected the refusal to name the known property {known}, got {status.message!r}")


@behaviour(26, "a known but absent property waits, and a stream shows why", execution=True)
async def visible_reason(client: Client) -> None:
    """In the partial execution metadata of the waiting operation, for whoever wonders why nothing happens."""
    name, value = client.options.absent
    digest = await _action(client, _platform(*client.options.platform, (name, value)), None)
    async with started(client, digest) as waiting:
        await asyncio.sleep(0.2)
        request = re_pb2.WaitExecutionRequest(name=waiting.name)
        operation = await client.call("WaitExecution", request).read()
        details = metadata_of(operation).partial_execution_metadata.auxiliary_metadata
        # auxiliary_metadata is for whatever a server wants to tell.
        expect_offered(bool(details), "nothing is told about an operation that waits")
        expect(
            any(value.encode() in detail.value for detail in details),
            f"expected the waiting operation to say that no worker offers {name}={value}, got {list(details)}",
        )


@behaviour(26, "a worker's platform does not matter for a cached result", execution=True)
async def cached_anyway(client: Client) -> None:
    """The action is refused for what is missing before anything else is asked of it, and a hit needs no worker."""
    digest = await _action(client, _platform(*client.options.platform, client.options.absent), None)
    if not client.cache.action_cache_update_capabilities.update_enabled:
        return
    (stdout,) = await client.put(fresh())
    result = re_pb2.ActionResult(stdout_digest=stdout)
    request = re_pb2.UpdateActionResultRequest(action_digest=digest, action_result=result)
    await client.call("UpdateActionResult", request)
    response = await execute(client, digest)
    expect_equal(response.cached_result, True, "cached_result of an action that no worker fits")
    expect_equal(response.result.stdout_digest.hash, stdout.hash, "stdout of the cached result")
