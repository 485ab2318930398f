"""Behaviours 8 to 12: operations by their name: waiting, coming back, cancelling, being forgotten."""

from __future__ import annotations

import asyncio
import time
import uuid

from google.longrunning import operations_pb2
from grpc import aio

from integration.conformance.actions import (
    UUID,
    Stage,
    action,
    execute,
    parked,
    response_of,
    run,
    stage_of,
    started,
    status_of_execute,
    succeeded,
)
from integration.conformance.blobs import fresh, key
from integration.conformance.case import NotSupported, Phase, behaviour
from integration.conformance.cases.processes import expect_gone, marker_script
from integration.conformance.client import Client, connected
from integration.conformance.expect import (
    CANCELLED,
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    code_of,
    expect,
    expect_code,
    expect_equal,
    expect_offered,
    expect_refused,
    fail,
    is_transport_loss,
    name_of,
)  # fmt: skip
from integration.conformance.inputs import Inputs  # fmt: skip
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

GRACE_SECONDS = 60.0
"""How long an operation without waiters is kept going."""


async def _get(client: Client, name: str) -> operations_pb2.Operation:
    operation: operations_pb2.Operation = await client.call(
        "GetOperation", operations_pb2.GetOperationRequest(name=name)
    )
    return operation


def _invented(name: str) -> str:
    """A name like `name` that the server never gave."""
    prefix, slash, _ = name.rpartition("/")
    return f"{prefix}{slash}{uuid.uuid4()}"


async def _waited(client: Client, name: str) -> list[operations_pb2.Operation]:
    return [o async for o in client.call("WaitExecution", re_pb2.WaitExecutionRequest(name=name))]


@behaviour(8, "WaitExecution of an unknown name is NOT_FOUND", execution=True)
async def wait_unknown(client: Client) -> None:
    """Names that were never given, however they look."""
    async with started(client, await parked(client)) as waiting:
        for name in (_invented(waiting.name), "nonsense", str(uuid.uuid4())):
            await expect_refused(_waited(client, name), f"WaitExecution of {name!r}", NOT_FOUND)


@behaviour(8, "WaitExecution of a running operation gives its state at once, then the rest", execution=True)
async def wait_running(client: Client) -> None:
    """A second stream for the same operation, as after a broken connection."""
    async with started(client, await action(client, "sleep 2")) as running:
        call = client.call("WaitExecution", re_pb2.WaitExecutionRequest(name=running.name))
        try:
            async with asyncio.timeout(5):
                first = await call.read()
        except TimeoutError:
            fail("expected the current state at once from WaitExecution, got nothing in 5 s")
        expect(first is not aio.EOF, "expected the current state from WaitExecution, the stream ended")
        expect_equal(first.name, running.name, "the name of the Operation from WaitExecution")
        last = first
        while (operation := await call.read()) is not aio.EOF:
            last = operation
        expect_code(response_of(last).status, "the end of WaitExecution", 0)


@behaviour(
    8,
    "completed operations can be found for at least 60 s",
    execution=True,
    phase=Phase.BACKGROUND,
    timeout_seconds=150,
)
async def retention(client: Client) -> None:
    """A client whose connection broke at the wrong moment comes back for its result."""
    async with started(client, await action(client, UUID)) as running:
        result = await succeeded(client, await running.end())
    await asyncio.sleep(60)
    seen = await _waited(client, running.name)
    again = await succeeded(client, response_of(seen[-1]))
    expect_equal(key(again.stdout_digest), key(result.stdout_digest), "stdout of the result 60 s later")


@behaviour(9, "a new Execute after a cancelled one makes a new operation", execution=True)
async def new_after_cancel(client: Client) -> None:
    """Whoever tries again wants another try, not the old answer."""
    digest = await action(client, "sleep 0.5; " + UUID)
    async with started(client, digest) as first:
        await first.cancel()
        expect_code((await first.end()).status, "a cancelled operation", CANCELLED)
    async with started(client, digest) as second:
        expect(second.name != first.name, f"expected a new operation after a cancelled one, got {first.name} again")
        await succeeded(client, await second.end())


@behaviour(9, "a new Execute after a failure for missing blobs starts over", execution=True)
async def new_after_missing(client: Client) -> None:
    """Bazel uploads what was named and asks again at once."""
    data = fresh()
    digest = await action(client, "true", inputs=Inputs(files={"f": data}), without=[data])
    for _ in range(2):
        expect_code(await status_of_execute(client, digest), "Execute without its input", FAILED_PRECONDITION)
    await client.put(data)
    await succeeded(client, await execute(client, digest))


@behaviour(
    10,
    "after a restart an operation's name is known or NOT_FOUND, and no client hangs",
    execution=True,
    phase=Phase.LAST,
    timeout_seconds=120,
)
async def restart(client: Client) -> None:
    """A client that waits while the server goes away, and one that asks for the name afterwards."""
    hook = client.options.need_hook("restart_command")
    digest = await action(client, "sleep 2; " + UUID)
    async with started(client, digest, timeout=90, cancel=False) as running:
        await running.reach(Stage.EXECUTING)
        end = asyncio.ensure_future(running.end())
        await hook({})
        try:
            async with asyncio.timeout(30):
                await end
        except aio.AioRpcError as error:
            expect(
                is_transport_loss(error), f"expected UNAVAILABLE for a lost connection, got {name_of(code_of(error))}"
            )
        except TimeoutError:
            fail("expected the stream to end or to break when the server went away, it hung for 30 s")
    async with connected(client.options) as late, asyncio.timeout(60):
        try:
            seen = await _waited(late, running.name)
        except aio.AioRpcError as error:
            expect_equal(name_of(code_of(error)), "NOT_FOUND", "WaitExecution after a restart")
        else:
            expect_code(response_of(seen[-1]).status, "an operation that outlived a restart", 0)
        await succeeded(late, await execute(late, digest))


async def _ended_after(client: Client, name: str, seconds: float) -> operations_pb2.Operation:
    """The state of an operation once it is done, or after `seconds`."""
    ends = time.monotonic() + seconds
    while True:
        operation = await _get(client, name)
        if operation.done or time.monotonic() > ends:
            return operation
        await asyncio.sleep(1)


async def _expect_abandoned(client: Client, digest: re_pb2.Digest, stage: int) -> None:
    async with started(client, digest, cancel=False) as left:
        await left.reach(stage)
    await asyncio.sleep(5)
    operation = await _get(client, left.name)
    expect(not operation.done, "expected the operation to go on for a grace period, it ended within 5 s")
    operation = await _ended_after(client, left.name, GRACE_SECONDS + 15)
    if not operation.done:
        await client.call("CancelOperation", operations_pb2.CancelOperationRequest(name=left.name))
        # REAPI does not say what becomes of an operation that nobody waits for.
        raise NotSupported(f"an operation without waiters still goes on after {GRACE_SECONDS + 15:g} s")
    expect_code(response_of(operation).status, "an abandoned operation", CANCELLED)


@behaviour(
    11,
    "an operation whose waiters are all gone is cancelled after a grace period",
    execution=True,
    phase=Phase.BACKGROUND,
    timeout_seconds=150,
)
async def abandoned(client: Client) -> None:
    """Cancelled, but not at once: clients lose connections and come back. GetOperation does not count as waiting."""
    await _expect_abandoned(client, await parked(client), Stage.QUEUED)


@behaviour(
    11,
    "a running action whose waiters are all gone is cancelled after a grace period",
    execution=True,
    phase=Phase.BACKGROUND,
    slow=True,
    timeout_seconds=200,
)
async def abandoned_running(client: Client) -> None:
    """The same while it runs; it takes a slot for a minute."""
    await _expect_abandoned(client, await action(client, "sleep 300"), Stage.EXECUTING)


@behaviour(
    11,
    "an operation that another client waits on is not cancelled",
    execution=True,
    phase=Phase.BACKGROUND,
    timeout_seconds=150,
)
async def shared_wait(client: Client) -> None:
    """One of two waiters leaves."""
    async with started(client, await parked(client), timeout=120) as first:
        call = client.call("WaitExecution", re_pb2.WaitExecutionRequest(name=first.name), timeout=120)
        expect(await call.read() is not aio.EOF, "expected WaitExecution to give the current state, the stream ended")
        first.call.cancel()
        await asyncio.sleep(GRACE_SECONDS + 8)
        operation = await _get(client, first.name)
        expect(not operation.done, "expected the operation to go on for the second client, it was ended")
        call.cancel()


@behaviour(12, "CancelOperation ends the stream with CANCELLED in ExecuteResponse.status", execution=True)
async def cancel(client: Client) -> None:
    """Of an operation that waits and of one that runs; nothing is kept of either."""
    for digest in (await parked(client), await action(client, "sleep 60")):
        async with started(client, digest) as running:
            if stage_of(running.latest) != Stage.QUEUED:
                await running.reach(Stage.EXECUTING)
            await running.cancel()
            try:
                async with asyncio.timeout(10):
                    response = await running.end()
            except TimeoutError:
                fail("expected the stream to end after CancelOperation, it was still open 10 s later")
            expect_code(response.status, "ExecuteResponse.status of a cancelled operation", CANCELLED)
        await expect_refused(client.cached(digest), "GetActionResult of a cancelled action", NOT_FOUND)


@behaviour(12, "CancelOperation kills the whole process tree", execution=True)
async def cancel_kills(client: Client) -> None:
    """Children in the background, in sessions of their own, and orphans."""
    marker, script = marker_script()
    async with started(client, await action(client, f"{script}; wait; sleep 600")) as running:
        await running.reach(Stage.EXECUTING)
        await asyncio.sleep(1)
        await running.cancel()
        await running.end()
    await expect_gone(client, marker)


@behaviour(12, "CancelOperation may be called again, also after the end", execution=True)
async def cancel_again(client: Client) -> None:
    """Cancelling what is over does nothing, and says OK."""
    async with started(client, await parked(client)) as waiting:
        await waiting.cancel()
        await waiting.cancel()
        await waiting.end()
        await waiting.cancel()
        expect_code(
            response_of(await _get(client, waiting.name)).status, "the status after two more cancels", CANCELLED
        )
    async with started(client, await action(client, "true")) as done:
        await succeeded(client, await done.end())
        await done.cancel()
        expect_code(response_of(await _get(client, done.name)).status, "a completed operation after a cancel", 0)


@behaviour(12, "CancelOperation and GetOperation of an unknown name are NOT_FOUND", execution=True)
async def cancel_unknown(client: Client) -> None:
    """Names that were never given."""
    async with started(client, await parked(client)) as waiting:
        unknown = _invented(waiting.name)
    request = operations_pb2.CancelOperationRequest(name=unknown)
    codes = []
    for call, what in (
        (client.call("CancelOperation", request), "CancelOperation"),
        (_get(client, unknown), "GetOperation"),
    ):
        status = await expect_refused(call, f"{what} of an unknown name", NOT_FOUND, INVALID_ARGUMENT)
        codes.append(status.code)
    # google.longrunning does not name the status.
    expect_offered(set(codes) == {NOT_FOUND}, "an unknown name is INVALID_ARGUMENT")


@behaviour(12, "GetOperation gives the state of an operation", execution=True)
async def get_operation(client: Client) -> None:
    """While it waits, and with the response when it is complete."""
    async with started(client, await parked(client)) as waiting:
        operation = await _get(client, waiting.name)
        expect_equal((operation.name, operation.done), (waiting.name, False), "GetOperation of one that waits")
        expect_equal(stage_of(operation), Stage.QUEUED, "the stage of one that waits")
    async with started(client, await action(client, "exit 7")) as running:
        await running.end()
        operation = await _get(client, running.name)
    expect_equal(response_of(operation).result.exit_code, 7, "the exit code that GetOperation gives")


@behaviour(12, "ListOperations names the operations of the instance, page by page", execution=True)
async def list_operations(client: Client) -> None:
    """Three that wait are among them, whatever the size of the pages, and each comes once."""
    async with (
        started(client, await parked(client)) as one,
        started(client, await parked(client)) as two,
        started(client, await parked(client)) as three,
    ):
        listed: list[str] = []
        token = ""
        while True:
            request = operations_pb2.ListOperationsRequest(name=client.instance, page_size=20, page_token=token)
            answer = await client.call("ListOperations", request)
            listed.extend(operation.name for operation in answer.operations)
            token = answer.next_page_token
            if not token:
                break
        for waiting in (one, two, three):
            expect_equal(listed.count(waiting.name), 1, f"how often ListOperations names {waiting.name}")
    await run(client, "true")
