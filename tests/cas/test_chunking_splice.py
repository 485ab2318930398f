"""Splices: what is read, when it is believed, and what is left of a failure (behaviour 54)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import pytest

from cas.chunking_splice import CHUNKS_AT_ONCE, MAX_REPEATED_BYTES, Splices
from cas.compose import Verified
from cas.digest import Digest
from cas.errors import ChunksMissing, DigestMismatch, MalformedRequest
from cas.memory import MemoryStore
from tests.blobs import MIB, blob


class Watched(MemoryStore):
    """A store that counts what it gives and takes, can be told to wait before it takes, and can lose blobs."""

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        super().__init__(max_bytes)
        self.lost: set[Digest] = set()
        """Gone by the time that they are read."""
        self.reads = 0
        self.given_bytes = 0
        self.taken_bytes = 0
        self.most_ahead_bytes = 0
        self.puts = 0
        self.put_waits = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    def _give(self, size_bytes: int) -> None:
        self.given_bytes += size_bytes
        self.most_ahead_bytes = max(self.most_ahead_bytes, self.given_bytes - self.taken_bytes)

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        self.reads += 1
        found = await super().read_many([digest for digest in digests if digest not in self.lost])
        self._give(sum([len(data) for data in found.values()]))
        return found

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        wanted = Digest("0" * 64, 7) if digest in self.lost else digest
        async with super().open(wanted, offset, limit) as pieces:
            yield self._given(pieces)

    async def _given(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            self._give(len(piece))
            yield piece

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        self.puts += 1
        await super().put(digest, self._taken(chunks))

    async def _taken(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self.put_waits.set()
            await self.go_on.wait()
            self.taken_bytes += len(chunk)
            yield chunk


async def add(store: Watched, *blobs: bytes) -> list[Digest]:
    digests = [Digest.of(data) for data in blobs]
    assert await store.write_many(list(zip(digests, blobs, strict=True))) == {}
    return digests


def parts(data: bytes, chunk_bytes: int) -> list[bytes]:
    return [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]


@pytest.fixture
def store() -> Watched:
    return Watched()


SIZES = pytest.mark.parametrize("chunk_bytes", [10_000, 300_000, 700_000, MIB, MIB + 1, 3 * MIB])


@SIZES
async def test_a_large_blob_is_never_in_memory_as_a_whole(store: Watched, chunk_bytes: int) -> None:
    digest, data = blob(20 * MIB + 5)
    chunks = await add(store, *parts(data, chunk_bytes))
    await Splices().splice(Verified(store), digest, chunks)
    assert store.blobs[digest] == data
    assert store.given_bytes == store.taken_bytes == len(data)
    assert store.most_ahead_bytes <= 2 * MIB


async def test_small_chunks_are_read_many_at_a_time(store: Watched) -> None:
    digest, data = blob(5 * CHUNKS_AT_ONCE * 7, seed=1)
    chunks = await add(store, *parts(data, 7))
    await Splices().splice(Verified(store), digest, chunks)
    assert store.blobs[digest] == data
    assert store.reads == 5


@SIZES
async def test_a_blob_that_is_another_one_leaves_nothing(store: Watched, chunk_bytes: int) -> None:
    _, data = blob(4 * MIB)
    chunks = await add(store, *parts(data, chunk_bytes))
    used_bytes = store.used_bytes
    with pytest.raises(DigestMismatch, match=str(Digest.of(data))):
        await Splices().splice(Verified(store), Digest.of(bytes(4 * MIB)), chunks)
    assert set(store.blobs) == set(chunks)
    assert store.used_bytes == used_bytes


@SIZES
async def test_a_chunk_that_goes_meanwhile_is_named(store: Watched, chunk_bytes: int) -> None:
    digest, data = blob(4 * MIB + 1)
    chunks = await add(store, *parts(data, chunk_bytes))
    store.lost = {chunks[-1]}
    with pytest.raises(ChunksMissing) as failure:
        await Splices().splice(Verified(store), digest, chunks)
    assert failure.value.digests == (chunks[-1],)
    assert digest not in store.blobs


async def test_a_lie_made_of_one_chunk_repeated_pushes_nothing_out_of_the_store() -> None:
    store = Watched(max_bytes=12 * MIB)
    others = await add(store, *[blob(MIB, seed)[1] for seed in range(9)])
    [zeros] = await add(store, bytes(MIB))
    with pytest.raises(DigestMismatch):
        await Splices().splice(Verified(store), Digest("ab" * 32, 10 * MIB), [zeros] * 10)
    assert set(store.blobs) == {*others, zeros}
    assert store.puts == 0
    await Splices().splice(Verified(store), Digest.of(bytes(10 * MIB)), [zeros] * 10)
    assert store.blobs[Digest.of(bytes(10 * MIB))] == bytes(10 * MIB)


async def test_no_request_makes_the_server_hash_for_hours(store: Watched) -> None:
    [zeros] = await add(store, bytes(MIB))
    many = MAX_REPEATED_BYTES // MIB + 1
    with pytest.raises(MalformedRequest, match=f"{MAX_REPEATED_BYTES} is the most"):
        await Splices().splice(store, Digest("ab" * 32, many * MIB), [zeros] * many)
    assert store.puts == 0


async def test_a_client_that_goes_away_leaves_nothing(store: Watched) -> None:
    digest, data = blob(4 * MIB)
    chunks = await add(store, *parts(data, 700_000))
    used_bytes = store.used_bytes
    splices = Splices(max_runs=1)
    store.go_on.clear()
    async with asyncio.timeout(30):
        task = asyncio.create_task(splices.splice(Verified(store), digest, chunks))
        await store.put_waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert store.used_bytes == used_bytes
        store.go_on.set()
        await splices.splice(Verified(store), digest, chunks)
    assert store.blobs[digest] == data


async def test_only_so_many_blobs_are_spliced_at_once(store: Watched) -> None:
    splices = Splices(max_runs=1)
    wanted = [blob(2 * MIB, seed) for seed in range(3)]
    store.go_on.clear()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for digest, data in wanted:
            chunks = await add(store, *parts(data, 500_000))
            tasks.create_task(splices.splice(Verified(store), digest, chunks))
        await store.put_waits.wait()
        assert store.puts == 1
        # Those that need no run are answered meanwhile.
        with pytest.raises(ChunksMissing):
            await splices.splice(Verified(store), Digest("ab" * 32, 7), [Digest("cd" * 32, 7)])
        store.go_on.set()
    assert all(store.blobs[digest] == data for digest, data in wanted)


async def test_several_who_splice_one_blob_at_once_all_succeed(store: Watched) -> None:
    digest, data = blob(3 * MIB)
    chunks = await add(store, *parts(data, 400_000))
    splices = Splices()
    await asyncio.gather(*[splices.splice(Verified(store), digest, chunks) for _ in range(8)])
    assert store.blobs[digest] == data


Cut = Callable[[Iterable[bytes]], list[bytes]]


@pytest.mark.parametrize("cut", [list, lambda pieces: [b"", *pieces, b"", b""]], ids=["plain", "with empty chunks"])
async def test_empty_chunks_do_no_harm(store: Watched, cut: Cut) -> None:
    digest, data = blob(10_000)
    pieces = cut(parts(data, 999))
    await add(store, *[piece for piece in pieces if piece])
    await Splices().splice(Verified(store), digest, [Digest.of(piece) for piece in pieces])
    assert store.blobs[digest] == data
