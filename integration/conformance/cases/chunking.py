"""Behaviour 54: SplitBlob and SpliceBlob."""

from __future__ import annotations

import random
from collections.abc import Sequence

from grpc import aio

from integration.conformance.actions import file_of, run
from integration.conformance.blobs import digest_of, fresh, key
from integration.conformance.case import NotSupported, behaviour
from integration.conformance.client import Client
from integration.conformance.expect import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    UNIMPLEMENTED,
    code_of,
    expect,
    expect_equal,
    expect_refused,
)
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

FAST_CDC = re_pb2.ChunkingFunction.FAST_CDC_2020
REP_MAX = re_pb2.ChunkingFunction.REP_MAX_CDC


def _require(client: Client, part: str) -> None:
    if not getattr(client.cache, f"{part}_blob_support"):
        raise NotSupported(f"{part}_blob_support is not advertised")


async def _split(client: Client, digest: re_pb2.Digest, function: int = FAST_CDC) -> re_pb2.SplitBlobResponse:
    request = re_pb2.SplitBlobRequest(blob_digest=digest, chunking_function=function)  # type: ignore[arg-type]
    answer: re_pb2.SplitBlobResponse = await client.call("SplitBlob", request)
    return answer


async def _splice(client: Client, digest: re_pb2.Digest, chunks: Sequence[re_pb2.Digest]) -> re_pb2.SpliceBlobResponse:
    request = re_pb2.SpliceBlobRequest(blob_digest=digest, chunk_digests=chunks)
    answer: re_pb2.SpliceBlobResponse = await client.call("SpliceBlob", request)
    return answer


def _random(size: int) -> bytes:
    return random.Random(fresh(16)).randbytes(size)


async def _expect_whole(client: Client, data: bytes, answer: re_pb2.SplitBlobResponse) -> list[bytes]:
    chunks = [await client.fetch(digest) for digest in answer.chunk_digests]
    expect_equal(b"".join(chunks) == data, True, "the chunks, read as blobs, are the blob again")
    return chunks


@behaviour(54, "what is not advertised of SplitBlob and SpliceBlob is not there, and the reverse")
async def advertised(client: Client) -> None:
    """Clients trust the flags."""
    digest = digest_of(fresh())
    for part, call in (("split", _split(client, digest)), ("splice", _splice(client, digest, [digest_of(fresh())]))):
        code = 0
        try:
            await call
        except aio.AioRpcError as error:
            code = code_of(error)
        told = getattr(client.cache, f"{part}_blob_support")
        expect_equal(code != UNIMPLEMENTED, told, f"{part} is implemented, where {part}_blob_support is {told}")


@behaviour(54, "SplitBlob splits any stored blob into stored chunks that add up to it")
async def split(client: Client) -> None:
    """Of nothing, small, and large; an unknown blob is NOT_FOUND."""
    _require(client, "split")
    for size in (0, 1, 100_000, 6_000_000):
        data = _random(size)
        (digest,) = await client.put(data)
        await _expect_whole(client, data, await _split(client, digest))
    await expect_refused(_split(client, digest_of(fresh())), "SplitBlob of an unknown blob", NOT_FOUND)


@behaviour(54, "chunks of FastCDC 2020 keep to the advertised sizes and follow the content")
async def fast_cdc(client: Client) -> None:
    """From a quarter of the average to four times it; a change at the front leaves the later chunks as they were."""
    _require(client, "split")
    if not client.cache.HasField("fast_cdc_2020_params"):
        raise NotSupported("fast_cdc_2020_params is not advertised")
    average = client.cache.fast_cdc_2020_params.avg_chunk_size_bytes
    data = _random(average * 16)
    (digest,) = await client.put(data)
    answer = await _split(client, digest)
    expect_equal(answer.chunking_function, FAST_CDC, "chunking_function of the answer")
    chunks = await _expect_whole(client, data, answer)
    for chunk in chunks[:-1]:
        expect(
            average // 4 <= len(chunk) <= average * 4,
            f"expected chunks around {average} bytes, got one of {len(chunk)}",
        )
    expect(6 <= len(chunks) <= 32, f"expected about 16 chunks of {average} bytes on average, got {len(chunks)}")
    (digest,) = await client.put(_random(1000) + data)
    moved = {key(one) for one in (await _split(client, digest)).chunk_digests}
    shared = len(moved & {key(one) for one in answer.chunk_digests})
    expect(
        shared >= len(chunks) // 2, f"expected most of {len(chunks)} chunks after an insertion, {shared} are the same"
    )


@behaviour(54, "chunks of RepMaxCDC are from the minimum to twice that and follow the content")
async def rep_max(client: Client) -> None:
    """Where it is advertised."""
    _require(client, "split")
    if not client.cache.HasField("rep_max_cdc_params"):
        raise NotSupported("rep_max_cdc_params is not advertised")
    least = client.cache.rep_max_cdc_params.min_chunk_size_bytes
    data = _random(least * 20)
    (digest,) = await client.put(data)
    answer = await _split(client, digest, REP_MAX)
    expect_equal(answer.chunking_function, REP_MAX, "chunking_function of the answer")
    chunks = await _expect_whole(client, data, answer)
    for chunk in chunks:
        expect(least <= len(chunk) < 2 * least, f"expected chunks from {least} to twice that, got one of {len(chunk)}")
    (digest,) = await client.put(_random(1000) + data)
    moved = {key(one) for one in (await _split(client, digest, REP_MAX)).chunk_digests}
    shared = len(moved & {key(one) for one in answer.chunk_digests})
    expect(
        shared >= len(chunks) // 3, f"expected many of {len(chunks)} chunks after an insertion, {shared} are the same"
    )


@behaviour(54, "SpliceBlob makes a blob of stored chunks")
async def splice(client: Client) -> None:
    """Chunks of any sizes, one of them twice."""
    _require(client, "splice")
    parts = [fresh(1000), _random(300_000), fresh(1), _random(1_500_000)]
    parts.append(parts[0])
    data = b"".join(parts)
    answer = await _splice(client, digest_of(data), await client.put(*parts))
    expect_equal(key(answer.blob_digest), key(digest_of(data)), "the digest that SpliceBlob gives")
    expect_equal(await client.fetch(digest_of(data)) == data, True, "the spliced blob is right")


@behaviour(54, "SpliceBlob of a missing chunk is NOT_FOUND and names it")
async def splice_missing(client: Client) -> None:
    """So that the client can upload just that."""
    _require(client, "splice")
    stored, missing = fresh(1000), fresh(1000)
    (digest,) = await client.put(stored)
    call = _splice(client, digest_of(stored + missing), [digest, digest_of(missing)])
    status = await expect_refused(call, "SpliceBlob without a chunk", NOT_FOUND)
    said = status.SerializeToString()
    expect(digest_of(missing).hash.encode() in said, f"expected the missing chunk to be named, got {status.message!r}")
    await client.expect_missing(digest_of(stored + missing))


@behaviour(54, "SpliceBlob verifies before it commits: other content is INVALID_ARGUMENT")
async def splice_mismatch(client: Client) -> None:
    """A wrong order of chunks, a wrong size."""
    _require(client, "splice")
    one, two = fresh(1000), fresh(2000)
    digests = await client.put(one, two)
    whole = digest_of(one + two)
    await expect_refused(_splice(client, whole, digests[::-1]), "SpliceBlob in the wrong order", INVALID_ARGUMENT)
    await expect_refused(_splice(client, whole, digests[:1]), "SpliceBlob of too little", INVALID_ARGUMENT)
    await client.expect_missing(whole)


@behaviour(54, "a blob that a worker made can be split", execution=True)
async def split_output(client: Client) -> None:
    """No client ever uploaded it."""
    _require(client, "split")
    result = await run(client, "head -c 3000000 /dev/urandom > out", outputs=["out"])
    digest = file_of(result, "out").digest
    data = await client.fetch(digest)
    await _expect_whole(client, data, await _split(client, digest))
