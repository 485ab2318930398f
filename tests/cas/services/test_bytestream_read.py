"""ByteStream.Read (behaviours 39, 40, 43, 47, 49)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest

from cas.compression import Compressor, decompress
from cas.context import Identity, RequestContext
from cas.digest import EMPTY, Digest
from cas.errors import BlobNotFound, Code, MalformedRequest, NotAllowed, OffsetOutOfRange
from cas.hashing import DigestFunction
from cas.instances import Instance, Instances
from cas.memory import MemoryStore
from cas.resource_name import HEADER
from cas.services.bytestream import ByteStream
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES
from cas.uploads import Uploads
from protos.google.bytestream import bytestream_pb2

from .cache import Cache

SMALL = b"int main() { return 0; }"
LARGE = random.Random(1).randbytes(2 * CHUNK_BYTES) + b"compressible" * 100_000
BOTH = pytest.mark.parametrize("blob", [SMALL, LARGE], ids=["small", "large"])
COMPRESSED = pytest.mark.parametrize("compressor", [c for c in Compressor if c is not Compressor.IDENTITY])


class Reader:
    """The service, read to the end."""

    def __init__(self, cache: Cache) -> None:
        self.service = ByteStream(cache.instances, Uploads())

    async def messages(
        self, name: str, offset: int = 0, limit: int = 0, identity: Identity | None = None
    ) -> list[bytes]:
        request = bytestream_pb2.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
        context = RequestContext(identity=identity or Identity())
        return [response.data async for response in self.service.Read(request, context)]

    async def read(self, name: str, offset: int = 0, limit: int = 0) -> bytes:
        return b"".join(await self.messages(name, offset, limit))


@pytest.fixture
def reader(cache: Cache) -> Reader:
    return Reader(cache)


async def test_43_a_header_that_names_another_blob_is_refused(cache: Cache) -> None:
    service = ByteStream(cache.instances, Uploads())
    context = RequestContext(metadata={HEADER: "blobs/another/1"})
    name = Digest.of(SMALL).blob_name()
    with pytest.raises(MalformedRequest, match="another"):
        await anext(service.Read(bytestream_pb2.ReadRequest(resource_name=name), context))

    async def requests() -> AsyncIterator[bytestream_pb2.WriteRequest]:
        yield bytestream_pb2.WriteRequest(resource_name=f"uploads/u/{name}", data=SMALL, finish_write=True)

    with pytest.raises(MalformedRequest, match="another"):
        await service.Write(requests(), context)


@BOTH
@pytest.mark.parametrize("prefix", ["main/", "", "/"])
async def test_43_a_blob_is_read_whole_from_any_instance(
    cache: Cache, reader: Reader, blob: bytes, prefix: str
) -> None:
    [digest] = await cache.add(blob)
    assert await reader.read(prefix + digest.blob_name()) == blob


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_43_the_function_is_named_or_told_by_the_length(
    cache: Cache, reader: Reader, function: DigestFunction
) -> None:
    [digest] = await cache.add(SMALL, function=function)
    assert await reader.read(digest.blob_name()) == SMALL


async def test_a_small_blob_is_one_message_and_one_look_at_the_store() -> None:
    class Counting(MemoryStore):
        reads = 0

        async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
            self.reads += 1
            return await super().read_many(digests)

    cache = Cache(memory=Counting())
    [digest] = await cache.add(b"x" * SMALL_BLOB_BYTES)
    assert [len(data) for data in await Reader(cache).messages(digest.blob_name())] == [SMALL_BLOB_BYTES]
    assert cache.memory.reads == 1  # type: ignore[attr-defined]


async def test_messages_stay_far_below_4_mib(cache: Cache, reader: Reader) -> None:
    [digest] = await cache.add(LARGE)
    assert max(len(data) for data in await reader.messages(digest.blob_name())) <= CHUNK_BYTES


@BOTH
@pytest.mark.parametrize(
    ("offset", "limit"), [(0, 1), (1, 0), (3, 4), (20, 10**12), (0, 24), (24, 0), (24, 5), (-1, 0), (-1, 1)]
)
async def test_49_offset_and_limit_choose_the_bytes(
    cache: Cache, reader: Reader, blob: bytes, offset: int, limit: int
) -> None:
    [digest] = await cache.add(blob)
    start = offset if offset >= 0 else len(blob) + offset
    expected = blob[start : start + limit] if limit else blob[start:]
    assert await reader.read(digest.blob_name(), start, limit) == expected


@BOTH
async def test_49_an_offset_at_the_end_gives_nothing_and_one_past_it_is_out_of_range(
    cache: Cache, reader: Reader, blob: bytes
) -> None:
    [digest] = await cache.add(blob)
    assert await reader.messages(digest.blob_name(), len(blob)) == []
    for offset in (len(blob) + 1, 2**63 - 1, -1, -(2**63)):
        with pytest.raises(OffsetOutOfRange) as refused:
            await reader.read(digest.blob_name(), offset)
        assert refused.value.code == Code.OUT_OF_RANGE


@BOTH
@pytest.mark.parametrize("kind", ["blobs", "compressed-blobs/zstd"])
async def test_49_an_unknown_blob_is_not_found(reader: Reader, blob: bytes, kind: str) -> None:
    digest = Digest.of(blob)
    with pytest.raises(BlobNotFound):
        await reader.read(f"main/{kind}/{digest.hash}/{digest.size_bytes}")


async def test_40_the_right_hash_with_a_wrong_size_is_another_blob(cache: Cache, reader: Reader) -> None:
    [digest] = await cache.add(SMALL)
    with pytest.raises(BlobNotFound):
        await reader.read(f"blobs/{digest.hash}/{digest.size_bytes + 1}")


@pytest.mark.parametrize(
    "name", ["", "main", "blobs/x/1", f"blobs/{'A' * 64}/1", f"blobs/{'a' * 64}/-1", f"nobody/blobs/{'a' * 64}/1"]
)
async def test_40_a_malformed_name_or_unknown_instance_is_refused(reader: Reader, name: str) -> None:
    with pytest.raises(MalformedRequest):
        await reader.read(name)


async def test_a_negative_limit_is_refused(reader: Reader) -> None:
    with pytest.raises(MalformedRequest, match="read_limit -1"):
        await reader.read(f"blobs/{'a' * 64}/1", 0, -1)


async def test_an_identity_that_may_not_read_is_refused(cache: Cache, reader: Reader) -> None:
    [digest] = await cache.add(SMALL)
    with pytest.raises(NotAllowed, match=r"^not allowed$"):
        await reader.messages(digest.blob_name(), identity=Identity(may_read=False))


async def test_49_the_first_byte_leaves_before_the_whole_blob_is_loaded() -> None:
    never = asyncio.Event()

    class Slow(MemoryStore):
        @asynccontextmanager
        async def open(
            self, digest: Digest, offset: int = 0, limit: int | None = None
        ) -> AsyncIterator[AsyncIterator[bytes]]:
            yield self._pieces()

        async def _pieces(self) -> AsyncIterator[bytes]:
            yield b"first piece"
            await never.wait()

    cache = Cache(memory=Slow())
    request = bytestream_pb2.ReadRequest(resource_name=f"blobs/{'a' * 64}/{SMALL_BLOB_BYTES + 1}")
    async with (
        asyncio.timeout(10),
        aclosing(ByteStream(cache.instances, Uploads()).Read(request, RequestContext())) as responses,
    ):
        assert (await anext(responses)).data == b"first piece"


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_39_the_empty_blob_exists(reader: Reader, function: DigestFunction) -> None:
    assert await reader.messages(EMPTY[function].blob_name()) == []
    with pytest.raises(OffsetOutOfRange):
        await reader.read(EMPTY[function].blob_name(), 1)


@COMPRESSED
async def test_39_the_empty_blob_exists_in_every_compression(reader: Reader, compressor: Compressor) -> None:
    data = await reader.read(f"compressed-blobs/{compressor.resource_segment}/{Digest.of(b'').hash}/0")
    assert data
    assert decompress(data, compressor, 0) == b""


@COMPRESSED
@BOTH
@pytest.mark.parametrize("offset", [0, 7, -3])
async def test_47_a_compressed_read_counts_its_offset_in_bytes_of_the_blob(
    cache: Cache, reader: Reader, blob: bytes, compressor: Compressor, offset: int
) -> None:
    [digest] = await cache.add(blob)
    start = offset if offset >= 0 else len(blob) + offset
    name = f"main/compressed-blobs/{compressor.resource_segment}/{digest.hash}/{digest.size_bytes}"
    messages = await reader.messages(name, start)
    assert decompress(b"".join(messages), compressor, len(blob) - start) == blob[start:]
    assert max(map(len, messages)) < 2 * CHUNK_BYTES


@COMPRESSED
@BOTH
async def test_47_a_compressed_read_with_a_limit_is_refused(
    cache: Cache, reader: Reader, blob: bytes, compressor: Compressor
) -> None:
    [digest] = await cache.add(blob)
    name = f"compressed-blobs/{compressor.resource_segment}/{digest.hash}/{digest.size_bytes}"
    with pytest.raises(MalformedRequest, match="read_limit"):
        await reader.read(name, 0, 1)


async def test_instances_do_not_see_each_other() -> None:
    one, other = Cache(), Cache()
    cache = Cache()
    cache.instances = Instances(
        Instance(name, source.store, source.results) for name, source in (("one", one), ("a/b", other))
    )
    [digest] = await one.add(SMALL)
    reader = Reader(cache)
    assert await reader.read(f"one/{digest.blob_name()}") == SMALL
    with pytest.raises(BlobNotFound):
        await reader.read(f"a/b/{digest.blob_name()}")
    with pytest.raises(MalformedRequest, match="'one', 'a/b'"):
        await reader.read(digest.blob_name())
