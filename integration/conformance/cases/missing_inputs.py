"""Behaviours 1 to 4: what Execute says of blobs that are not there."""

from __future__ import annotations

from google.rpc import status_pb2

from integration.conformance.actions import Stage, action, execute, run, started, status_of_execute, succeeded
from integration.conformance.blobs import SHA256, digest_of, fresh, resource
from integration.conformance.case import Phase, behaviour
from integration.conformance.cases.slots import all_busy, evict
from integration.conformance.client import Client
from integration.conformance.expect import FAILED_PRECONDITION, expect, expect_code, expect_equal, shown, violations_of
from integration.conformance.inputs import Inputs
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2


def expect_named(status: status_pb2.Status, what: str, *subjects: str) -> None:
    """Hold a status to behaviours 1 to 3: all missing blobs, in one list, and nothing else."""
    expect_code(status, what, FAILED_PRECONDITION)
    expect_equal(
        sum("PreconditionFailure" in detail.type_url for detail in status.details), 1, f"{what}: PreconditionFailures"
    )
    violations = violations_of(status)
    expect_equal({violation.type for violation in violations}, {"MISSING"}, f"{what}: violation types")
    named = {violation.subject for violation in violations}
    expect(
        named == set(subjects),
        f"{what}: expected {len(subjects)} subjects, got {len(named)};"
        f" not named: {sorted(set(subjects) - named)[:3]}, named wrongly: {sorted(named - set(subjects))[:3]}",
    )


@behaviour(1, "a missing Action is FAILED_PRECONDITION with a MISSING violation", execution=True)
async def missing_action(client: Client) -> None:
    """An Action that was never uploaded is something that the client can put right, so it is named like any input."""
    digest = digest_of(fresh())
    expect_named(await status_of_execute(client, digest), "Execute without its Action", resource(digest))


@behaviour(1, "a missing Command is FAILED_PRECONDITION with a MISSING violation", execution=True)
async def missing_command(client: Client) -> None:
    """The Command is named by its digest."""
    command = digest_of(fresh())
    (root,) = await client.put(re_pb2.Directory())
    (digest,) = await client.put(re_pb2.Action(command_digest=command, input_root_digest=root, salt=fresh(8)))
    expect_named(await status_of_execute(client, digest), "Execute without its Command", resource(command))


@behaviour(1, "a missing input Directory is FAILED_PRECONDITION with a MISSING violation", execution=True)
async def missing_directory(client: Client) -> None:
    """A Directory that the input root names but that is not stored."""
    leaf = re_pb2.Directory(files=[re_pb2.FileNode(name=fresh(8).hex(), digest=digest_of(b""))])
    encoded = leaf.SerializeToString(deterministic=True)
    inputs = Inputs(files={f"deep/er/{leaf.files[0].name}": b""})
    digest = await action(client, "true", inputs=inputs, without=[encoded])
    expect_named(await status_of_execute(client, digest), "Execute without a Directory", resource(digest_of(encoded)))


@behaviour(1, "a missing input blob is FAILED_PRECONDITION with a MISSING violation, never NOT_FOUND", execution=True)
async def missing_file(client: Client) -> None:
    """A file that is nowhere; the same action runs once it has been uploaded."""
    data = fresh()
    digest = await action(client, "test -s a/file", inputs=Inputs(files={"a/file": data}), without=[data])
    expect_named(await status_of_execute(client, digest), "Execute without an input", resource(digest_of(data)))
    await client.put(data)
    await succeeded(client, await execute(client, digest))


@behaviour(1, "subjects spell the digest function where the hash does not tell it", execution=True)
async def missing_blake3(client: Client) -> None:
    """BLAKE3 digests look like those of SHA256, so their subject is blobs/blake3/{hash}/{size}."""
    blake3 = re_pb2.DigestFunction.BLAKE3
    client.require_function(blake3)
    data = fresh()
    digest = await action(client, "true", inputs=Inputs(files={"file": data}), without=[data], function=blake3)
    status = await status_of_execute(client, digest, digest_function=blake3)
    expect_named(status, "Execute without a BLAKE3 input", resource(digest_of(data, blake3), function=blake3))


@behaviour(2, "an error about missing blobs holds MISSING violations only", execution=True)
async def only_missing(client: Client) -> None:
    """A Directory and files missing together, on an action with a platform property that would be refused too: one
    violation of another type keeps Bazel from uploading what is missing.
    """
    leaf = re_pb2.Directory(files=[re_pb2.FileNode(name=fresh(8).hex(), digest=digest_of(b""))])
    encoded, data = leaf.SerializeToString(deterministic=True), fresh()
    inputs = Inputs(files={f"d/{leaf.files[0].name}": b"", "e/file": data})
    digest = await action(client, "true", inputs=inputs, without=[encoded, data])
    status = await status_of_execute(client, digest)
    expect_named(status, "Execute without two inputs", resource(digest_of(encoded)), resource(digest_of(data)))


@behaviour(3, "all missing blobs of the input tree are named in one reply", execution=True)
async def all_missing(client: Client) -> None:
    """500 files in a tree of directories; a client that learns of them one at a time never gets done."""
    files = {f"{place % 7}/{place % 3}/{place}": fresh(20) for place in range(500)}
    digest = await action(client, "true", inputs=Inputs(files=files), without=list(files.values()))
    subjects = [resource(digest_of(data)) for data in files.values()]
    expect_named(await status_of_execute(client, digest), "Execute without 500 inputs", *subjects)


@behaviour(
    4,
    "an input that is evicted while its action waits is named like any missing one",
    execution=True,
    phase=Phase.LAST,
    timeout_seconds=60,
)
async def evicted(client: Client) -> None:
    """The blob is there when the action is accepted, and gone when a worker wants it."""
    client.options.need("store_bytes")
    data = fresh()
    inputs = Inputs(files={"file": data})
    digest = await action(client, "test -s file", inputs=inputs)
    async with all_busy(client, fillers=8) as busy, started(client, digest) as waiting:
        await waiting.reach(Stage.QUEUED)
        await evict(client)
        await client.expect_missing(digest_of(data))
        await busy.release()
        status = (await waiting.end()).status
    # The input root may be gone as well, and what was below it cannot be known then.
    root, blobs = inputs.encoded(SHA256)
    named = {violation.subject for violation in violations_of(status)} & {resource(digest_of(data)), resource(root)}
    expect(bool(named), f"expected the evicted input or the input root to be named, got {shown(status)}")
    expect_named(status, "an evicted input", *named)
    # What is lost is the client's to bring again, and the worker is none the worse for it.
    await client.put(*blobs)
    await run(client, "test -s file", inputs=inputs)
