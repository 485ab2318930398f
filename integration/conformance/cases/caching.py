"""Behaviours 20, 21 and 23 to 25: when results are read from the action cache, written to it, and shared."""

from __future__ import annotations

import asyncio

from grpc import aio

from integration.conformance.actions import (
    UUID,
    Stage,
    action,
    execute,
    file_of,
    run,
    started,
    status_of_execute,
    stdout_of,
    succeeded,
    tree_of,
)
from integration.conformance.blobs import fresh
from integration.conformance.case import NotSupported, Phase, behaviour
from integration.conformance.client import Client, connected
from integration.conformance.expect import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    NOT_FOUND,
    PERMISSION_DENIED,
    code_of,
    expect,
    expect_code,
    expect_equal,
    expect_offered,
    expect_refused,
    name_of,
)  # fmt: skip
from integration.conformance.inputs import Inputs  # fmt: skip
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2


async def _printed(client: Client, response: re_pb2.ExecuteResponse) -> bytes:
    return await stdout_of(client, await succeeded(client, response))


@behaviour(20, "a second Execute gets the cached result", execution=True)
async def cached(client: Client) -> None:
    """And says so."""
    digest = await action(client, UUID)
    first, second = await execute(client, digest), await execute(client, digest)
    expect_equal((first.cached_result, second.cached_result), (False, True), "cached_result of two runs")
    expect_equal(await _printed(client, second), await _printed(client, first), "stdout of the cached result")


@behaviour(20, "skip_cache_lookup runs the action again and keeps the new result", execution=True)
async def skip_lookup(client: Client) -> None:
    """The cache is not read, but it is written: the next one who asks gets what the new run brought."""
    digest = await action(client, UUID)
    first = await _printed(client, await execute(client, digest))
    fresh_response = await execute(client, digest, skip_cache_lookup=True)
    second = await _printed(client, fresh_response)
    expect_equal(fresh_response.cached_result, False, "cached_result with skip_cache_lookup")
    expect(second != first, "expected skip_cache_lookup to run the action again, got the old result")
    kept = await client.cached(digest)
    expect_equal(await stdout_of(client, kept), second, "what the action cache holds after skip_cache_lookup")


@behaviour(21, "do_not_cache: the action cache is not read", execution=True)
async def do_not_read(client: Client) -> None:
    """Even if someone put a result there."""
    digest = await action(client, UUID, do_not_cache=True)
    if not client.cache.action_cache_update_capabilities.update_enabled:
        raise NotSupported("the action cache cannot be updated by clients")
    planted = re_pb2.ActionResult(stdout_raw=b"planted", exit_code=0)
    await client.call(
        "UpdateActionResult", re_pb2.UpdateActionResultRequest(action_digest=digest, action_result=planted)
    )
    response = await execute(client, digest)
    # Action.do_not_cache says that the result cannot be cached, not what becomes of one that someone else put there.
    expect_offered(not response.cached_result, "results that clients put there are served")
    expect(await _printed(client, response) != b"planted", "expected a do_not_cache action to run, got a cached result")


@behaviour(21, "do_not_cache: the result is not written to the action cache", execution=True)
async def do_not_write(client: Client) -> None:
    """Two runs give two results, and the cache has none."""
    digest = await action(client, UUID, do_not_cache=True)
    first, second = [await _printed(client, await execute(client, digest)) for _ in range(2)]
    expect(first != second, "expected a do_not_cache action to run twice, got the same result twice")
    await expect_refused(client.cached(digest), "GetActionResult of a do_not_cache action", NOT_FOUND)


@behaviour(21, "do_not_cache: executions at the same time are not merged", execution=True)
async def do_not_merge(client: Client) -> None:
    """Each client asked for a run of its own."""
    digest = await action(client, f"sleep 0.5; {UUID}", do_not_cache=True)
    responses = await asyncio.gather(execute(client, digest), execute(client, digest))
    first, second = [await _printed(client, response) for response in responses]
    expect(first != second, "expected two executions of a do_not_cache action to be two runs, got one result")


@behaviour(23, "a status other than OK is never cached", execution=True)
async def failures(client: Client) -> None:
    """A timeout, one whose command exits with 0 when it is asked to end, and a cancellation."""
    for script in ("sleep 60", "trap 'exit 0' TERM; sleep 60 & wait"):
        digest = await action(client, script, timeout_seconds=1)
        expect_code(await status_of_execute(client, digest), "a timed-out action", DEADLINE_EXCEEDED)
        await expect_refused(client.cached(digest), "GetActionResult of a timed-out action", NOT_FOUND)
    digest = await action(client, "sleep 60")
    async with started(client, digest) as running:
        await running.reach(Stage.EXECUTING)
        await running.cancel()
        expect_code((await running.end()).status, "a cancelled action", CANCELLED)
    await expect_refused(client.cached(digest), "GetActionResult of a cancelled action", NOT_FOUND)


@behaviour(24, "at completion the action cache has the result and the CAS all of its blobs", execution=True)
async def durable(client: Client) -> None:
    """Asked in the instant in which the last Operation comes, several times."""
    script = f"mkdir -p d/e; {UUID} > out; {UUID} > d/e/deep; {UUID}; {UUID} >&2"
    for _ in range(5):
        digest = await action(client, script, outputs=["out", "d"])
        async with started(client, digest) as running:
            while not running.latest.done:
                await running.next()
            kept = await client.cached(digest)
        expect_equal(kept.exit_code, 0, "the exit code of the cached result")
        tree = await tree_of(client, kept.output_directories[0])
        inside = [node.digest for child in tree.children for node in child.files]
        expect_equal(len(inside), 1, "files in the output directory")
        await client.expect_stored(file_of(kept, "out").digest, kept.stdout_digest, kept.stderr_digest, *inside)


@behaviour(
    24, "a result that outlives a crash of the server is whole", execution=True, phase=Phase.LAST, timeout_seconds=120
)
async def crash(client: Client) -> None:
    """Results are written after their blobs: whatever a crash takes, it never leaves one that names what is not there."""
    hook = client.options.need_hook("restart_command")
    script = f"mkdir d; {UUID} > out; {UUID} > d/inner; {UUID}"
    digests = [await action(client, script, outputs=["out", "d"]) for _ in range(10)]
    for digest in digests:
        await execute(client, digest)
    await hook({})
    async with connected(client.options) as late, asyncio.timeout(60):
        for digest in digests:
            try:
                kept = await late.cached(digest)
            except aio.AioRpcError as error:
                expect_equal(name_of(code_of(error)), "NOT_FOUND", "GetActionResult after a crash")
                continue
            tree = await tree_of(late, kept.output_directories[0])
            await late.expect_stored(file_of(kept, "out").digest, kept.stdout_digest, tree.root.files[0].digest)
            expect_equal(len(await late.fetch(file_of(kept, "out").digest)), 37, "bytes of an output after a crash")


@behaviour(25, "identical actions at the same time run once", execution=True)
async def merged(client: Client) -> None:
    """Ten clients, one run, ten streams."""
    digest = await action(client, f"sleep 1; {UUID}")
    responses = await asyncio.gather(*(execute(client, digest) for _ in range(10)))
    printed = {await _printed(client, response) for response in responses}
    # Action.do_not_cache says which may not be merged; that the others are is not asked for.
    expect_offered(len(printed) == 1, f"ten executions of one action at once were {len(printed)} runs")


@behaviour(25, "actions of different instances are not merged", execution=True)
async def instances_apart(client: Client) -> None:
    """The same digest under another instance name is another action."""
    other = client.options.other_instance
    if other is None:
        raise NotSupported("needs --other-instance")
    digest = await action(client, f"sleep 1; {UUID}")
    message = re_pb2.Action.FromString(await client.fetch(digest))
    blobs = [message.SerializeToString(deterministic=True)]
    blobs += [await client.fetch(one) for one in (message.command_digest, message.input_root_digest)]
    async with connected(client.options) as there:
        there.instance = other
        await there.put(*blobs)
        one, two = await asyncio.gather(execute(client, digest), execute(there, digest))
        expect(
            await _printed(client, one) != await _printed(there, two),
            f"expected two runs of one action in the instances {client.instance!r} and {other!r}, got one",
        )


@behaviour(25, "who may not execute cannot join an execution either", execution=True, phase=Phase.SHARED)
async def joiners(client: Client) -> None:
    """Joining would hand out the result to someone who may not have it made."""
    token = client.options.need("no_execute_token")
    digest = await action(client, "sleep 3; echo secret", inputs=Inputs(files={"f": fresh()}))
    async with started(client, digest) as running, connected(client.options, token=token) as stranger:
        await expect_refused(execute(stranger, digest), "Execute by someone who may not", PERMISSION_DENIED)
        request = re_pb2.WaitExecutionRequest(name=running.name)

        async def wait() -> None:
            async for _ in stranger.call("WaitExecution", request):
                pass

        await expect_refused(wait(), "WaitExecution by someone who may not execute", PERMISSION_DENIED)
    await run(client, "true")
