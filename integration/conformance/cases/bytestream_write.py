"""Behaviours 44 to 48: ByteStream.Write and QueryWriteStatus."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from grpc import aio

from integration.conformance.blobs import digest_of, fresh, packed, show, text
from integration.conformance.case import behaviour
from integration.conformance.client import Client, sent
from integration.conformance.expect import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    OUT_OF_RANGE,
    code_of,
    expect,
    expect_equal,
    expect_in,
    expect_refused,
    fail,
)  # fmt: skip
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2

PIECE = 300_000
"""A part of an upload; its blobs are larger than what servers take for small ones."""


async def _send(client: Client, *messages: bytestream_pb2.WriteRequest) -> int:
    """A write of these messages and no more; the committed size."""
    call = client.sending("Write")
    for message in messages:
        if not await sent(call, message):
            break
    if not call.done():
        await call.done_writing()
    return int((await call).committed_size)


def _piece(name: str, offset: int, data: bytes, *, finish: bool = False) -> bytestream_pb2.WriteRequest:
    return bytestream_pb2.WriteRequest(resource_name=name, write_offset=offset, data=data, finish_write=finish)


async def _query(client: Client, name: str) -> bytestream_pb2.QueryWriteStatusResponse:
    request = bytestream_pb2.QueryWriteStatusRequest(resource_name=name)
    answer: bytestream_pb2.QueryWriteStatusResponse = await client.call("QueryWriteStatus", request)
    return answer


@behaviour(44, "the first message names the resource; later ones may repeat it, not change it")
async def naming(client: Client) -> None:
    """Buck2 repeats it in each message, Bazel does not."""
    data = fresh(2 * PIECE)
    name = client.upload_name(digest_of(data))
    first = _piece(name, 0, data[:PIECE])
    expect_equal(
        await _send(client, first, _piece(name, PIECE, data[PIECE:], finish=True)),
        len(data),
        "committed_size, repeated",
    )
    data = fresh(2 * PIECE)
    name = client.upload_name(digest_of(data))
    first = _piece(name, 0, data[:PIECE])
    expect_equal(
        await _send(client, first, _piece("", PIECE, data[PIECE:], finish=True)), len(data), "committed_size, once"
    )
    data = fresh(2 * PIECE)
    name = client.upload_name(digest_of(data))
    unnamed = _send(client, _piece("", 0, data, finish=True))
    await expect_refused(unnamed, "a write without a resource name", INVALID_ARGUMENT)
    changed = _piece(client.upload_name(digest_of(fresh())), PIECE, data[PIECE:], finish=True)
    await expect_refused(_send(client, _piece(name, 0, data[:PIECE]), changed), "a name that changes", INVALID_ARGUMENT)
    await client.expect_missing(digest_of(data))


@behaviour(44, "write_offset must be where the data belongs")
async def offsets(client: Client) -> None:
    """Gaps and overlaps would make another blob of it, or be kept from being one only by the hash."""
    for wrong in (PIECE - 1, PIECE + 1, 0, -1):
        data = fresh(2 * PIECE)
        name = client.upload_name(digest_of(data))
        write = _send(client, _piece(name, 0, data[:PIECE]), _piece("", wrong, data[PIECE:], finish=True))
        await expect_refused(write, f"write_offset {wrong} after {PIECE} bytes", INVALID_ARGUMENT, OUT_OF_RANGE)
        await client.expect_missing(digest_of(data))
    data = fresh(2 * PIECE)
    name = client.upload_name(digest_of(data))
    ahead = _send(client, _piece(name, PIECE, data[PIECE:], finish=True))
    await expect_refused(
        ahead, "a write that begins in the middle of nothing", INVALID_ARGUMENT, OUT_OF_RANGE, NOT_FOUND
    )


@behaviour(44, "without finish_write nothing is committed")
async def unfinished(client: Client) -> None:
    """Not even when all bytes have come."""
    for size in (100, 2 * PIECE):
        data = fresh(size)
        with suppress(aio.AioRpcError):  # how the call ends is not said, only that nothing is kept
            await _send(client, _piece(client.upload_name(digest_of(data)), 0, data))
        await client.expect_missing(digest_of(data))


@behaviour(44, "finish_write before the last byte, and bytes beyond it, are INVALID_ARGUMENT")
async def wrong_length(client: Client) -> None:
    """The size in the name says where the end is."""
    for size, cut in ((100, 50), (2 * PIECE, PIECE)):
        data = fresh(size)
        name = client.upload_name(digest_of(data))
        await expect_refused(client.write(data[:cut], name=name), f"a write of {cut} of {size} bytes", INVALID_ARGUMENT)
        name = client.upload_name(digest_of(data))
        longer = client.write(data + b"more", name=name)
        await expect_refused(longer, f"a write of {size + 4} bytes for {size}", INVALID_ARGUMENT, OUT_OF_RANGE)
        await client.expect_missing(digest_of(data))


async def _cut_short(client: Client, name: str, data: bytes) -> int:
    """Send the beginning of an upload, break it off, and see how much of it the server has."""
    call = client.sending("Write")
    await sent(call, _piece(name, 0, data[:PIECE]))
    await sent(call, _piece("", PIECE, data[PIECE : 2 * PIECE]))
    await asyncio.sleep(0.3)
    call.cancel()
    for _ in range(20):
        try:
            answer = await _query(client, name)
        except aio.AioRpcError as error:
            expect_in(code_of(error), (NOT_FOUND,), "the status of QueryWriteStatus of a broken upload")
            return 0
        expect(not answer.complete, "expected a broken upload not to be complete, QueryWriteStatus says that it is")
        if answer.committed_size:
            return int(answer.committed_size)
        await asyncio.sleep(0.1)
    return 0


@behaviour(44, "a stream cut short commits nothing and can be resumed")
async def resumed(client: Client) -> None:
    """From where QueryWriteStatus says; a server may say 0."""
    data = fresh(4 * PIECE)
    digest = digest_of(data)
    name = client.upload_name(digest)
    kept = await _cut_short(client, name, data)
    await client.expect_missing(digest)
    committed = await _send(client, _piece(name, kept, data[kept:], finish=True))
    expect_equal(committed, len(data), f"committed_size of an upload resumed at {kept}")
    expect_equal(await client.fetch(digest) == data, True, "the blob of a resumed upload is right")


async def _first_only(client: Client, name: str, data: bytes) -> int:
    """Send one message of an upload and wait for the answer, the stream still open."""
    call: Any = client.sending("Write")
    await sent(call, _piece(name, 0, data))
    try:
        async with asyncio.timeout(5):
            answer = await call
    except TimeoutError:
        call.cancel()
        fail("expected an answer at once to a write of a blob that exists, got none in 5 s while the stream was open")
    return int(answer.committed_size)


@behaviour(45, "writing a blob that exists returns at once with its size")
async def exists(client: Client) -> None:
    """After the first message, the rest unread."""
    data = fresh(4 * PIECE)
    (digest,) = await client.put(data)
    expect_equal(await _first_only(client, client.upload_name(digest), data[:1000]), len(data), "committed_size")
    small = fresh(50)
    (digest,) = await client.put(small)
    expect_equal(await client.write(small), len(small), "committed_size of a small blob that exists")


@behaviour(45, "writing a blob that exists, compressed, returns at once with -1")
async def exists_compressed(client: Client) -> None:
    """-1 says that the rest need not be sent, in a count that clients cannot take for bytes."""
    data = fresh(4 * PIECE)
    (digest,) = await client.put(data)
    for compressor in client.compressors():
        name = client.upload_name(digest, compressor=compressor)
        committed = await _first_only(client, name, packed(data, compressor)[:1000])
        expect_equal(committed, -1, f"committed_size with compressor {compressor}")


@behaviour(46, "a completed compressed write returns the compressed byte count")
async def compressed_count(client: Client) -> None:
    """What was sent, as Buck2 and Bazel check it; for small and large blobs."""
    for compressor in client.compressors():
        for lines in (20, 40_000):
            data = text(lines)
            wire = packed(data, compressor)
            name = client.upload_name(digest_of(data), compressor=compressor)
            committed = await client.write(wire, name=name, chunk_bytes=max(50, len(wire) // 3))
            expect_equal(committed, len(wire), f"committed_size of {len(data)} bytes with compressor {compressor}")


@behaviour(46, "siso gets the uncompressed size of a completed compressed write")
async def siso_count(client: Client) -> None:
    """It is known by the tool name in the request metadata, and compares with the size of the blob."""
    metadata = re_pb2.RequestMetadata(tool_details=re_pb2.ToolDetails(tool_name="siso", tool_version="1"))
    header = (("build.bazel.remote.execution.v2.requestmetadata-bin", metadata.SerializeToString()),)
    for compressor in client.compressors():
        data = text()
        name = client.upload_name(digest_of(data), compressor=compressor)
        committed = await client.write(packed(data, compressor), name=name, metadata=header)
        expect_equal(committed, len(data), f"committed_size for siso with compressor {compressor}")


@behaviour(47, "offsets of a compressed write go up by compressed bytes")
async def compressed_offsets(client: Client) -> None:
    """A wrong one is refused as in any other write."""
    for compressor in client.compressors():
        data = fresh(PIECE) + text()
        wire = packed(data, compressor)
        name = client.upload_name(digest_of(data), compressor=compressor)
        half = len(wire) // 2
        wrong = _send(client, _piece(name, 0, wire[:half]), _piece("", half + 7, wire[half:], finish=True))
        await expect_refused(wrong, "a compressed write with a gap", INVALID_ARGUMENT, OUT_OF_RANGE)
        name = client.upload_name(digest_of(data), compressor=compressor)
        await _send(client, _piece(name, 0, wire[:half]), _piece("", half, wire[half:], finish=True))
        expect_equal(await client.fetch(digest_of(data)) == data, True, "the blob of a compressed write is right")


@behaviour(47, "a compressed write resumes at an offset of the uncompressed blob")
async def compressed_resume(client: Client) -> None:
    """The client compresses anew what is missing from there on."""
    compressor = client.compressors()[0]
    data = fresh(4 * PIECE)
    digest = digest_of(data)
    name = client.upload_name(digest, compressor=compressor)
    wire = packed(data, compressor)
    kept = await _cut_short(client, name, wire)
    expect(kept <= len(data), f"expected an offset in the blob of {len(data)} bytes, QueryWriteStatus says {kept}")
    rest = packed(data[kept:], compressor)
    half = len(rest) // 2
    await _send(client, _piece(name, kept, rest[:half]), _piece("", kept + half, rest[half:], finish=True))
    expect_equal(
        await client.fetch(digest) == data, True, f"the blob of a compressed upload resumed at {kept} is right"
    )


@behaviour(48, "QueryWriteStatus of an existing blob is complete, with its size")
async def query_complete(client: Client) -> None:
    """Whatever the upload is called."""
    (digest,) = await client.put(fresh(2 * PIECE))
    answer = await _query(client, client.upload_name(digest))
    expect_equal(
        (answer.committed_size, answer.complete), (digest.size_bytes, True), f"QueryWriteStatus of {show(digest)}"
    )


@behaviour(48, "QueryWriteStatus of a partial upload is the offset to resume at")
async def query_partial(client: Client) -> None:
    """Not beyond what was sent, not complete, and a write from there is taken."""
    data = fresh(4 * PIECE)
    name = client.upload_name(digest_of(data))
    kept = await _cut_short(client, name, data)
    expect(0 < kept <= 2 * PIECE, f"expected an offset up to the {2 * PIECE} bytes that were sent, got {kept}")
    expect_equal(await _send(client, _piece(name, kept, data[kept:], finish=True)), len(data), "committed_size")
    answer = await _query(client, name)
    expect_equal((answer.committed_size, answer.complete), (len(data), True), "QueryWriteStatus after the end")
