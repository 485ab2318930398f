"""Behaviours 39 to 42: the content addressable storage without ByteStream."""

from __future__ import annotations

from typing import Any

from google.rpc import code_pb2

from integration.conformance.actions import run, status_of_execute, stdout_of
from integration.conformance.blobs import digest_of, fresh, key, packed, show, text, unpacked
from integration.conformance.case import NotSupported, Phase, behaviour
from integration.conformance.client import CHUNK_BYTES, Client
from integration.conformance.expect import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    OK,
    expect,
    expect_code,
    expect_equal,
    expect_in,
    expect_offered,
    expect_refused,
)
from integration.conformance.inputs import Inputs
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

MESSAGE_BYTES = 4 << 20
"""What a gRPC client receives unless told otherwise; the kit's own limit too."""

LARGE_BYTES = 3_000_000
"""More than servers take for a small blob, and several messages of a stream."""


def _functions(client: Client) -> list[int]:
    """The advertised digest functions that the kit can compute."""
    found: list[int] = []
    for function in client.cache.digest_functions:
        try:
            digest_of(b"", function)
        except NotSupported:
            continue
        found.append(function)
    return found


async def _read_batch(client: Client, *digests: re_pb2.Digest, **options: Any) -> dict[tuple[str, int], Any]:
    request = re_pb2.BatchReadBlobsRequest(digests=digests, **options)
    answer = await client.call("BatchReadBlobs", request)
    return {key(response.digest): response for response in answer.responses}


async def _update(client: Client, *blobs: tuple[re_pb2.Digest, bytes], compressor: int = 0) -> list[Any]:
    request = re_pb2.BatchUpdateBlobsRequest()
    for digest, data in blobs:
        request.requests.add(digest=digest, data=data, compressor=compressor)
    answer = await client.call("BatchUpdateBlobs", request)
    return list(answer.responses)


@behaviour(39, "the empty blob always exists: FindMissingBlobs, Read and BatchReadBlobs")
async def empty_blob(client: Client) -> None:
    """Nobody uploads it, everybody may name it; with every digest function."""
    for function in _functions(client):
        empty = digest_of(b"", function)
        name = re_pb2.DigestFunction.Value.Name(function)
        expect_equal(await client.missing([empty], function=function), set(), f"missing of the empty blob with {name}")
        data = await client.read(client.blob_name(empty, function=function))
        expect_equal(data, b"", f"Read of the empty blob with {name}")
        answers = await _read_batch(client, empty, digest_function=function)
        expect_equal(
            [(a.status.code, a.data) for a in answers.values()], [(OK, b"")], f"BatchRead of the empty blob with {name}"
        )


@behaviour(39, "the empty blob always exists: GetTree of the empty Directory")
async def empty_tree(client: Client) -> None:
    """The empty Directory is encoded as no bytes at all."""
    request = re_pb2.GetTreeRequest(root_digest=digest_of(b""))
    found = [directory async for page in client.call("GetTree", request) for directory in page.directories]
    expect_equal(found, [re_pb2.Directory()], "GetTree of the empty Directory")


@behaviour(39, "the empty blob always exists: as an input, as an input Directory, as the input root", execution=True)
async def empty_inputs(client: Client) -> None:
    """Without ever having been uploaded."""
    inputs = Inputs(files={"empty": b"", "d/also": b""}, directories=["nothing"])
    result = await run(client, "cat empty d/also; ls nothing; test -f empty", inputs=inputs)
    expect_equal(await stdout_of(client, result), b"", "what is in empty files and directories")
    await run(client, "true", inputs=Inputs())


@behaviour(40, "upper-case hex, a wrong length, a negative size and no hash are INVALID_ARGUMENT")
async def malformed_digests(client: Client) -> None:
    """In every call that takes a digest."""
    good = digest_of(fresh())
    bad = [
        re_pb2.Digest(hash=good.hash.upper(), size_bytes=100),
        re_pb2.Digest(hash=good.hash[:-1], size_bytes=100),
        re_pb2.Digest(hash="x" * 64, size_bytes=100),
        re_pb2.Digest(hash=good.hash, size_bytes=-1),
        re_pb2.Digest(size_bytes=5),
    ]
    for digest in bad:
        what = f"digest {digest.hash[:8]!r}… of {len(digest.hash)} characters with size {digest.size_bytes}"
        request: Any = re_pb2.FindMissingBlobsRequest(blob_digests=[good, digest])
        await expect_refused(client.call("FindMissingBlobs", request), f"FindMissingBlobs of {what}", INVALID_ARGUMENT)
        await expect_refused(client.cached(digest), f"GetActionResult of {what}", INVALID_ARGUMENT)
        await expect_refused(client.read(client.blob_name(digest)), f"Read of {what}", INVALID_ARGUMENT)


@behaviour(40, "malformed digests are INVALID_ARGUMENT to Execute too", execution=True)
async def malformed_actions(client: Client) -> None:
    """Not FAILED_PRECONDITION: uploading would not help."""
    good = digest_of(fresh())
    for digest in (re_pb2.Digest(hash=good.hash.upper(), size_bytes=9), re_pb2.Digest(hash=good.hash, size_bytes=-9)):
        status = await status_of_execute(client, digest)
        expect_code(status, f"Execute of {digest.hash[:8]}…/{digest.size_bytes}", INVALID_ARGUMENT)


@behaviour(40, "content that is not what its digest says is INVALID_ARGUMENT and is not stored")
async def wrong_content(client: Client) -> None:
    """A wrong hash, and a right hash with a wrong size, in a batch and as a stream."""
    data = fresh()
    right = digest_of(data)
    wrong_size = re_pb2.Digest(hash=right.hash, size_bytes=right.size_bytes + 1)
    wrong_hash = re_pb2.Digest(hash=digest_of(fresh()).hash, size_bytes=right.size_bytes)
    for digest in (wrong_size, wrong_hash):
        (answer,) = await _update(client, (digest, data))
        expect_code(answer.status, f"BatchUpdateBlobs of the wrong content for {show(digest)}", INVALID_ARGUMENT)
        await expect_refused(
            client.write(data, digest=digest), f"Write of the wrong content for {show(digest)}", INVALID_ARGUMENT
        )
        await client.expect_missing(digest)
    await client.expect_missing(right)
    # Large blobs go another way than those that fit one message.
    large = fresh(LARGE_BYTES)
    promised = digest_of(fresh(LARGE_BYTES))
    await expect_refused(
        client.write(large, digest=promised), "Write of the wrong content for a large blob", INVALID_ARGUMENT
    )
    await client.expect_missing(promised, digest_of(large))


@behaviour(40, "a right hash with another size is another blob")
async def other_size(client: Client) -> None:
    """The size is part of the name: a store that looks at the hash alone would say that it has it."""
    (digest,) = await client.put(fresh())
    other = re_pb2.Digest(hash=digest.hash, size_bytes=digest.size_bytes + 1)
    await client.expect_missing(other)
    await expect_refused(
        client.read(client.blob_name(other)), "Read of a right hash with a wrong size", NOT_FOUND, INVALID_ARGUMENT
    )


@behaviour(41, "FindMissingBlobs names each missing blob once and takes an empty request")
async def find_missing(client: Client) -> None:
    """Stored and missing ones mixed, each several times."""
    (stored,) = await client.put(fresh())
    missing = digest_of(fresh())
    request = re_pb2.FindMissingBlobsRequest(blob_digests=[missing, stored, missing, stored, missing])
    answer = await client.call("FindMissingBlobs", request)
    named = [key(d) for d in answer.missing_blob_digests]
    expect_equal(set(named), {key(missing)}, "missing blobs of five digests, two different")
    # Nothing says how often; a client that uploads what is named uploads it as often.
    expect_offered(len(named) == 1, "a missing blob is named as often as it was asked for")
    answer = await client.call("FindMissingBlobs", re_pb2.FindMissingBlobsRequest())
    expect_equal(list(answer.missing_blob_digests), [], "missing blobs of an empty request")


@behaviour(41, "FindMissingBlobs takes 100,000 digests in one call")
async def find_many(client: Client) -> None:
    """8 MiB; those that are missing fill at most the 4 MiB of an answer, so half of them are stored."""
    stored = await client.put(*(fresh(24) for _ in range(100)))
    missing = [re_pb2.Digest(hash=fresh(32).hex(), size_bytes=1) for _ in range(20_000)]
    asked = [*stored * 800, *missing]
    request = re_pb2.FindMissingBlobsRequest(blob_digests=asked)
    answer = await client.call("FindMissingBlobs", request)
    expect_equal(len(answer.missing_blob_digests), len(missing), "missing blobs of 100,000 digests")


@behaviour(41, "FindMissingBlobs extends lifetimes", phase=Phase.LAST, timeout_seconds=60)
async def lifetimes(client: Client) -> None:
    """A blob that was just found to be there outlives those that nobody asked for."""
    client.options.need("store_bytes")
    kept, left = await client.put(fresh(), fresh())
    third = client.options.store_bytes // 3
    for _ in range(6):
        for _ in range(max(1, third // (2 << 20))):
            await client.put(fresh(CHUNK_BYTES), fresh(CHUNK_BYTES))
        expect_equal(await client.missing([kept]), set(), "a blob that FindMissingBlobs named as stored a moment ago")
    expect_equal(
        await client.missing([left]), {key(left)}, "a blob that nobody asked for while the store was filled twice"
    )


@behaviour(42, "BatchUpdateBlobs gives a status for each blob")
async def update_each(client: Client) -> None:
    """One that is wrong does not keep the others out."""
    good, bad = fresh(), fresh()
    wrong = digest_of(fresh())
    answers = await _update(client, (digest_of(good), good), (wrong, bad))
    codes = {key(answer.digest): answer.status.code for answer in answers}
    expect_equal(
        codes, {key(digest_of(good)): OK, key(wrong): INVALID_ARGUMENT}, "statuses of a batch with a wrong blob"
    )
    await client.expect_stored(digest_of(good))


@behaviour(42, "BatchReadBlobs gives a status for each blob")
async def read_each(client: Client) -> None:
    """One that is missing is NOT_FOUND, the others come."""
    data = fresh()
    (digest,) = await client.put(data)
    missing = digest_of(fresh())
    answers = await _read_batch(client, digest, missing)
    expect_equal(answers[key(digest)].data, data, "the blob that is stored")
    expect_equal(answers[key(digest)].status.code, OK, "the status of the blob that is stored")
    code = answers[key(missing)].status.code if key(missing) in answers else None
    expect_equal(code, NOT_FOUND, f"the status of the missing blob ({code_pb2.Code.Name(code or 0)})")


def _limit(client: Client) -> int:
    limit = client.cache.max_batch_total_size_bytes
    if not limit:
        raise NotSupported("no limit for batches is advertised")
    return limit


@behaviour(42, "a batch over the advertised limit is INVALID_ARGUMENT")
async def over_limit(client: Client) -> None:
    """And not cut off by the transport, which would call it RESOURCE_EXHAUSTED: clients that fill a batch to the brim
    send a message that is larger than the limit by its framing.
    """
    data = [fresh(CHUNK_BYTES // 2) for _ in range(_limit(client) // (CHUNK_BYTES // 2) + 3)]
    blobs = [(digest_of(one), one) for one in data]
    await expect_refused(_update(client, *blobs), "BatchUpdateBlobs over the limit", INVALID_ARGUMENT)
    digests = [digest for digest, _ in blobs]
    await client.put(*data)
    await expect_refused(_read_batch(client, *digests), "BatchReadBlobs over the limit", INVALID_ARGUMENT)


@behaviour(42, "a batch of exactly the limit is taken, and its answer fits 4 MiB with its framing")
async def at_limit(client: Client) -> None:
    """As one blob, and as thousands, whose framing counts most."""
    limit = _limit(client)
    for count in (1, 4000):
        data = [fresh(limit // count) for _ in range(count)]
        data[0] += fresh(limit - sum(map(len, data)))
        digests = [digest_of(one) for one in data]
        for answer in await _update(client, *zip(digests, data, strict=True)):
            expect_code(answer.status, f"a blob in a batch of {count} at the limit", OK)
        request = re_pb2.BatchReadBlobsRequest(digests=digests)
        answer = await client.call("BatchReadBlobs", request)
        size = answer.ByteSize()
        expect(size < MESSAGE_BYTES, f"expected an answer below {MESSAGE_BYTES} bytes for {count} blobs, got {size}")
        got = {key(response.digest): response.data for response in answer.responses}
        expect_equal(
            got == dict(zip(map(key, digests), data, strict=True)), True, f"{count} blobs come back as they were"
        )


@behaviour(42, "batches take and give compressed blobs where that is advertised")
async def compressed_batches(client: Client) -> None:
    """Up with each compressor of supported_batch_update_compressors; down with one the client accepts."""
    compressors = [number for number in client.cache.supported_batch_update_compressors if number]
    if not compressors:
        raise NotSupported("no compressor for batches is advertised")
    for compressor in compressors:
        data = text(200)
        digest = digest_of(data)
        (answer,) = await _update(client, (digest, packed(data, compressor)), compressor=compressor)
        expect_code(answer.status, f"an upload with compressor {compressor}", OK)
        expect_equal(await client.fetch(digest) == data, True, f"a blob uploaded with compressor {compressor} is right")
        answers = await _read_batch(client, digest, acceptable_compressors=[compressor])
        got = answers[key(digest)]
        expect_equal(got.compressor in (0, compressor), True, f"compressor {got.compressor} is one that was asked for")
        expect_equal(
            unpacked(got.data, got.compressor) == data, True, f"a blob read with compressor {compressor} is right"
        )
    (answer,) = await _update(
        client, (digest_of(b"other"), packed(text(10), compressors[0])), compressor=compressors[0]
    )
    expect_code(answer.status, "a compressed blob that is not what its digest says", INVALID_ARGUMENT)


@behaviour(42, "GetTree gives all directories below a root, page by page")
async def get_tree(client: Client) -> None:
    """With a page size of 2; in any order. An unknown root is NOT_FOUND."""
    root, blobs = Inputs(files={f"{place}/{place}/f": fresh() for place in range(3)}).encoded(
        re_pb2.DigestFunction.SHA256
    )
    await client.put(*blobs)
    request = re_pb2.GetTreeRequest(root_digest=root, page_size=2)
    found = [directory async for page in client.call("GetTree", request) for directory in page.directories]
    encoded = [directory.SerializeToString(deterministic=True) for directory in found]
    expect_equal(len(set(encoded)), 7, "different directories that GetTree gives")
    expect_in(
        key(root), {key(digest_of(data)) for data in encoded}, "the root, among the directories that GetTree gives"
    )

    async def unknown() -> None:
        async for _ in client.call("GetTree", re_pb2.GetTreeRequest(root_digest=digest_of(fresh()))):
            pass

    await expect_refused(unknown(), "GetTree of an unknown root", NOT_FOUND)
