"""Behaviours 47, 49 and 50: ByteStream.Read, and what decompression must not do."""

from __future__ import annotations

import zlib

from integration.conformance.blobs import digest_of, fresh, key, packed, text, unpacked
from integration.conformance.case import NotSupported, behaviour
from integration.conformance.client import Client
from integration.conformance.expect import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    OK,
    OUT_OF_RANGE,
    expect,
    expect_equal,
    expect_refused,
)
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2

SIZES = (1000, 3_000_000)
"""A blob of one message and one of several."""
MESSAGE_BYTES = 4 << 20


@behaviour(47, "a compressed read with read_limit is INVALID_ARGUMENT")
async def compressed_limit(client: Client) -> None:
    """Nobody could say whether it counts bytes before or after."""
    for size in SIZES:
        (digest,) = await client.put(fresh(size))
        for compressor in client.compressors():
            name = client.blob_name(digest, compressor=compressor)
            await expect_refused(client.read(name, limit=10), "a compressed read with read_limit 10", INVALID_ARGUMENT)


@behaviour(47, "read_offset of a compressed read counts uncompressed bytes")
async def compressed_offset(client: Client) -> None:
    """What follows it in the blob comes, compressed on its own."""
    for lines in (20, 60_000):
        data = text(lines)
        (digest,) = await client.put(data)
        for compressor in client.compressors():
            for offset in (0, 1, len(data) // 2, len(data)):
                got = await client.read(client.blob_name(digest, compressor=compressor), offset=offset)
                rest = unpacked(got, compressor) if got else b""
                expect_equal(
                    rest == data[offset:], True, f"the blob from {offset} on is right with compressor {compressor}"
                )


@behaviour(49, "read_offset at the end gives nothing and OK, beyond it OUT_OF_RANGE")
async def offsets(client: Client) -> None:
    """A negative one is out of range too."""
    for size in SIZES:
        data = fresh(size)
        (digest,) = await client.put(data)
        name = client.blob_name(digest)
        for offset in (0, 1, size // 2, size - 1, size):
            got = await client.read(name, offset=offset)
            expect_equal(got == data[offset:], True, f"the blob of {size} bytes from {offset} on is right")
        await expect_refused(
            client.read(name, offset=size + 1), f"read_offset {size + 1} of {size} bytes", OUT_OF_RANGE
        )
        await expect_refused(client.read(name, offset=-1), "read_offset -1", OUT_OF_RANGE, INVALID_ARGUMENT)


@behaviour(49, "read_limit gives so many bytes and no more")
async def limits(client: Client) -> None:
    """From the beginning, from the middle, and beyond the end; 0 is no limit, a negative one is refused."""
    for size in SIZES:
        data = fresh(size)
        (digest,) = await client.put(data)
        name = client.blob_name(digest)
        for offset, limit in ((0, 1), (0, size), (5, size // 2), (size - 3, 100), (0, size * 2), (0, 0), (7, 0)):
            got = await client.read(name, offset=offset, limit=limit)
            wanted = data[offset : offset + limit] if limit else data[offset:]
            expect_equal(len(got), len(wanted), f"bytes of a read from {offset} with limit {limit} of {size}")
            expect(got == wanted, f"expected the bytes from {offset} with limit {limit} of {size}, got others")
        await expect_refused(client.read(name, limit=-1), "read_limit -1", INVALID_ARGUMENT, OUT_OF_RANGE)


@behaviour(49, "Read of an unknown blob is NOT_FOUND")
async def unknown(client: Client) -> None:
    """Small or large, compressed or not."""
    for size in SIZES:
        digest = digest_of(fresh(size))
        await expect_refused(client.read(client.blob_name(digest)), f"Read of an unknown blob of {size}", NOT_FOUND)
        for compressor in client.cache.supported_compressors:
            if compressor:
                name = client.blob_name(digest, compressor=compressor)
                await expect_refused(client.read(name), f"compressed Read of an unknown blob of {size}", NOT_FOUND)


@behaviour(49, "a large blob comes in messages that every client takes, the first before the last is read")
async def streamed(client: Client) -> None:
    """32 MiB, in messages of at most 4 MiB; a client that goes away after the first leaves the server unharmed."""
    data = fresh(1 << 20) * 32
    (digest,) = await client.put(data)
    name = client.blob_name(digest)
    sizes = []
    offset = 0
    async for answer in client.call("Read", bytestream_pb2.ReadRequest(resource_name=name)):
        expect(data.startswith(answer.data, offset), f"expected the bytes from {offset} on, got others")
        sizes.append(len(answer.data))
        offset += len(answer.data)
    expect_equal(offset, len(data), "bytes of the blob")
    expect(max(sizes) < MESSAGE_BYTES, f"expected messages below 4 MiB, the largest has {max(sizes)} bytes")
    for _ in range(5):
        call = client.call("Read", bytestream_pb2.ReadRequest(resource_name=name))
        first = await call.read()
        expect(0 < len(first.data) < len(data), f"expected a part of the blob first, got {len(first.data)} bytes")
        call.cancel()


def _bomb(compressor: int) -> bytes:
    """A few bytes that become 256 MiB of zeros."""
    if compressor == re_pb2.Compressor.DEFLATE:
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        zeros = bytes(1 << 20)
        return b"".join([deflate.compress(zeros) for _ in range(256)]) + deflate.flush()
    return packed(bytes(256 << 20), compressor)


@behaviour(50, "decompression stops when the output exceeds the declared size")
async def bombs(client: Client) -> None:
    """256 MiB of zeros for a blob that is said to have 1,000 bytes, and for one of 3 MB."""
    for compressor in client.compressors():
        bomb = _bomb(compressor)
        for size in SIZES:
            digest = digest_of(fresh(size))
            name = client.upload_name(digest, compressor=compressor)
            what = f"256 MiB for a blob of {size} bytes with compressor {compressor}"
            await expect_refused(client.write(bomb, name=name), what, INVALID_ARGUMENT)
            await client.expect_missing(digest)


@behaviour(50, "decompression of a batch stops when the output exceeds the declared size")
async def batch_bombs(client: Client) -> None:
    """The same in BatchUpdateBlobs, where each blob has a status of its own; the others are stored."""
    compressors = [number for number in client.cache.supported_batch_update_compressors if number]
    if not compressors:
        raise NotSupported("no compressor for batches is advertised")
    for compressor in compressors:
        data, victim = fresh(), digest_of(fresh(1000))
        request = re_pb2.BatchUpdateBlobsRequest()
        request.requests.add(digest=victim, data=_bomb(compressor), compressor=compressor)
        request.requests.add(digest=digest_of(data), data=data)
        answer = await client.call("BatchUpdateBlobs", request)
        codes = {key(response.digest): response.status.code for response in answer.responses}
        wanted = {key(victim): INVALID_ARGUMENT, key(digest_of(data)): OK}
        expect_equal(codes, wanted, f"statuses of a batch with 256 MiB for 1000 bytes with compressor {compressor}")
        await client.expect_missing(victim)


@behaviour(50, "compressed data that give another blob are INVALID_ARGUMENT and nothing is stored")
async def mismatches(client: Client) -> None:
    """Too short, too long, of the wrong content, cut off, and no compressed data at all."""
    for compressor in client.compressors():
        for size in SIZES:
            data = fresh(size)
            digest = digest_of(data)
            for what, wire in (
                ("too short", packed(data[:-1], compressor)),
                ("too long", packed(data + b"x", compressor)),
                ("of other content", packed(bytes(size), compressor)),
                ("cut off", packed(data, compressor)[:-10]),
                ("no compressed data", b"\xff" * 500),
                ("nothing", b""),
            ):
                name = client.upload_name(digest, compressor=compressor)
                said = f"data that are {what} with compressor {compressor} and {size} bytes"
                await expect_refused(client.write(wire, name=name), said, INVALID_ARGUMENT)
            await client.expect_missing(digest)
