"""Behaviours 16 to 19 and 22: priorities, timeouts, and how commands end."""

from __future__ import annotations

import asyncio

from google.protobuf import duration_pb2
from grpc import aio

from integration.conformance.actions import (
    Stage,
    action,
    content_of,
    execute,
    run,
    started,
    status_of_execute,
    stderr_of,
    stdout_of,
    succeeded,
)
from integration.conformance.blobs import fresh
from integration.conformance.case import NotSupported, Phase, behaviour
from integration.conformance.cases.processes import marker_script
from integration.conformance.cases.slots import all_busy
from integration.conformance.client import Client
from integration.conformance.expect import (
    DEADLINE_EXCEEDED,
    INVALID_ARGUMENT,
    NOT_FOUND,
    expect,
    expect_code,
    expect_equal,
    expect_offered,
    expect_refused,
)  # fmt: skip
from integration.conformance.inputs import Inputs  # fmt: skip
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

SLOW_INPUTS = [f"{folder}/{name}" for folder in range(40) for name in range(1500)]
"""So many files that laying them out takes longer than a second where files are made one by one. Few messages describe them."""

FOREVER_SECONDS = 10_000_000_000
"""300 years; no server's maximum is longer. Within what a Duration may hold."""


def _ranges(client: Client) -> list[tuple[int, int]]:
    if not client.execution.HasField("execution_priority_capabilities"):
        raise NotSupported("no execution priorities are advertised")
    ranges = client.execution.execution_priority_capabilities.priorities
    return [(one.min_priority, one.max_priority) for one in ranges]


@behaviour(16, "the advertised priorities hold 0 and negative ones", execution=True)
async def priority_ranges(client: Client) -> None:
    """0 is what a client sends that says nothing, and lower runs sooner. Bazel refuses to send what is not advertised."""
    ranges = _ranges(client)
    for priority in (-1, 0, 1):
        expect(any(low <= priority <= high for low, high in ranges), f"expected priority {priority} to be in {ranges}")


@behaviour(16, "actions of lower priority numbers run sooner", execution=True, phase=Phase.ALONE, timeout_seconds=60)
async def priority_order(client: Client) -> None:
    """Six actions wait while all slots are taken; they begin in the order of their priorities, not of their arrival."""
    _ranges(client)
    priorities = [7, 0, -7, 7, 0, -7]
    digests = [await action(client, "sleep 0.3") for _ in priorities]
    async with all_busy(client, fillers=6) as busy, asyncio.TaskGroup() as tasks:
        running = []
        for digest, priority in zip(digests, priorities, strict=True):
            policy = re_pb2.ExecutionPolicy(priority=priority)
            running.append(tasks.create_task(execute(client, digest, execution_policy=policy)))
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        await busy.release()
    begun = []
    for task, priority in zip(running, priorities, strict=True):
        result = await succeeded(client, task.result())
        begun.append((result.execution_metadata.execution_start_timestamp.ToNanoseconds(), priority))
    expect_equal([priority for _time, priority in sorted(begun)], sorted(priorities), "the order of execution")


@behaviour(17, "a timeout longer than the server's maximum is INVALID_ARGUMENT", execution=True)
async def timeout_too_long(client: Client) -> None:
    """Better told at once than cut short in the end. A negative one is wrong too."""
    status = await status_of_execute(client, await action(client, "true", timeout_seconds=FOREVER_SECONDS))
    expect_code(status, f"a timeout of {FOREVER_SECONDS} s", INVALID_ARGUMENT, 0)
    expect_offered(status.code == INVALID_ARGUMENT, "there is no maximum timeout")


@behaviour(17, "a negative timeout is INVALID_ARGUMENT", execution=True)
async def timeout_negative(client: Client) -> None:
    """A duration is signed, a timeout is not."""
    digest = await action(client, "true")
    message = re_pb2.Action.FromString(await client.fetch(digest))
    message.timeout.CopyFrom(duration_pb2.Duration(seconds=-5))
    (digest,) = await client.put(message)
    status = await status_of_execute(client, digest)
    # REAPI does not say what a negative one means; whatever it means, it is no fault of the server.
    expect_code(status, "a timeout of -5 s", INVALID_ARGUMENT, DEADLINE_EXCEEDED, 0)
    expect_offered(status.code == INVALID_ARGUMENT, "negative timeouts are taken")


@behaviour(17, "without a timeout the server's default applies", execution=True)
async def timeout_default(client: Client) -> None:
    """Which is long enough for an action of two seconds."""
    await run(client, "sleep 2")


@behaviour(
    17,
    "the clock of the timeout runs only while the command runs",
    execution=True,
    phase=Phase.ALONE,
    timeout_seconds=60,
)
async def timeout_clock(client: Client) -> None:
    """An action with a timeout of 2 s waits longer than that for a slot, and runs all the same."""
    digest = await action(client, "sleep 0.5", timeout_seconds=2, inputs=Inputs(files={"f": fresh()}))
    async with all_busy(client) as busy, started(client, digest) as waiting:
        await asyncio.sleep(3.5)
        expect(not waiting.latest.done, "expected the action to wait for a slot, it ended")
        await busy.release()
        await succeeded(client, await waiting.end())


@behaviour(
    17,
    "laying out the inputs does not count towards the timeout",
    execution=True,
    phase=Phase.ALONE,
    timeout_seconds=60,
)
async def timeout_staging(client: Client) -> None:
    """A command that takes 0.3 s has a timeout of 1 s and 60,000 input files, which are one blob and one directory often."""
    inputs = Inputs(files=dict.fromkeys(SLOW_INPUTS, fresh()))
    digest = await action(client, "sleep 0.3; test -f 0/0 && test -f 39/1499", timeout_seconds=1, inputs=inputs)
    async with started(client, digest) as running:
        try:
            async with asyncio.timeout(40):
                response = await running.end()
        except TimeoutError:
            raise NotSupported("laying out 60,000 files takes more than 40 s") from None
    await succeeded(client, response)


@behaviour(18, "a timed-out action is DEADLINE_EXCEEDED and still brings stdout, stderr and outputs", execution=True)
async def timed_out(client: Client) -> None:
    """What a test printed before it hung is what its author needs."""
    script = "echo to stdout; echo to stderr >&2; echo made > out; sleep 60"
    digest = await action(client, script, outputs=["out", "never"], timeout_seconds=1)
    response = await execute(client, digest)
    expect_code(response.status, "ExecuteResponse.status of a timed-out action", DEADLINE_EXCEEDED)
    # ExecuteResponse.result is optional beside an error.
    expect_offered(response.HasField("result"), "timed-out actions have no result")
    expect_offered(bool(response.result.output_files), "results of timed-out actions have no outputs")
    expect_equal(await stdout_of(client, response.result), b"to stdout\n", "stdout of a timed-out action")
    expect_equal(await stderr_of(client, response.result), b"to stderr\n", "stderr of a timed-out action")
    expect_equal(await content_of(client, response.result, "out"), b"made\n", "the output of a timed-out action")


@behaviour(18, "a timeout ends the whole process tree", execution=True)
async def timed_out_tree(client: Client) -> None:
    """The response does not wait for children that hold on."""
    _marker, script = marker_script()
    digest = await action(client, f"{script}; trap '' TERM; sleep 60; sleep 60", timeout_seconds=1)
    async with asyncio.timeout(20):
        expect_code(
            (await execute(client, digest)).status, "a timed-out action that ignores SIGTERM", DEADLINE_EXCEEDED
        )


@behaviour(19, "death by a signal is exit code 128+n and a message that says so", execution=True)
async def signalled(client: Client) -> None:
    """Of the command's own doing, so it is a result with status OK."""
    for name, number in (("SEGV", 11), ("ABRT", 6)):
        response = await execute(client, await action(client, f"ulimit -c 0; kill -{name} $$"))
        expect_code(response.status, f"the status after SIG{name}", 0)
        expect_equal(response.result.exit_code, 128 + number, f"the exit code after SIG{name}")
        said = response.message
        # ExecuteResponse.message is free text, for the person who sees it.
        expect_offered(bool(said), f"there is no message about SIG{name}")
        expect("signal" in said.lower() or name in said, f"expected the message to name SIG{name}, got {said!r}")


@behaviour(19, "an action killed from outside is never cached as 137 or 143", execution=True)
async def killed(client: Client) -> None:
    """SIGKILL and SIGTERM are what a kernel out of memory and a platform that stops a machine send. Whether it was them
    cannot be told from here, so no verdict on the status; but nothing of it may be kept.
    """
    for number in (9, 15):
        digest = await action(client, f"kill -{number} $$")
        await status_of_execute(client, digest)
        if number == 9 and await _caches_failures(client):
            raise NotSupported("failed commands are cached, whatever ended them")
        await expect_refused(client.cached(digest), f"GetActionResult after signal {number}", NOT_FOUND)


@behaviour(
    19,
    "an action that the platform kills is run again, not returned as 137",
    execution=True,
    phase=Phase.ALONE,
    timeout_seconds=60,
)
async def killed_by_platform(client: Client) -> None:
    """The first run is killed from outside; the client sees only that it took longer."""
    hook = client.options.need_hook("kill_action_command")
    marker, _script = marker_script()
    digest = await action(client, f": {marker}; sleep 4; echo lived", inputs=Inputs(files={"f": fresh()}))
    async with started(client, digest) as running:
        await running.reach(Stage.EXECUTING)
        await hook({"MARKER": marker})
        result = await succeeded(client, await running.end())
    expect_equal(await stdout_of(client, result), b"lived\n", "stdout of the second run")


async def _caches_failures(client: Client) -> bool:
    """Whether results with exit codes other than 0 are cached, which REAPI does not forbid."""
    digest = await action(client, "exit 41")
    await execute(client, digest)
    try:
        await client.cached(digest)
    except aio.AioRpcError:
        return False
    return True


@behaviour(22, "a non-zero exit code comes with status OK and is not cached", execution=True)
async def exit_code(client: Client) -> None:
    """A failing compiler is a result, not a failure of the service; and the next try runs again."""
    digest = await action(client, "echo why; exit 42")
    for _ in range(2):
        response = await execute(client, digest)
        expect_code(response.status, "the status of exit code 42", 0)
        expect_equal(response.result.exit_code, 42, "the exit code")
        expect_equal(await stdout_of(client, response.result), b"why\n", "stdout of a failing command")
        # Bazel never reads such a result back, others do; REAPI leaves it to the server.
        expect_offered(not response.cached_result, "failing commands are cached")
    await expect_refused(client.cached(digest), "GetActionResult of a failing command", NOT_FOUND)
