"""Splits: who does the work, what is remembered, and how much is held meanwhile (behaviour 54)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from cas.action_cache import MemoryActionCache
from cas.chunking import ChunkingFunction
from cas.chunking_split import Splits
from cas.compose import Verified
from cas.digest import Digest
from cas.errors import BlobNotFound, NotFound, StatusError, StoreFull
from cas.instances import Instance
from cas.memory import MemoryStore
from tests.blobs import MIB, blob, read

FAST, REP = ChunkingFunction
MANY = 1_000


class Watched(MemoryStore):
    """A store that counts what it gives and takes, can be told to wait before it gives, and to fail when it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[Digest] = []
        self.waiting = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.failure: StatusError | None = None
        self.given_bytes = 0
        self.taken_bytes = 0
        self.most_ahead_bytes = 0

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.opened.append(digest)
        async with super().open(digest, offset, limit) as pieces:
            self.waiting.set()
            await self.go_on.wait()
            yield self._counted(pieces)

    async def _counted(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            self.given_bytes += len(piece)
            self.most_ahead_bytes = max(self.most_ahead_bytes, self.given_bytes - self.taken_bytes)
            yield piece

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        self.taken_bytes += sum([len(data) for _, data in blobs])
        if self.failure is not None:
            return {digest: self.failure for digest, _ in blobs}
        return await super().write_many(blobs)

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        if self.opened:  # the blobs of the test itself come before
            self.taken_bytes += digest.size_bytes
        await super().put(digest, chunks)


class Place:
    """A store with an instance over it."""

    def __init__(self) -> None:
        self.store = Watched()
        self.instance = Instance("main", Verified(self.store), MemoryActionCache())

    async def add(self, size_bytes: int, seed: int = 0) -> Digest:
        digest, data = blob(size_bytes, seed)
        await self.keep(digest, iter([data]))
        return digest

    async def keep(self, digest: Digest, pieces: Iterator[bytes]) -> None:
        async def sent() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        await self.store.put(digest, sent())


@pytest.fixture
def place() -> Place:
    return Place()


async def test_the_chunks_are_stored_before_they_are_named(place: Place) -> None:
    digest = await place.add(5 * MIB)
    chunks = await Splits().chunks_of(place.instance, digest, FAST, MANY)
    assert b"".join([await read(place.store, chunk) for chunk in chunks]) == await read(place.store, digest)


async def test_an_answer_is_remembered_for_each_blob_function_and_instance(place: Place) -> None:
    splits = Splits()
    digest = await place.add(3 * MIB)
    other = Instance("other", place.instance.store, place.instance.action_cache)
    asked = [(place.instance, FAST), (place.instance, REP), (other, FAST)]
    first = [await splits.chunks_of(instance, digest, function, MANY) for instance, function in asked]
    assert len(place.store.opened) == 3
    assert [await splits.chunks_of(instance, digest, function, MANY) for instance, function in asked] == first
    assert len(place.store.opened) == 3
    assert first[0] == first[2] != first[1]
    assert splits.kept_chunks == sum(len(chunks) for chunks in first)


async def test_no_more_is_remembered_than_allowed_and_what_was_used_last_stays(place: Place) -> None:
    splits = Splits(max_kept_chunks=30)
    digests = [await place.add(3 * MIB, seed) for seed in range(3)]
    sizes = [len(await splits.chunks_of(place.instance, digest, REP, MANY)) for digest in digests]
    assert max(sizes) <= 11
    assert sum(sizes) <= 30
    await splits.chunks_of(place.instance, digests[0], REP, MANY)
    await splits.chunks_of(place.instance, await place.add(3 * MIB, 3), REP, MANY)
    assert splits.kept_chunks <= 30
    opened = len(place.store.opened)
    await splits.chunks_of(place.instance, digests[0], REP, MANY)
    assert len(place.store.opened) == opened
    await splits.chunks_of(place.instance, digests[1], REP, MANY)
    assert len(place.store.opened) == opened + 1


async def test_several_who_ask_at_once_share_one_run(place: Place) -> None:
    splits = Splits()
    digest = await place.add(3 * MIB)
    answers = await asyncio.gather(*[splits.chunks_of(place.instance, digest, FAST, MANY) for _ in range(20)])
    assert place.store.opened == [digest]
    assert len(set(map(tuple, answers))) == 1


async def test_if_the_first_goes_away_the_next_does_the_work(place: Place) -> None:
    splits = Splits()
    digest = await place.add(3 * MIB)
    place.store.go_on.clear()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(splits.chunks_of(place.instance, digest, FAST, MANY))
        second = tasks.create_task(splits.chunks_of(place.instance, digest, FAST, MANY))
        await place.store.waiting.wait()
        first.cancel()
        place.store.go_on.set()
    assert first.cancelled()
    assert len(second.result()) > 1
    assert place.store.opened == [digest, digest]


async def test_if_all_go_away_nothing_is_remembered(place: Place) -> None:
    splits = Splits(max_runs=1)
    digest = await place.add(3 * MIB)
    place.store.go_on.clear()
    tasks = [asyncio.create_task(splits.chunks_of(place.instance, digest, FAST, MANY)) for _ in range(3)]
    async with asyncio.timeout(30):
        await place.store.waiting.wait()
        for task in tasks:
            task.cancel()
        assert {type(outcome) for outcome in await asyncio.gather(*tasks, return_exceptions=True)} == {
            asyncio.CancelledError
        }
        assert splits.kept_chunks == 0
        place.store.go_on.set()
        assert await splits.chunks_of(place.instance, digest, FAST, MANY)


async def test_only_so_many_blobs_are_split_at_once_and_the_others_wait(place: Place) -> None:
    splits = Splits(max_runs=2)
    digests = [await place.add(3 * MIB, seed) for seed in range(4)]
    small = await place.add(1000)
    place.store.go_on.clear()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(splits.chunks_of(place.instance, digest, FAST, MANY)) for digest in digests]
        while len(place.store.opened) < 2:
            place.store.waiting.clear()
            await place.store.waiting.wait()
        # What needs no run need not wait for one.
        assert await splits.chunks_of(place.instance, small, FAST, MANY) == (small,)
        with pytest.raises(BlobNotFound):
            await splits.chunks_of(place.instance, blob(3 * MIB, seed=9)[0], FAST, MANY)
        assert len(place.store.opened) == 2
        place.store.go_on.set()
    assert all(len(run.result()) > 1 for run in runs)


@pytest.mark.parametrize("function", list(ChunkingFunction))
async def test_a_run_holds_a_few_mebibytes_of_a_large_blob(place: Place, function: ChunkingFunction) -> None:
    rng = random.Random(7)
    data = rng.randbytes(40 * MIB)
    digest = Digest.of(data)
    await place.keep(digest, iter([data]))
    del data
    chunks = await Splits().chunks_of(place.instance, digest, function, MANY)
    assert sum(chunk.size_bytes for chunk in chunks) == place.store.given_bytes == place.store.taken_bytes == 40 * MIB
    assert place.store.most_ahead_bytes <= 4 * MIB


async def test_chunks_that_are_stored_already_are_not_written_again(place: Place) -> None:
    digest, data = blob(6 * MIB)
    longer = Digest.of(data + b"more")
    await place.keep(digest, iter([data]))
    await place.keep(longer, iter([data, b"more"]))
    splits = Splits()
    first = await splits.chunks_of(place.instance, digest, FAST, MANY)
    place.store.taken_bytes = 0
    second = await splits.chunks_of(place.instance, longer, FAST, MANY)
    assert first[:-1] == second[: len(first) - 1]
    assert place.store.taken_bytes <= sum(chunk.size_bytes for chunk in second[len(first) - 1 :])


@pytest.mark.parametrize("function", list(ChunkingFunction))
async def test_a_blob_of_one_byte_over_and_over_is_split_into_equal_chunks(
    place: Place, function: ChunkingFunction
) -> None:
    digest = Digest.of(bytes(9 * MIB))
    await place.keep(digest, iter([bytes(9 * MIB)]))
    chunks = await Splits().chunks_of(place.instance, digest, function, MANY)
    assert len(set(chunks)) <= 2
    assert sum(chunk.size_bytes for chunk in chunks) == 9 * MIB


async def test_a_store_that_fails_is_heard_and_the_next_request_tries_again(place: Place) -> None:
    splits = Splits()
    digest = await place.add(3 * MIB)
    place.store.failure = StoreFull("no room")
    with pytest.raises(StoreFull, match="no room"):
        await splits.chunks_of(place.instance, digest, REP, MANY)
    place.store.failure = None
    assert len(await splits.chunks_of(place.instance, digest, REP, MANY)) > 1


@pytest.mark.parametrize("function", list(ChunkingFunction))
async def test_more_chunks_than_an_answer_holds_are_no_answer(place: Place, function: ChunkingFunction) -> None:
    splits = Splits()
    digest = await place.add(5 * MIB)
    count = len(await splits.chunks_of(place.instance, digest, function, MANY))
    splits = Splits()
    assert len(await splits.chunks_of(place.instance, digest, function, count)) == count
    for most in (count - 1, 1):
        with pytest.raises(NotFound, match=f"more than {most} chunks"):
            await Splits().chunks_of(place.instance, digest, function, most)


async def test_what_can_only_be_too_much_is_not_even_read(place: Place) -> None:
    digest = await place.add(5 * MIB)
    with pytest.raises(NotFound, match="more than 2 chunks"):
        await Splits().chunks_of(place.instance, digest, FAST, 2)
    assert place.store.opened == []
