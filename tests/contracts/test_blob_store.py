"""What every BlobStore does with blobs, whatever it is made of (cas/store.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from cas.digest import Digest, DigestFunction
from cas.errors import BlobNotFound, DigestMismatch, MalformedRequest, OffsetOutOfRange
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES, BlobStore
from tests.blobs import KIB, MIB, blob, in_chunks, read

OpenStore = Callable[[int], AbstractAsyncContextManager[BlobStore]]
SIZES = [0, 1, 128 * KIB - 1, 128 * KIB, 128 * KIB + 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 7]

# Both roads


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_a_blob_put_in_chunks_is_read_by_both_roads(store: BlobStore, size_bytes: int) -> None:
    digest, data = blob(size_bytes)

    await store.put(digest, in_chunks(data))

    assert await store.find_missing([digest]) == set()
    assert await store.read_many([digest]) == {digest: data}
    assert await read(store, digest) == data


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_a_blob_written_whole_is_read_by_both_roads(store: BlobStore, size_bytes: int) -> None:
    digest, data = blob(size_bytes)

    assert await store.write_many([(digest, data)]) == {}

    assert await store.find_missing([digest]) == set()
    assert await store.read_many([digest]) == {digest: data}
    assert await read(store, digest) == data


@pytest.mark.parametrize("chunk_bytes", [1, 4096, MIB, MIB + 1, 5 * MIB])
async def test_the_length_of_the_chunks_does_not_matter(store: BlobStore, chunk_bytes: int) -> None:
    digest, data = blob(2 * MIB + 1 if chunk_bytes > 1 else 5000)

    await store.put(digest, in_chunks(data, chunk_bytes))

    assert await read(store, digest) == data


async def test_empty_chunks_do_not_matter(store: BlobStore) -> None:
    digest, data = blob(1000)

    async def with_gaps() -> AsyncIterator[bytes]:
        for part in (b"", data[:1], b"", data[1:], b""):
            yield part

    await store.put(digest, with_gaps())

    assert await read(store, digest) == data


async def test_a_batch_of_many_small_blobs_is_written_and_read_in_one_call(store: BlobStore) -> None:
    blobs = dict(blob(size, seed) for seed in range(40) for size in (1, 700, 9000))

    assert await store.write_many(list(blobs.items())) == {}

    assert await store.read_many(list(blobs)) == blobs


async def test_the_same_blob_may_come_several_times_in_a_batch(store: BlobStore) -> None:
    digest, data = blob(500)

    assert await store.write_many([(digest, data)] * 4) == {}

    assert await store.read_many([digest, digest]) == {digest: data}


async def test_an_empty_batch_is_nothing(store: BlobStore) -> None:
    assert await store.write_many([]) == {}
    assert await store.read_many([]) == {}
    assert await store.find_missing([]) == set()


async def test_a_blob_may_be_written_again(store: BlobStore) -> None:
    for size_bytes in (500, 2 * MIB):
        digest, data = blob(size_bytes)
        for _ in range(2):
            await store.put(digest, in_chunks(data))
            assert await store.write_many([(digest, data)]) == {}
        assert await read(store, digest) == data


async def test_the_pieces_are_never_longer_than_a_chunk(store: BlobStore) -> None:
    for size_bytes in (CHUNK_BYTES - 1, 3 * CHUNK_BYTES + 5):
        digest, data = blob(size_bytes)
        await store.put(digest, in_chunks(data, 10 * MIB))
        async with store.open(digest) as pieces:
            lengths = [len(piece) async for piece in pieces]
        assert min(lengths) > 0
        assert max(lengths) <= CHUNK_BYTES


# Reading a part


@pytest.mark.parametrize("size_bytes", [0, 1, 1000, SMALL_BLOB_BYTES, 2 * MIB + 3])
async def test_any_part_of_a_blob_can_be_read(store: BlobStore, size_bytes: int) -> None:
    digest, data = blob(size_bytes)
    await store.put(digest, in_chunks(data))
    marks = sorted(
        {0, 1, size_bytes // 2, MIB - 1, MIB, MIB + 1, size_bytes - 1, size_bytes} & set(range(size_bytes + 1))
    )
    for offset in marks:
        for limit in (None, 0, 1, 1000, MIB, MIB + 1, size_bytes - offset, size_bytes + 1, 1 << 62):
            expected = data[offset:] if limit is None else data[offset : offset + limit]
            assert await read(store, digest, offset, limit) == expected, (offset, limit)


@pytest.mark.parametrize("size_bytes", [0, 10, 2 * MIB])
@pytest.mark.parametrize("past_bytes", [1, 1 << 40])
async def test_an_offset_past_the_end_is_out_of_range(store: BlobStore, size_bytes: int, past_bytes: int) -> None:
    digest, data = blob(size_bytes)
    await store.put(digest, in_chunks(data))

    with pytest.raises(OffsetOutOfRange):
        await read(store, digest, size_bytes + past_bytes)


@pytest.mark.parametrize("size_bytes", [10, 2 * MIB])
async def test_negative_offsets_and_limits_are_refused(store: BlobStore, size_bytes: int) -> None:
    digest, data = blob(size_bytes)
    await store.put(digest, in_chunks(data))

    with pytest.raises(OffsetOutOfRange):
        await read(store, digest, -1)
    with pytest.raises(MalformedRequest):
        await read(store, digest, 0, -1)


async def test_a_reader_may_leave_early(store: BlobStore) -> None:
    digest, data = blob(5 * MIB)
    await store.put(digest, in_chunks(data))

    async with store.open(digest) as pieces:
        first = await anext(pieces)

    assert data.startswith(first)
    assert await read(store, digest) == data


# Missing


@pytest.mark.parametrize("size_bytes", [1, 2 * MIB])
async def test_a_blob_that_was_never_written_is_missing(store: BlobStore, size_bytes: int) -> None:
    digest, _ = blob(size_bytes)

    assert await store.find_missing([digest]) == {digest}
    assert await store.read_many([digest]) == {}
    for offset in (0, 1, size_bytes + 1):
        with pytest.raises(BlobNotFound):
            await read(store, digest, offset)


async def test_what_is_missing_is_named_once_and_what_is_there_is_not(store: BlobStore) -> None:
    (there, data), (missing, _) = blob(10), blob(11)
    await store.write_many([(there, data)])

    assert await store.find_missing(iter([missing, there, missing, there])) == {missing}
    assert await store.read_many([missing, there]) == {there: data}


async def test_size_and_function_are_part_of_the_name(store: BlobStore) -> None:
    digest, data = blob(10)
    await store.write_many([(digest, data)])
    others = {Digest(digest.hash, 11), Digest(digest.hash, 10, DigestFunction.BLAKE3)}

    assert await store.find_missing(others) == others
    assert await store.read_many(list(others)) == {}


@pytest.mark.parametrize("function", list(DigestFunction), ids=lambda function: function.name)
async def test_blobs_of_every_digest_function_are_kept(store: BlobStore, function: DigestFunction) -> None:
    for size_bytes in (0, 77, MIB + 1):
        data = b"x" * size_bytes
        digest = Digest.of(data, function)
        await store.put(digest, in_chunks(data))
        assert await read(store, digest) == data
        assert await store.find_missing([digest]) == set()


async def find_among(store: BlobStore, number: int) -> None:
    there, data = blob(10)
    await store.write_many([(there, data)])
    missing = {Digest(f"{number:064x}", 1) for number in range(number)}

    assert await store.find_missing([*missing, there]) == missing


async def test_thousands_of_digests_are_answered_in_one_call(store: BlobStore) -> None:
    await find_among(store, 3000)


async def test_a_hundred_thousand_digests_are_answered_in_one_call(open_store: OpenStore) -> None:
    """Not by an object store, which takes a request for each."""
    async with open_store(256 << 20) as store:
        await find_among(store, 100_000)


# Whole or not at all


@pytest.mark.parametrize("size_bytes", [1000, MIB, 4 * MIB])
async def test_chunks_that_raise_leave_nothing(store: BlobStore, size_bytes: int) -> None:
    digest, data = blob(size_bytes)

    async def broken() -> AsyncIterator[bytes]:
        yield data[: size_bytes - 1]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put(digest, broken())

    assert await store.find_missing([digest]) == {digest}
    with pytest.raises(BlobNotFound):
        await read(store, digest)


@pytest.mark.parametrize("size_bytes", [1000, MIB, 4 * MIB])
async def test_a_cancelled_put_leaves_nothing_and_can_be_repeated(store: BlobStore, size_bytes: int) -> None:
    digest, data = blob(size_bytes)
    stuck = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield data[: size_bytes - 1]
        stuck.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(10):
        put = asyncio.ensure_future(store.put(digest, stalling()))
        await stuck.wait()
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put

    assert await store.find_missing([digest]) == {digest}
    await store.put(digest, in_chunks(data))
    assert await read(store, digest) == data


async def test_a_blob_is_not_visible_before_it_is_whole(store: BlobStore) -> None:
    digest, data = blob(4 * MIB)
    seen = []

    async def watched() -> AsyncIterator[bytes]:
        async for chunk in in_chunks(data, MIB):
            yield chunk
            seen.append(await store.find_missing([digest]))

    await store.put(digest, watched())

    assert seen == [{digest}] * 4
    assert await store.find_missing([digest]) == set()


@pytest.mark.parametrize("size_bytes", [1, 1000, 4 * MIB])
async def test_too_few_bytes_are_not_the_blob(store: BlobStore, size_bytes: int) -> None:
    digest, data = blob(size_bytes)

    with pytest.raises(DigestMismatch):
        await store.put(digest, in_chunks(data[:-1]))
    failures = await store.write_many([(digest, data[:-1])])

    assert isinstance(failures[digest], DigestMismatch)
    assert await store.find_missing([digest]) == {digest}


@pytest.mark.parametrize("size_bytes", [1, 1000, 4 * MIB])
async def test_too_many_bytes_are_refused_without_waiting_for_their_end(store: BlobStore, size_bytes: int) -> None:
    digest, _ = blob(size_bytes)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    async with asyncio.timeout(30):
        with pytest.raises(DigestMismatch):
            await store.put(digest, endless())

    assert await store.find_missing([digest]) == {digest}


async def test_one_wrong_blob_does_not_spoil_a_batch(store: BlobStore) -> None:
    (good, good_data), (bad, bad_data) = blob(10), blob(20)

    failures = await store.write_many([(bad, bad_data + b"!"), (good, good_data)])

    assert set(failures) == {bad}
    assert await store.find_missing([good, bad]) == {bad}
