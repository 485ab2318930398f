"""What every BlobStore does when its room is scarce, and when many use it at once (cas/store.py)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager

import pytest

from cas.digest import Digest
from cas.errors import BlobNotFound, DigestMismatch, StoreFull
from cas.store import BlobStore
from tests.blobs import KIB, MIB, blob, in_chunks, read

OpenStore = Callable[[int], AbstractAsyncContextManager[BlobStore]]


async def fill(store: BlobStore, blobs: Iterable[tuple[Digest, bytes]]) -> None:
    for digest, data in blobs:
        await store.put(digest, in_chunks(data))


# Room


async def test_what_was_used_longest_ago_is_forgotten_first(open_store: OpenStore) -> None:
    blobs = [blob(MIB - 4096, seed) for seed in range(6)]
    digests = [digest for digest, _ in blobs]
    async with open_store(4 * MIB) as store:
        await fill(store, blobs[:4])
        await store.find_missing([digests[0]])
        await fill(store, blobs[4:])

        assert await store.find_missing(digests) == {digests[1], digests[2]}


async def test_a_large_blob_pushes_out_as_many_small_ones_as_it_needs(open_store: OpenStore) -> None:
    small = [blob(MIB - 4096, seed) for seed in range(8)]
    large, data = blob(3 * MIB - 8192)
    async with open_store(8 * MIB) as store:
        await fill(store, small)
        await store.put(large, in_chunks(data))

        assert await store.find_missing([large, *(digest for digest, _ in small)]) == {
            digest for digest, _ in small[:3]
        }
        assert await read(store, large) == data


async def test_a_blob_that_can_never_fit_is_refused_and_evicts_nothing(open_store: OpenStore) -> None:
    held = [blob(MIB - 4096, seed) for seed in range(4)]
    large, data = blob(4 * MIB + 1)
    async with open_store(4 * MIB) as store:
        await fill(store, held)

        with pytest.raises(StoreFull):
            await store.put(large, in_chunks(data))
        failures = await store.write_many([(large, data)])

        assert isinstance(failures[large], StoreFull)
        assert await store.find_missing([large, *(digest for digest, _ in held)]) == {large}


async def test_a_batch_pushes_out_none_of_its_own(open_store: OpenStore) -> None:
    present = [blob(256 * KIB - 4096, seed) for seed in range(4)]
    others = [blob(256 * KIB - 4096, seed) for seed in range(4, 6)]
    async with open_store(MIB) as store:
        await fill(store, present)

        # Two are there, so two others fit beside them.
        assert await store.write_many([*present[:2], *others]) == {}
        kept = [digest for digest, _ in [*present[:2], *others]]
        assert await store.find_missing(kept) == set()

        # All that is there is asked for again, so nothing fits beside it.
        batch = [*present[:2], *others, present[2]]
        failures = await store.write_many(batch)
        assert list(failures) == [present[2][0]]
        assert isinstance(failures[present[2][0]], StoreFull)
        assert await store.find_missing(kept) == set()


async def test_a_size_that_is_only_claimed_evicts_nothing(open_store: OpenStore) -> None:
    held = [blob(MIB - 4096, seed) for seed in range(4)]
    claimed = Digest("ab" * 32, 4 * MIB - 8192)
    async with open_store(4 * MIB) as store:
        await fill(store, held)

        with pytest.raises(DigestMismatch):
            await store.put(claimed, in_chunks(b""))

        assert await store.find_missing([digest for digest, _ in held]) == set()


async def test_failed_writes_give_their_room_back(open_store: OpenStore) -> None:
    failing, failing_data = blob(3 * MIB)
    last, last_data = blob(4 * MIB - 4096)
    async with open_store(4 * MIB) as store:
        for _ in range(5):
            with pytest.raises(DigestMismatch):
                await store.put(failing, in_chunks(failing_data[:-1]))
            assert await store.write_many([(failing, failing_data[:-1])])

        await store.put(last, in_chunks(last_data))

        assert await read(store, last) == last_data


async def test_a_blob_being_read_stays_readable_when_it_is_forgotten(open_store: OpenStore) -> None:
    for size_bytes in (MIB - 4096, 3 * MIB):
        digest, data = blob(size_bytes)
        async with open_store(4 * MIB) as store:
            await store.put(digest, in_chunks(data))
            async with store.open(digest) as pieces:
                first = await anext(pieces)
                await fill(store, [blob(MIB - 4096, 100 + seed) for seed in range(5)])
                assert await store.find_missing([digest]) == {digest}
                assert first + b"".join([piece async for piece in pieces]) == data


# At the same time


@pytest.mark.parametrize("size_bytes", [1000, 3 * MIB])
async def test_the_same_blob_may_be_put_by_many_at_once(store: BlobStore, size_bytes: int) -> None:
    digest, data = blob(size_bytes)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(store.put(digest, in_chunks(data)))
            tasks.create_task(store.write_many([(digest, data)]))

    assert await read(store, digest) == data


async def test_many_may_read_one_large_blob_at_once(store: BlobStore) -> None:
    digest, data = blob(12 * MIB)
    await store.put(digest, in_chunks(data))

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(read(store, digest)) for _ in range(6)]

    assert all(reader.result() == data for reader in readers)


async def test_batches_that_overlap_may_be_written_at_once(store: BlobStore) -> None:
    blobs = [blob(size, seed) for seed in range(20) for size in (10, 40_000)]
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        batches = [tasks.create_task(store.write_many(blobs[start : start + 25])) for start in range(16)]

    assert [batch.result() for batch in batches] == [{}] * 16
    assert await store.read_many([digest for digest, _ in blobs]) == dict(blobs)


@pytest.mark.parametrize("seed", range(3))
async def test_under_pressure_from_all_sides_no_wrong_byte_is_read(open_store: OpenStore, seed: int) -> None:
    """Writers, readers and cancelled writers share a store that holds a third of their blobs."""
    sizes = [1, 1000, 128 * KIB, 128 * KIB + 1, 500_000, MIB, MIB + 1, 2 * MIB]
    blobs = [blob(size, number) for size in sizes for number in range(3)]
    async with open_store(5 * MIB) as store:

        async def client(number: int) -> None:
            choice = random.Random(f"{seed} {number}")
            for _ in range(25):
                some = choice.sample(blobs, 3)
                digest, data = some[0]
                try:
                    match choice.randrange(4):
                        case 0:
                            await store.put(digest, in_chunks(data))
                        case 1:
                            await store.write_many(some)
                        case 2:
                            assert await read(store, digest) == data
                        case _:
                            held = await store.read_many([digest for digest, _ in some])
                            assert held.items() <= dict(some).items()
                except (StoreFull, BlobNotFound):
                    # Too much at once for so small a store, or forgotten: both are answers.
                    pass

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            clients = [tasks.create_task(client(number)) for number in range(8)]
            await asyncio.sleep(0)
            for victim in clients[:3]:
                victim.cancel()

        # All room is free again: nothing that failed or was cancelled still holds some.
        last, data = blob(5 * MIB - 512)
        await store.put(last, in_chunks(data))
        assert await read(store, last) == data
        digests = [digest for digest, _ in blobs]
        assert await store.find_missing(digests) == set(digests)
