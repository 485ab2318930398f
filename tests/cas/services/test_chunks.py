"""SplitBlob and SpliceBlob as clients meet them (behaviour 54)."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from cas.chunking import ChunkingFunction
from cas.context import Identity, RequestContext
from cas.digest import EMPTY, Digest
from cas.errors import (
    AlreadyExists,
    BlobNotFound,
    ChunksMissing,
    DigestMismatch,
    MalformedRequest,
    NotAllowed,
    NotFound,
    StoreFull,
)
from cas.hashing import DigestFunction
from cas.memory import ENTRY_BYTES, MemoryStore
from cas.services.cas import ContentAddressableStorage
from cas.services.chunks import MAX_LIST_BYTES, max_chunks
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

from .cache import Cache

MIB = 1 << 20
LARGE = random.Random(54).randbytes(5 * MIB)
FUNCTION = pytest.mark.parametrize("function", list(ChunkingFunction))


class Client:
    """A client of the service for the instance "main"."""

    def __init__(self, cache: Cache, max_blob_bytes: int = 0, identity: Identity | None = None) -> None:
        self.service = ContentAddressableStorage(cache.instances, max_blob_bytes)
        self.context = RequestContext(identity=identity or Identity())

    async def split(
        self, digest: re_pb2.Digest, chunking: int = 0, function: int = 0, instance_name: str = "main"
    ) -> re_pb2.SplitBlobResponse:
        request = re_pb2.SplitBlobRequest(
            instance_name=instance_name,
            blob_digest=digest,
            digest_function=function,  # type: ignore[arg-type]
            chunking_function=chunking,  # type: ignore[arg-type]
        )
        return await self.service.SplitBlob(request, self.context)

    async def splice(
        self,
        digest: re_pb2.Digest,
        *chunks: re_pb2.Digest,
        chunking: int = 0,
        function: int = 0,
        instance_name: str = "main",
    ) -> re_pb2.SpliceBlobResponse:
        request = re_pb2.SpliceBlobRequest(
            instance_name=instance_name,
            blob_digest=digest,
            chunk_digests=chunks,
            digest_function=function,  # type: ignore[arg-type]
            chunking_function=chunking,  # type: ignore[arg-type]
        )
        return await self.service.SpliceBlob(request, self.context)


def protos(*digests: Digest) -> list[re_pb2.Digest]:
    return [digest.to_proto() for digest in digests]


def digests(messages: list[re_pb2.Digest], function: DigestFunction = DigestFunction.SHA256) -> list[Digest]:
    return [Digest.from_proto(message, function) for message in messages]


@pytest.fixture
def client(cache: Cache) -> Client:
    return Client(cache)


@FUNCTION
@pytest.mark.parametrize("digest_function", list(DigestFunction))
async def test_54_a_stored_blob_is_split_and_the_chunks_make_it_up(
    client: Client, cache: Cache, function: ChunkingFunction, digest_function: DigestFunction
) -> None:
    [digest] = await cache.add(LARGE, function=digest_function)
    answer = await client.split(digest.to_proto(), function.value, digest_function.value)
    assert answer.chunking_function == function.value
    chunks = digests(list(answer.chunk_digests), digest_function)
    assert len(chunks) > 2
    assert b"".join([cache.memory.blobs[chunk] for chunk in chunks]) == LARGE


@pytest.mark.parametrize("chunking", [0, 3, 77, 2**31 - 1, -1])
async def test_54_without_a_preference_that_is_known_the_answer_says_what_was_used(
    client: Client, cache: Cache, chunking: int
) -> None:
    [digest] = await cache.add(LARGE)
    answer = await client.split(digest.to_proto(), chunking)
    assert answer == await client.split(digest.to_proto(), ChunkingFunction.FAST_CDC_2020.value)


@FUNCTION
async def test_54_small_blobs_are_their_own_only_chunk(
    client: Client, cache: Cache, function: ChunkingFunction
) -> None:
    for size_bytes in (0, 1, 1000, function.whole_below_bytes - 1):
        [digest] = await cache.add(LARGE[:size_bytes])
        answer = await client.split(digest.to_proto(), function.value)
        assert (list(answer.chunk_digests), answer.chunking_function) == (protos(digest), function.value)
    [digest] = await cache.add(LARGE[: function.whole_below_bytes])
    assert len((await client.split(digest.to_proto(), function.value)).chunk_digests) > 1


@FUNCTION
@pytest.mark.parametrize("size_bytes", [1, 5 * MIB, 2**62])
async def test_54_an_unknown_blob_is_not_found(client: Client, function: ChunkingFunction, size_bytes: int) -> None:
    with pytest.raises(NotFound):
        await client.split(Digest("ab" * 32, size_bytes).to_proto(), function.value)


HOSTILE_DIGESTS = pytest.mark.parametrize(
    "message",
    [
        re_pb2.Digest(),
        re_pb2.Digest(size_bytes=7),
        re_pb2.Digest(hash="A" * 64, size_bytes=1),
        re_pb2.Digest(hash="a" * 63, size_bytes=1),
        re_pb2.Digest(hash="a" * 64 + "\n", size_bytes=1),
        re_pb2.Digest(hash="a" * 64, size_bytes=-1),
        re_pb2.Digest(hash="../../etc/passwd", size_bytes=1),
        re_pb2.Digest(hash="\0" * 64, size_bytes=1),
        re_pb2.Digest(hash="a" * 100_000, size_bytes=1),
    ],
    ids=["unset", "no hash", "upper case", "short", "newline", "negative size", "a path", "nul", "long"],
)


@HOSTILE_DIGESTS
async def test_a_digest_that_is_none_is_refused_everywhere(
    client: Client, cache: Cache, message: re_pb2.Digest
) -> None:
    [one] = await cache.add(b"one")
    with pytest.raises(MalformedRequest, match="blob_digest"):
        await client.split(message)
    with pytest.raises(MalformedRequest, match="blob_digest"):
        await client.splice(message, one.to_proto())
    with pytest.raises(MalformedRequest, match=r"chunk_digests\[1\]"):
        await client.splice(Digest.of(b"oneone").to_proto(), one.to_proto(), message)


async def test_functions_and_instances_that_are_unknown_are_refused(client: Client, cache: Cache) -> None:
    [digest] = protos(*await cache.add(b"one"))
    for function in (4, 7, 99, -1):  # VSO and MURMUR3 among them
        with pytest.raises(MalformedRequest, match=f"digest function {function}"):
            await client.split(digest, function=function)
        with pytest.raises(MalformedRequest, match=f"digest function {function}"):
            await client.splice(digest, digest, function=function)
    with pytest.raises(MalformedRequest, match="'nobody'"):
        await client.split(digest, instance_name="nobody")
    with pytest.raises(MalformedRequest, match="'nobody'"):
        await client.splice(digest, digest, instance_name="nobody")


async def test_who_may_not_read_may_neither_split_nor_splice(cache: Cache) -> None:
    [digest] = protos(*await cache.add(b"one"))
    client = Client(cache, identity=Identity(may_read=False))
    with pytest.raises(NotAllowed):
        await client.split(digest)
    with pytest.raises(NotAllowed):
        await client.splice(digest, digest)


@FUNCTION
async def test_54_what_was_split_can_be_spliced_elsewhere(
    client: Client, cache: Cache, function: ChunkingFunction
) -> None:
    [digest] = await cache.add(LARGE)
    answer = await client.split(digest.to_proto(), function.value)
    other = Cache()
    for chunk in digests(list(answer.chunk_digests)):
        await other.add(cache.memory.blobs[chunk])
    spliced = await Client(other).splice(digest.to_proto(), *answer.chunk_digests, chunking=answer.chunking_function)
    assert spliced.blob_digest == digest.to_proto()
    assert other.memory.blobs[digest] == LARGE


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_54_a_blob_is_spliced_from_chunks_of_any_size(
    client: Client, cache: Cache, function: DigestFunction
) -> None:
    edges = [0, 1, 4, 4, 1000, 3 * MIB, 3 * MIB + 7, 5 * MIB]
    chunks = await cache.add(*[LARGE[start:end] for start, end in pairwise(edges)], function=function)
    digest = Digest.of(LARGE, function)
    await client.splice(digest.to_proto(), *protos(*chunks), function=function.value)
    assert cache.memory.blobs[digest] == LARGE


async def test_the_function_of_the_chunks_is_that_of_the_blob_also_without_a_field(
    client: Client, cache: Cache
) -> None:
    chunks = await cache.add(b"one", b"two", function=DigestFunction.SHA1)
    await client.splice(Digest.of(b"onetwo", DigestFunction.SHA1).to_proto(), *protos(*chunks))
    [sha256] = await cache.add(b"two")
    with pytest.raises(MalformedRequest, match=r"chunk_digests\[1\]"):
        await client.splice(Digest.of(b"one2", DigestFunction.SHA1).to_proto(), *protos(chunks[0], sha256))


async def test_the_empty_blob_needs_no_chunks(client: Client) -> None:
    empty = EMPTY[DigestFunction.SHA256].to_proto()
    assert (await client.splice(empty)).blob_digest == empty
    assert (await client.splice(empty, empty, empty)).blob_digest == empty


async def test_54_missing_chunks_are_named(client: Client, cache: Cache) -> None:
    [one] = await cache.add(b"one")
    two, three = Digest.of(b"two"), Digest.of(b"three")
    with pytest.raises(ChunksMissing) as failure:
        await client.splice(Digest.of(b"onethreetwotwo").to_proto(), *protos(one, three, two, two))
    assert failure.value.digests == (three, two)
    assert str(three) in str(failure.value)
    assert str(two) in str(failure.value)
    assert str(one) not in str(failure.value)


@pytest.mark.parametrize("size_bytes", [6, 3 * MIB], ids=["small", "large"])
async def test_54_another_blob_than_promised_is_refused_and_not_stored(
    client: Client, cache: Cache, size_bytes: int
) -> None:
    chunks = await cache.add(LARGE[:3], LARGE[3:size_bytes])
    digest = Digest.of(bytes(size_bytes))
    with pytest.raises(DigestMismatch, match=str(Digest.of(LARGE[:size_bytes]))):
        await client.splice(digest.to_proto(), *protos(*chunks))
    assert digest not in cache.memory.blobs
    with pytest.raises(DigestMismatch):  # the right chunks in the wrong order
        await client.splice(Digest.of(LARGE[:size_bytes]).to_proto(), *protos(*reversed(chunks)))


ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
WRONG_SUMS = [
    (Digest.of(b"onetwo"), []),
    (Digest.of(b"onetwo"), [ONE]),
    (Digest.of(b"onetwo"), [ONE, TWO, ONE]),
    (Digest(ONE.hash, 2**63 - 1), [ONE]),
    (ONE, [Digest(TWO.hash, 2**63 - 1)] * 5),
    (EMPTY[DigestFunction.SHA256], [ONE]),
]


@pytest.mark.parametrize(("digest", "chunks"), WRONG_SUMS)
async def test_54_sizes_that_do_not_add_up_are_refused_whatever_is_stored(
    client: Client, cache: Cache, digest: Digest, chunks: list[Digest]
) -> None:
    await cache.add(b"one", b"two", b"onetwo")
    with pytest.raises(MalformedRequest, match=f"the {len(chunks)} chunks of blob"):
        await client.splice(digest.to_proto(), *protos(*chunks))


async def test_more_chunks_than_one_answer_could_name_are_refused(client: Client, cache: Cache) -> None:
    most = max_chunks(DigestFunction.SHA256)
    [one] = protos(*await cache.add(b"1"))
    with pytest.raises(MalformedRequest, match=f"chunk_digests has {most + 1} chunks; {most} is the most"):
        await client.splice(Digest.of(b"1" * (most + 1)).to_proto(), *[one] * (most + 1))
    digest = Digest.of(b"1" * most)
    await client.splice(digest.to_proto(), *[one] * most)
    assert cache.memory.blobs[digest] == b"1" * most


@pytest.mark.parametrize("function", list(DigestFunction))
def test_the_longest_list_fits_into_a_message(function: DigestFunction) -> None:
    largest = re_pb2.Digest(hash="f" * function.hash_length, size_bytes=2 * MIB)
    message = re_pb2.SplitBlobResponse(chunk_digests=[largest] * max_chunks(function), chunking_function=2)  # type: ignore[arg-type]
    assert MAX_LIST_BYTES * 0.9 < message.ByteSize() <= 4 * MIB


async def test_a_blob_above_the_advertised_size_is_refused(cache: Cache) -> None:
    client = Client(cache, max_blob_bytes=5)
    one, two, onet = protos(*await cache.add(b"one", b"two", b"ne"))
    with pytest.raises(MalformedRequest, match="5 bytes is the most"):
        await client.splice(Digest.of(b"onetwo").to_proto(), one, two)
    await client.splice(Digest.of(b"onene").to_proto(), one, onet)


async def test_a_blob_that_exists_is_accepted_and_kept_longer_with_its_chunks() -> None:
    cache = Cache(MemoryStore(4 * (ENTRY_BYTES + 10)))
    one, two, blob, other = await cache.add(b"one", b"two", b"onetwo", b"other")
    assert (await Client(cache).splice(blob.to_proto(), *protos(one, two))).blob_digest == blob.to_proto()
    [last] = await cache.add(b"the last")
    assert set(cache.memory.blobs) == {one, two, blob, last}
    assert other not in cache.memory.blobs


async def test_54_a_blob_that_exists_without_the_chunks_is_said_to_exist(client: Client, cache: Cache) -> None:
    [one, blob] = await cache.add(b"one", b"onetwo")
    with pytest.raises(AlreadyExists, match="1 of its chunks are not"):
        await client.splice(blob.to_proto(), *protos(one, TWO))


async def test_a_blob_can_not_be_spliced_from_itself(client: Client) -> None:
    digest = Digest.of(b"blob")
    with pytest.raises(ChunksMissing):
        await client.splice(digest.to_proto(), digest.to_proto())


async def test_54_a_store_without_room_for_the_chunks_says_so() -> None:
    cache = Cache(MemoryStore(len(LARGE) + ENTRY_BYTES))
    [digest] = await cache.add(LARGE)
    with pytest.raises(StoreFull, match="no room for all chunks"):
        await Client(cache).split(digest.to_proto())


async def test_a_spliced_blob_that_does_not_fit_is_refused() -> None:
    cache = Cache(MemoryStore(4 * MIB))
    chunks = await cache.add(LARGE[:MIB], LARGE[MIB : 3 * MIB])
    with pytest.raises(StoreFull):
        await Client(cache).splice(Digest.of(LARGE[: 3 * MIB] * 2).to_proto(), *protos(*chunks, *chunks))


async def test_54_what_the_store_dropped_since_the_last_split_is_noticed() -> None:
    cache = Cache(MemoryStore(12 * MIB))
    client = Client(cache)
    [digest] = await cache.add(LARGE)
    answer = await client.split(digest.to_proto())
    chunks = digests(list(answer.chunk_digests))
    assert await cache.store.find_missing([*chunks[1:], digest]) == set()
    await cache.add(bytes(3 * MIB))
    assert await cache.store.find_missing(chunks) != set()
    assert await client.split(digest.to_proto()) == answer  # made again
    assert await cache.store.find_missing(chunks) == set()
    await cache.add(bytes(6 * MIB))
    with pytest.raises(BlobNotFound):
        await client.split(digest.to_proto())
