"""Behaviours 5 to 7, 13 and 15: what travels on the streams of Execute and WaitExecution."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from google.longrunning import operations_pb2
from grpc import aio

from integration.conformance.actions import (
    Stage,
    action,
    metadata_of,
    operations,
    parked,
    response_of,
    run,
    stage_of,
    start,
    started,
)
from integration.conformance.blobs import SHA256, fresh, key
from integration.conformance.case import Phase, behaviour
from integration.conformance.client import Client
from integration.conformance.expect import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    expect,
    expect_code,
    expect_equal,
    expect_in,
    expect_offered,
    fail,
)  # fmt: skip
from integration.conformance.inputs import Inputs  # fmt: skip
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

KEEPALIVE_SECONDS = 60.0
LATENESS_SECONDS = 2.0


async def _expect_no_error(client: Client, digest: re_pb2.Digest, what: str, code: int) -> None:
    seen = await operations(client, digest)
    for operation in seen:
        expect(not operation.HasField("error"), f"{what}: expected Operation.error to be unset, got {operation.error}")
    expect_code(response_of(seen[-1]).status, what, code)


@behaviour(5, "a run that fails says so in ExecuteResponse.status, never in Operation.error", execution=True)
async def failures(client: Client) -> None:
    """Operation.error is for operations of other kinds; clients of this one look at ExecuteResponse.status."""
    await _expect_no_error(client, await action(client, "sleep 60", timeout_seconds=1), "a timeout", DEADLINE_EXCEEDED)
    async with started(client, await parked(client)) as waiting:
        await waiting.cancel()
        expect_code((await waiting.end()).status, "a cancelled operation", CANCELLED)
        expect(not waiting.latest.HasField("error"), "expected Operation.error to be unset on a cancelled operation")


@behaviour(6, "done exactly when the stage is COMPLETED, and only then the stream ends with OK", execution=True)
async def done_and_completed(client: Client) -> None:
    """A run, a failing command and a cached result."""
    for script in ("sleep 0.2", "exit 3"):
        digest = await action(client, script)
        for _ in range(2):
            call = start(client, digest)
            seen = []
            async for operation in call:
                seen.append(operation)
                expect_equal(
                    operation.done, stage_of(operation) == Stage.COMPLETED, f"done at stage {stage_of(operation)}"
                )
                expect_equal(operation.HasField("response"), operation.done, "a response in an Operation that is done")
            expect_equal((await call.code()).value[0], 0, "the status of a stream after its end")
            expect(bool(seen) and seen[-1].done, "expected the stream to end with a completed Operation")
            expect_equal(sum(operation.done for operation in seen), 1, "completed Operations on one stream")


@behaviour(7, "the first Operation comes at once, with its name", execution=True)
async def first_operation(client: Client) -> None:
    """Whoever loses the connection before knowing the name cannot come back; so it is sent before anything is run."""
    call = start(client, await parked(client))
    try:
        async with asyncio.timeout(5):
            first = await call.read()
    except TimeoutError:
        fail("expected an Operation at once for an action that has to wait, got none in 5 s")
    expect(first is not aio.EOF and bool(first.name), "expected the first Operation to have a name, it has none")
    call.cancel()
    await client.call("CancelOperation", operations_pb2.CancelOperationRequest(name=first.name))


@behaviour(7, "every Operation carries the metadata of the execution", execution=True)
async def metadata(client: Client) -> None:
    """Buck2 decodes it without asking whether it is there."""
    digest = await action(client, "sleep 0.2")
    for operation in await operations(client, digest):
        told = metadata_of(operation)
        expect_equal(key(told.action_digest), key(digest), "action_digest in the metadata")
        expect_in(told.digest_function, (SHA256, 0), "digest_function in the metadata")
        # ExecuteOperationMetadata.digest_function may stay unset where the length of the hash tells it.
        expect_offered(told.digest_function == SHA256, "digest_function is left out of the metadata")
        expect_in(
            told.stage, (Stage.CACHE_CHECK, Stage.QUEUED, Stage.EXECUTING, Stage.COMPLETED), "stage in the metadata"
        )


async def _expect_alive(call: Any, first: operations_pb2.Operation, stage: int) -> None:
    """The gaps between Operations for a little more than a minute."""
    last = time.monotonic()
    ends = last + KEEPALIVE_SECONDS + LATENESS_SECONDS
    while (now := time.monotonic()) < ends:
        silent_until = last + KEEPALIVE_SECONDS + LATENESS_SECONDS
        try:
            async with asyncio.timeout(min(ends, silent_until) - now):
                operation = await call.read()
        except TimeoutError:
            if time.monotonic() >= silent_until:
                fail(f"expected an Operation every {KEEPALIVE_SECONDS:g} s at stage {stage}, none came for that long")
            return
        expect(operation is not aio.EOF, "expected the stream to stay open, it ended")
        expect_equal(operation.name, first.name, "the name of the Operation")
        last = time.monotonic()


@behaviour(
    13,
    "a waiting stream carries an Operation at least every 60 s",
    execution=True,
    phase=Phase.BACKGROUND,
    timeout_seconds=150,
)
async def keepalive_queued(client: Client) -> None:
    """Proxies and load balancers close connections on which nothing moves for so long."""
    async with started(client, await parked(client), timeout=150) as waiting:
        await _expect_alive(waiting.call, waiting.latest, Stage.QUEUED)


@behaviour(
    13,
    "a stream of a running action carries an Operation at least every 60 s",
    execution=True,
    phase=Phase.BACKGROUND,
    timeout_seconds=200,
)
async def keepalive_executing(client: Client) -> None:
    """The same while the command runs, which takes one slot for a minute."""
    async with started(client, await action(client, "sleep 180"), timeout=200) as running:
        await running.reach(Stage.EXECUTING)
        await _expect_alive(running.call, running.latest, Stage.EXECUTING)


@behaviour(
    14, "10,000 streams are served at once on one connection", execution=True, phase=Phase.ALONE, timeout_seconds=90
)
async def many_streams(client: Client) -> None:
    """One Execute that waits and 9,999 WaitExecution of the same operation: each must have got its first Operation while
    all are open. A server with a smaller limit makes the client's last streams wait for ever.
    """
    streams = 10_000
    async with started(client, await parked(client), timeout=90) as waiting:
        request = re_pb2.WaitExecutionRequest(name=waiting.name)
        calls: list[Any] = []
        try:
            for opened in range(0, streams - 1, 250):
                batch = [
                    client.call("WaitExecution", request, timeout=90) for _ in range(min(250, streams - 1 - opened))
                ]
                calls.extend(batch)
                try:
                    async with asyncio.timeout(15):
                        firsts = await asyncio.gather(*(call.read() for call in batch))
                except TimeoutError:
                    fail(f"expected {streams} streams at once, some of the first {len(calls)} got no Operation in 15 s")
                for first in firsts:
                    expect(first is not aio.EOF, f"expected {streams} streams at once, one of {len(calls)} ended early")
            expect_equal(sum(call.done() for call in calls), 0, "streams that ended while others were opened")
        finally:
            for call in calls:
                call.cancel()
    await run(client, "true")


@behaviour(15, "stages never go backwards, and never from COMPLETED", execution=True)
async def stages(client: Client) -> None:
    """Also for whoever asks after the end."""
    digest = await action(client, "sleep 0.3")
    async with started(client, digest) as running:
        seen = [stage_of(running.latest)]
        while not running.latest.done:
            seen.append(stage_of(await running.next()))
        expect_equal(seen, sorted(seen), "the stages of an undisturbed run")
        expect_equal(seen[-1], Stage.COMPLETED, "the last stage")
        for _ in range(2):
            again = client.call("WaitExecution", re_pb2.WaitExecutionRequest(name=running.name))
            late = [stage_of(operation) async for operation in again]
            expect_equal(set(late), {Stage.COMPLETED}, "the stages of a completed operation")


@behaviour(
    15,
    "the action of a worker that is lost runs again elsewhere",
    execution=True,
    phase=Phase.LAST,
    timeout_seconds=90,
)
async def worker_lost(client: Client) -> None:
    """EXECUTING may go back to QUEUED then; the client sees nothing but a longer run."""
    hook = client.options.need_hook("lose_worker_command")
    digest = await action(client, "sleep 3; echo done > out", outputs=["out"], inputs=Inputs(files={"x": fresh()}))
    async with started(client, digest, timeout=90) as running:
        await running.reach(Stage.EXECUTING)
        await asyncio.sleep(0.5)
        await hook({})
        response = await running.end()
    expect_code(response.status, "a run whose worker was lost", 0)
    expect_equal(response.result.exit_code, 0, "the exit code of a run whose worker was lost")
