"""Uploads and compressed data of people who mean no good: what is stored is what the digest names, and nothing stays behind."""

from __future__ import annotations

import asyncio
import itertools
import random
import tracemalloc
from collections.abc import AsyncIterator

import brotli
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cas.action_cache import MemoryActionCache
from cas.compose import Verified
from cas.compression import Compressor, Decompression, compress, compressor_of_value, decompress
from cas.context import RequestContext
from cas.digest import Digest
from cas.errors import Code, MalformedRequest, StatusError
from cas.instances import Instance, Instances
from cas.memory import MemoryStore
from cas.resource_name import parse_read_name, parse_write_name
from cas.services.bytestream import ByteStream
from cas.services.cas import ContentAddressableStorage
from cas.store import CHUNK_BYTES
from cas.uploads import Uploads
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2
from tests.fuzz.hostile import NUMBERS, TEXTS, examples, guarded

SMALL = b"a small blob, again and again. " * 20
LARGE = bytes(range(256)) * 5_000
BLOBS = [SMALL, LARGE, b""]
COMPRESSORS = [compressor for compressor in Compressor if compressor is not Compressor.IDENTITY]
WRITE_FAILURES = (Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED, Code.CANCELLED)


def instances(store: MemoryStore) -> Instances:
    return Instances([Instance("", Verified(store), MemoryActionCache())])


async def _each(messages: list[bytestream_pb2.WriteRequest]) -> AsyncIterator[bytestream_pb2.WriteRequest]:
    for message in messages:
        yield message


async def written(store: MemoryStore, messages: list[bytestream_pb2.WriteRequest]) -> int | None:
    """The committed size, None if the write was refused. Uploads that stay parked end with the block."""
    async with Uploads() as uploads:
        try:
            answer = await ByteStream(instances(store), uploads).Write(_each(messages), RequestContext())
        except StatusError as failure:
            if failure.code not in WRITE_FAILURES:
                raise
            return None
        finally:
            assert uploads.partial_bytes <= sum(len(message.data) for message in messages)
        return answer.committed_size


@given(data=st.data())
@examples(100)
def test_only_a_write_that_is_whole_and_right_is_stored(data: st.DataObject) -> None:
    blob = data.draw(st.sampled_from(BLOBS))
    digest = Digest.of(blob)
    size_bytes = data.draw(st.one_of(st.just(len(blob)), st.sampled_from([len(blob) + 1, len(blob) - 1, 0, 2**63 - 1])))
    name = f"uploads/u/blobs/{digest.hash}/{size_bytes}"
    messages, offset = [], 0
    for part in range(data.draw(st.integers(1, 6))):
        piece = blob[offset : offset + data.draw(st.integers(0, len(blob)))]
        honest = data.draw(st.integers(0, 9)) > 0
        messages.append(
            bytestream_pb2.WriteRequest(
                resource_name=name if part == 0 or honest else data.draw(TEXTS),
                write_offset=offset if honest else max(-(2**63), min(2**63 - 1, data.draw(NUMBERS))),
                data=piece if honest else data.draw(st.binary(max_size=50)),
                finish_write=data.draw(st.booleans()) or offset + len(piece) == len(blob),
            )
        )
        offset += len(piece)
    store = MemoryStore()
    with guarded():
        committed = asyncio.run(written(store, messages))
    assert store.blobs in ({}, {digest: blob})
    assert (committed == len(blob)) == (digest in store.blobs) or not blob


@pytest.mark.parametrize("blob", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("size_bytes", [-1, 1])
def test_a_size_that_lies_by_one_stores_nothing(blob: bytes, size_bytes: int) -> None:
    name = f"uploads/u/blobs/{Digest.of(blob).hash}/{len(blob) + size_bytes}"
    store = MemoryStore()
    message = bytestream_pb2.WriteRequest(resource_name=name, data=blob, finish_write=True)
    assert asyncio.run(written(store, [message])) is None
    assert store.blobs == {}


@given(name=st.one_of(TEXTS, st.lists(TEXTS, max_size=8).map("/".join)))
@examples(300)
def test_any_resource_name_is_a_blob_or_refused(name: str) -> None:
    for parse in (parse_read_name, parse_write_name):
        try:
            digest = parse(name).digest
        except MalformedRequest:
            continue
        assert len(digest.hash) == digest.function.hash_length
        assert digest.size_bytes >= 0


def _damaged(data: bytes, seed: int) -> bytes:
    """`data` with a few bytes changed, dropped, repeated or added."""
    chance = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(chance.randrange(4)):
        place = chance.randrange(len(damaged) + 1)
        match chance.randrange(4):
            case 0 if place < len(damaged):
                damaged[place] = chance.randrange(256)
            case 1:
                del damaged[place : place + chance.randrange(20)]
            case 2:
                damaged[place:place] = damaged[place : place + chance.randrange(50)]
            case _:
                damaged[place:place] = chance.randbytes(chance.randrange(20))
    return bytes(damaged)


@pytest.mark.parametrize("compressor", COMPRESSORS)
@given(
    blob=st.sampled_from([*BLOBS, bytes(3_000_000)]),
    seed=st.integers(0, 2**32),
    difference=st.sampled_from([0, 0, 0, 1, -1, 2**62]),
    cuts=st.lists(st.integers(0, 5_000), max_size=4),
)
@examples(60)
def test_compressed_data_give_the_declared_bytes_or_are_refused(
    compressor: Compressor, blob: bytes, seed: int, difference: int, cuts: list[int]
) -> None:
    data = _damaged(compress(blob, compressor), seed)
    size_bytes = max(0, len(blob) + difference)
    edges = [0, *sorted(cuts), len(data)]
    decompression = Decompression(compressor, size_bytes)
    given_bytes = 0
    with guarded():
        try:
            for start, end in itertools.pairwise(edges):
                for piece in decompression.feed(data[start:end]):
                    assert len(piece) <= CHUNK_BYTES
                    given_bytes += len(piece)
            decompression.finish()
        except MalformedRequest:
            assert given_bytes <= size_bytes
            return
    assert given_bytes == size_bytes


@pytest.mark.parametrize("compressor", COMPRESSORS)
@given(data=st.binary(max_size=300), size_bytes=st.sampled_from([0, 1, 1000, 2**63 - 1]))
@example(data=bytes.fromhex("28b52ffd0058000000"), size_bytes=0)
@example(data=b"\x00\x00\x00\xff\xff" * 1000, size_bytes=0)
@examples(100)
def test_any_bytes_are_decompressed_or_refused(compressor: Compressor, data: bytes, size_bytes: int) -> None:
    with guarded():
        try:
            assert len(decompress(data, compressor, size_bytes)) == size_bytes
        except MalformedRequest:
            return


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_bomb_takes_no_more_memory_than_a_piece(compressor: Compressor) -> None:
    bomb = _bomb(compressor)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedRequest, match="more than the 1000 bytes declared"):
            decompress(bomb, compressor, 1000)
        _now, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 3 * CHUNK_BYTES


def _bomb(compressor: Compressor) -> bytes:
    """64 MiB of nothing."""
    blob = bytes(64 << 20)
    return brotli.compress(blob, quality=1) if compressor is Compressor.BROTLI else compress(blob, compressor)


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_batch_of_bombs_stores_nothing_and_says_so_for_each(compressor: Compressor) -> None:
    store = MemoryStore()
    bomb = _bomb(compressor)
    claimed = Digest.of(b"not this")
    request = re_pb2.BatchUpdateBlobsRequest()
    for _ in range(3):
        request.requests.add(digest=claimed.to_proto(), data=bomb, compressor=compressor.value)
    response = asyncio.run(ContentAddressableStorage(instances(store)).BatchUpdateBlobs(request, RequestContext()))
    assert [entry.status.code for entry in response.responses] == [Code.INVALID_ARGUMENT] * 3
    assert store.blobs == {}


@given(st.lists(st.integers(-5, 2**31 - 1), max_size=20))
@examples(30)
def test_any_list_of_acceptable_compressors_is_served(numbers: list[int]) -> None:
    async def read() -> re_pb2.BatchReadBlobsResponse:
        store = MemoryStore()
        await store.write_many([(Digest.of(SMALL), SMALL)])
        request = re_pb2.BatchReadBlobsRequest(digests=[Digest.of(SMALL).to_proto()])
        request.acceptable_compressors.extend(numbers)  # type: ignore[arg-type]
        return await ContentAddressableStorage(instances(store)).BatchReadBlobs(request, RequestContext())

    (entry,) = asyncio.run(read()).responses
    assert decompress(entry.data, compressor_of_value(entry.compressor), len(SMALL)) == SMALL


def test_a_hundred_thousand_garbage_digests_are_refused_with_the_place_of_the_first() -> None:
    request = re_pb2.FindMissingBlobsRequest(
        blob_digests=[Digest.of(b"x").to_proto()] * 50_000 + [re_pb2.Digest(hash="Z" * 64, size_bytes=-1)] * 50_000
    )
    with guarded(), pytest.raises(MalformedRequest, match=r"blob_digests\[50000\]"):
        asyncio.run(ContentAddressableStorage(instances(MemoryStore())).FindMissingBlobs(request, RequestContext()))


@pytest.mark.parametrize("number", [6_001, 1_000_000])
def test_a_batch_of_entries_without_anything_in_them_is_refused(number: int) -> None:
    service = ContentAddressableStorage(instances(MemoryStore()))
    update = re_pb2.BatchUpdateBlobsRequest.FromString(b"\x12\x00" * number)
    read = re_pb2.BatchReadBlobsRequest.FromString(b"\x12\x00" * number)
    for call in (service.BatchUpdateBlobs(update, RequestContext()), service.BatchReadBlobs(read, RequestContext())):
        with guarded(), pytest.raises(MalformedRequest, match=f"the batch has {number} blobs"):
            asyncio.run(call)
