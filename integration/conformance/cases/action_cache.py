"""Behaviours 51 and 52: the action cache."""

from __future__ import annotations

from grpc import aio

from integration.conformance.blobs import digest_of, fresh, key
from integration.conformance.case import NotSupported, Phase, behaviour
from integration.conformance.client import CHUNK_BYTES, Client, connected
from integration.conformance.expect import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    PERMISSION_DENIED,
    code_of,
    expect_equal,
    expect_in,
    expect_offered,
    expect_refused,
)
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2


async def _update(client: Client, action: re_pb2.Digest, result: re_pb2.ActionResult) -> None:
    if not client.cache.action_cache_update_capabilities.update_enabled:
        raise NotSupported("the action cache cannot be updated by clients")
    request = re_pb2.UpdateActionResultRequest(action_digest=action, action_result=result)
    await client.call("UpdateActionResult", request)


async def _expect_incomplete(client: Client, action: re_pb2.Digest, result: re_pb2.ActionResult, what: str) -> None:
    """Hold the server to not giving out a result while a blob is missing. It may refuse to take such a result, too."""
    try:
        await _update(client, action, result)
    except aio.AioRpcError as error:
        expect_in(code_of(error), (NOT_FOUND, FAILED_PRECONDITION, INVALID_ARGUMENT), f"an update without {what}")
    await expect_refused(client.cached(action), f"GetActionResult without {what}", NOT_FOUND)


async def _fresh_action(client: Client) -> re_pb2.Digest:
    """The digest of an Action that is stored and was never run."""
    command, root = await client.put(re_pb2.Command(arguments=["true"]), re_pb2.Directory())
    message = re_pb2.Action(command_digest=command, input_root_digest=root, salt=fresh(16))
    return (await client.put(message))[0]


@behaviour(51, "an identity that may not update the action cache gets PERMISSION_DENIED, and is told so")
async def read_only(client: Client) -> None:
    """It reads, its capabilities say update_enabled=false, and its writes change nothing."""
    token = client.options.need("read_only_token")
    action = await _fresh_action(client)
    (stdout,) = await client.put(fresh())
    await _update(client, action, re_pb2.ActionResult(stdout_digest=stdout))
    async with connected(client.options, token=token) as reader:
        await reader.connect()
        enabled = reader.cache.action_cache_update_capabilities.update_enabled
        expect_equal(enabled, False, "update_enabled for someone who may not")
        expect_equal(
            key((await reader.cached(action)).stdout_digest), key(stdout), "what someone who may not write reads"
        )
        planted = re_pb2.UpdateActionResultRequest(action_digest=action, action_result=re_pb2.ActionResult(exit_code=1))
        await expect_refused(reader.call("UpdateActionResult", planted), "UpdateActionResult", PERMISSION_DENIED)
    expect_equal((await client.cached(action)).exit_code, 0, "the result after a refused update")


@behaviour(51, "update_enabled tells whether UpdateActionResult works")
async def update_enabled(client: Client) -> None:
    """For the identity of the run."""
    action = await _fresh_action(client)
    result = re_pb2.ActionResult(stdout_raw=b"kept")
    request = re_pb2.UpdateActionResultRequest(action_digest=action, action_result=result)
    if client.cache.action_cache_update_capabilities.update_enabled:
        await client.call("UpdateActionResult", request)
        expect_equal((await client.cached(action)).stdout_raw, b"kept", "the result that was written")
    else:
        await expect_refused(client.call("UpdateActionResult", request), "UpdateActionResult", PERMISSION_DENIED)


@behaviour(52, "GetActionResult of an unknown action is NOT_FOUND")
async def unknown(client: Client) -> None:
    """Known Action or not."""
    await expect_refused(client.cached(digest_of(fresh())), "GetActionResult of an unknown digest", NOT_FOUND)
    await expect_refused(
        client.cached(await _fresh_action(client)), "GetActionResult of an action never run", NOT_FOUND
    )


@behaviour(52, "a result of which an output, stdout or stderr is not stored is NOT_FOUND")
async def incomplete(client: Client) -> None:
    """A client that is told of a result uploads nothing and runs nothing. With the blob there it is found."""
    for part in ("file", "stdout", "stderr"):
        data = fresh()
        gone = digest_of(data)
        result = re_pb2.ActionResult()
        match part:
            case "file":
                result.output_files.add(path="out", digest=gone)
            case "stdout":
                result.stdout_digest.CopyFrom(gone)
            case _:
                result.stderr_digest.CopyFrom(gone)
        action = await _fresh_action(client)
        await _expect_incomplete(client, action, result, f"its {part}")
        await client.put(data)
        await _update(client, action, result)
        await client.cached(action)


@behaviour(52, "a result of which a Tree, or a file inside a Tree, is not stored is NOT_FOUND")
async def incomplete_tree(client: Client) -> None:
    """Files at the top of the Tree and below."""
    top, deep = fresh(), fresh()
    child = re_pb2.Directory(files=[re_pb2.FileNode(name="deep", digest=digest_of(deep))])
    root = re_pb2.Directory(
        files=[re_pb2.FileNode(name="top", digest=digest_of(top))],
        directories=[re_pb2.DirectoryNode(name="d", digest=digest_of(child.SerializeToString(deterministic=True)))],
    )
    tree = re_pb2.Tree(root=root, children=[child])
    encoded = tree.SerializeToString(deterministic=True)
    action = await _fresh_action(client)
    result = re_pb2.ActionResult()
    result.output_directories.add(path="t", tree_digest=digest_of(encoded))
    for blob, what in ((encoded, "its Tree"), (top, "a file of the Tree's root"), (deep, "a file deep in the Tree")):
        await _expect_incomplete(client, action, result, what)
        await client.put(blob)
    await _update(client, action, result)
    await client.cached(action)


@behaviour(
    52, "GetActionResult extends the lifetimes of all that the result names", phase=Phase.LAST, timeout_seconds=60
)
async def lifetimes(client: Client) -> None:
    """The client will read the outputs later, maybe much later, and never asks for them before that."""
    client.options.need("store_bytes")
    inner, stdout = fresh(), fresh()
    tree = re_pb2.Tree(root=re_pb2.Directory(files=[re_pb2.FileNode(name="f", digest=digest_of(inner))]))
    inner_digest, stdout_digest, tree_digest = await client.put(inner, stdout, tree)
    action = await _fresh_action(client)
    result = re_pb2.ActionResult(stdout_digest=stdout_digest)
    result.output_directories.add(path="t", tree_digest=tree_digest)
    await _update(client, action, result)
    third = client.options.store_bytes // 3
    for _ in range(6):
        await client.cached(action)
        for _ in range(max(1, third // (2 << 20))):
            await client.put(fresh(CHUNK_BYTES), fresh(CHUNK_BYTES))
    await client.expect_stored(inner_digest, stdout_digest, tree_digest)


@behaviour(52, "inlining hints of GetActionResult are honoured")
async def inlined(client: Client) -> None:
    """stdout, stderr and named files; what was not asked for and was kept by digest stays out."""
    stdout, stderr, one, two = await client.put(b"out" + fresh(), b"err" + fresh(), b"one" + fresh(), b"two" + fresh())
    result = re_pb2.ActionResult(stdout_digest=stdout, stderr_digest=stderr)
    result.output_files.add(path="one", digest=one)
    result.output_files.add(path="two", digest=two)
    action = await _fresh_action(client)
    await _update(client, action, result)
    got = await client.cached(action, inline_stdout=True, inline_stderr=True, inline_output_files=["one"])
    # GetActionResultRequest.inline_stdout and the rest are hints.
    hinted = any(file.contents for file in got.output_files) or got.stdout_raw or got.stderr_raw
    expect_offered(bool(hinted), "no hint to inline is followed")
    expect_equal(
        (got.stdout_raw[:3], got.stderr_raw[:3]), (b"out", b"err"), "the beginnings of stdout_raw and stderr_raw"
    )
    contents = {file.path: file.contents[:3] for file in got.output_files}
    expect_equal(contents, {"one": b"one", "two": b""}, "the beginnings of inlined files")
    for hints, wanted in (
        ({}, (b"", b"")),
        ({"inline_stdout": True}, (b"out", b"")),
        ({"inline_stderr": True}, (b"", b"err")),
    ):
        got = await client.cached(action, **hints)
        expect_equal((got.stdout_raw[:3], got.stderr_raw[:3]), wanted, f"stdout_raw and stderr_raw with {hints}")


@behaviour(52, "a large output is not inlined into more than a message holds")
async def inlined_large(client: Client) -> None:
    """A hint may be ignored; an answer that no client can receive is worse."""
    (large,) = await client.put(fresh(1 << 20) * 6)
    result = re_pb2.ActionResult(stdout_digest=large)
    action = await _fresh_action(client)
    await _update(client, action, result)
    got = await client.cached(action, inline_stdout=True)
    expect_equal(key(got.stdout_digest), key(large), "the digest of a large stdout")


@behaviour(52, "the last result written is the one that is read")
async def overwritten(client: Client) -> None:
    """At once."""
    action = await _fresh_action(client)
    for text in (b"first", b"second"):
        await _update(client, action, re_pb2.ActionResult(stdout_raw=text))
        expect_equal((await client.cached(action)).stdout_raw, text, "the result just written")
