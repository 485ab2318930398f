"""Verified and Tiered: what they do beyond the contract of every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from cas.compose import LEAD_CHUNKS, Tiered, Verified
from cas.digest import EMPTY, Digest, DigestFunction
from cas.errors import BlobNotFound, DigestMismatch, OffsetOutOfRange, StatusError, Unavailable
from cas.memory import MemoryStore
from cas.store import BlobStore
from tests.blobs import MIB, blob, in_chunks, read


class Watched:
    """A store that counts how often a blob is opened or read, and lets pieces through one by one if asked to."""

    def __init__(self, inner: BlobStore) -> None:
        self._inner = inner
        self.reads: list[Digest] = []
        self.asked: list[Digest] = []
        self.gate: asyncio.Semaphore | None = None
        self.fails_after: int | None = None

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        wanted = list(digests)
        self.asked += wanted
        return await self._inner.find_missing(wanted)

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        self.reads += digests
        return await self._inner.read_many(digests)

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        self.asked += [digest for digest, _ in blobs]
        return await self._inner.write_many(blobs)

    def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._open(digest, offset, limit)

    @asynccontextmanager
    async def _open(self, digest: Digest, offset: int, limit: int | None) -> AsyncIterator[AsyncIterator[bytes]]:
        self.reads.append(digest)
        async with self._inner.open(digest, offset, limit) as pieces:
            yield self._through(pieces)

    async def _through(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        passed = 0
        async for piece in pieces:
            if self.gate is not None:
                await self.gate.acquire()
            if passed == self.fails_after:
                self.fails_after = None
                raise Unavailable("the connection is gone")
            passed += 1
            yield piece

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        self.asked.append(digest)
        await self._inner.put(digest, chunks)


# Verified


@pytest.mark.parametrize("function", list(DigestFunction), ids=lambda function: function.name)
@pytest.mark.parametrize("size_bytes", [1, 1000, 300 << 10, 3 * MIB])
async def test_a_blob_that_is_not_what_it_claims_is_never_visible(function: DigestFunction, size_bytes: int) -> None:
    inner = MemoryStore()
    store = Verified(inner)
    digest = Digest.of(b"r" * size_bytes, function)

    with pytest.raises(DigestMismatch, match=digest.hash):
        await store.put(digest, in_chunks(b"w" * size_bytes))
    failures = await store.write_many([(digest, b"w" * size_bytes)])

    assert isinstance(failures[digest], DigestMismatch)
    assert Digest.of(b"w" * size_bytes, function).hash in str(failures[digest])
    assert inner.blobs == {}


async def test_each_blob_of_a_batch_is_checked_on_its_own() -> None:
    inner = MemoryStore()
    blobs = [blob(size, seed) for size in (10, 200_000) for seed in range(4)]
    wrong = {blobs[1][0], blobs[6][0]}

    failures = await Verified(inner).write_many(
        [(digest, data[::-1] if digest in wrong else data) for digest, data in blobs]
    )

    assert set(failures) == wrong
    assert set(inner.blobs) == {digest for digest, _ in blobs} - wrong


async def test_the_last_wrong_byte_of_a_large_blob_is_found() -> None:
    inner = MemoryStore()
    digest, data = blob(5 * MIB)

    with pytest.raises(DigestMismatch):
        await Verified(inner).put(digest, in_chunks(data[:-1] + bytes([data[-1] ^ 1])))

    assert inner.blobs == {}


@pytest.mark.parametrize("function", list(DigestFunction), ids=lambda function: function.name)
async def test_the_empty_blob_always_exists_and_the_inner_store_never_hears_of_it(function: DigestFunction) -> None:
    inner = Watched(MemoryStore())
    store = Verified(inner)
    empty = EMPTY[function]

    assert await store.find_missing([empty]) == set()
    assert await store.read_many([empty]) == {empty: b""}
    assert await read(store, empty) == b""
    assert await store.write_many([(empty, b"")]) == {}
    await store.put(empty, in_chunks(b""))
    with pytest.raises(OffsetOutOfRange):
        await read(store, empty, 1)
    with pytest.raises(DigestMismatch):
        await store.put(empty, in_chunks(b"x"))
    assert set(await store.write_many([(empty, b"x")])) == {empty}

    assert inner.asked == inner.reads == []


async def test_an_empty_blob_with_a_wrong_hash_never_exists() -> None:
    store = Verified(MemoryStore())
    wrong = Digest("ab" * 32, 0)

    assert await store.find_missing([wrong]) == {wrong}
    with pytest.raises(DigestMismatch):
        await store.put(wrong, in_chunks(b""))
    assert set(await store.write_many([(wrong, b"")])) == {wrong}
    with pytest.raises(BlobNotFound):
        await read(store, wrong)


# Tiered


async def test_small_blobs_are_read_from_the_slow_store_once() -> None:
    slow, fast = Watched(MemoryStore()), MemoryStore()
    blobs = dict(blob(1000, seed) for seed in range(3))
    await slow.write_many(list(blobs.items()))
    async with Tiered(fast, slow) as store:
        for _ in range(2):
            assert await store.read_many([*blobs, *blobs]) == blobs
            assert {digest: await read(store, digest) for digest in blobs} == blobs

    assert sorted(slow.reads, key=str) == sorted(blobs, key=str)
    assert fast.blobs == blobs


async def test_the_slow_store_has_the_last_word_on_what_is_missing() -> None:
    slow, fast = MemoryStore(), MemoryStore()
    digest, data = blob(1000)
    await fast.write_many([(digest, data)])
    async with Tiered(fast, slow) as store:
        assert await store.find_missing([digest]) == {digest}
        await store.write_many([(digest, data)])
        assert await store.find_missing([digest]) == set()
    assert slow.blobs == {digest: data}


async def test_what_the_slow_store_refuses_does_not_get_into_the_fast_one() -> None:
    slow, fast = MemoryStore(10_000), MemoryStore()
    (good, good_data), (bad, bad_data) = blob(1000), blob(20_000)
    async with Tiered(fast, slow) as store:
        assert set(await store.write_many([(bad, bad_data), (good, good_data)])) == {bad}
    assert fast.blobs == {good: good_data}


async def test_a_blob_that_the_fast_store_cannot_take_is_read_all_the_same() -> None:
    slow, fast = MemoryStore(), MemoryStore(2000)
    blobs = dict([blob(5000), blob(3 * MIB)])
    await slow.write_many(list(blobs.items()))
    async with Tiered(fast, slow) as store:
        assert {digest: await read(store, digest) for digest in blobs} == blobs
        assert await store.read_many(list(blobs)) == blobs


async def test_a_part_of_a_large_blob_is_read_without_fetching_the_rest() -> None:
    slow, fast = Watched(MemoryStore()), MemoryStore()
    digest, data = blob(9 * MIB)
    await slow.put(digest, in_chunks(data))
    async with Tiered(fast, slow) as store:
        assert await read(store, digest, 5 * MIB, 10) == data[5 * MIB : 5 * MIB + 10]
        assert await read(store, digest, 0, 10) == data[:10]
    assert fast.blobs == {}


async def test_a_large_blob_that_several_want_is_read_from_the_slow_store_once() -> None:
    slow, fast = Watched(MemoryStore()), MemoryStore()
    digest, data = blob((LEAD_CHUNKS + 4) * MIB)
    await slow.put(digest, in_chunks(data))
    async with asyncio.timeout(30), Tiered(fast, slow) as store:
        async with asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(read(store, digest)) for _ in range(5)]
        assert all(reader.result() == data for reader in readers)
        assert await read(store, digest) == data

    assert slow.reads == [digest]
    assert fast.blobs == {digest: data}


async def test_the_first_reader_gets_the_first_piece_before_the_blob_has_come() -> None:
    slow, fast = Watched(MemoryStore()), MemoryStore()
    digest, data = blob(4 * MIB)
    await slow.put(digest, in_chunks(data))
    slow.gate = asyncio.Semaphore(1)
    async with asyncio.timeout(30), Tiered(fast, slow) as store, store.open(digest) as pieces:
        assert await anext(pieces) == data[:MIB]
        assert fast.blobs == {}
        for _ in range(3):
            slow.gate.release()
        assert b"".join([piece async for piece in pieces]) == data[MIB:]


async def test_a_slow_reader_neither_holds_up_the_others_nor_fills_the_memory() -> None:
    slow, fast = Watched(MemoryStore()), Watched(MemoryStore())
    digest, data = blob((LEAD_CHUNKS + 4) * MIB)
    await slow.put(digest, in_chunks(data))
    async with asyncio.timeout(30), Tiered(fast, slow) as store, store.open(digest) as pieces:
        first = await anext(pieces)
        assert await read(store, digest) == data
        fast.reads.clear()
        assert first + b"".join([piece async for piece in pieces]) == data
    assert slow.reads == [digest]
    # No more than LEAD_CHUNKS were kept for the slow reader: his rest came from the fast store.
    assert fast.reads == [digest]


async def test_a_first_reader_who_leaves_takes_nothing_from_the_others() -> None:
    slow, fast = Watched(MemoryStore()), MemoryStore()
    digest, data = blob(6 * MIB)
    await slow.put(digest, in_chunks(data))
    slow.gate = asyncio.Semaphore(1)
    async with asyncio.timeout(30), Tiered(fast, slow) as store:
        async with store.open(digest) as pieces:
            await anext(pieces)
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(read(store, digest))
            for _ in range(5):
                slow.gate.release()
        assert reader.result() == data
    assert slow.reads == [digest]


async def test_a_fill_that_breaks_off_leaves_nothing_and_the_readers_go_on_by_themselves() -> None:
    slow, fast = Watched(MemoryStore()), MemoryStore()
    digest, data = blob(6 * MIB)
    await slow.put(digest, in_chunks(data))
    slow.fails_after = 2
    async with asyncio.timeout(30), Tiered(fast, slow) as store:
        async with asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(read(store, digest)) for _ in range(2)]
        assert all(reader.result() == data for reader in readers)
        assert fast.blobs == {}


async def test_a_large_blob_that_nobody_has_is_missing_for_all_who_ask() -> None:
    digest, _ = blob(3 * MIB)
    async with asyncio.timeout(30), Tiered(MemoryStore(), MemoryStore()) as store:
        failures = await asyncio.gather(*(read(store, digest) for _ in range(3)), return_exceptions=True)
    assert [type(failure) for failure in failures] == [BlobNotFound] * 3


async def test_a_reader_cancelled_before_the_fill_began_leaves_no_one_waiting() -> None:
    slow, fast = MemoryStore(), MemoryStore()
    digest, data = blob(3 * MIB)
    await slow.put(digest, in_chunks(data))
    async with asyncio.timeout(30), Tiered(fast, slow) as store:
        first = asyncio.ensure_future(read(store, digest))
        await asyncio.sleep(0)
        first.cancel()
        assert await read(store, digest) == data


async def test_closing_ends_a_fill_under_way() -> None:
    slow, fast = Watched(MemoryStore()), MemoryStore()
    digest, data = blob(4 * MIB)
    await slow.put(digest, in_chunks(data))
    slow.gate = asyncio.Semaphore(1)
    async with asyncio.timeout(30):
        async with Tiered(fast, slow) as store, store.open(digest) as pieces:
            await anext(pieces)
    assert fast.blobs == {}
    assert fast.used_bytes == 0
