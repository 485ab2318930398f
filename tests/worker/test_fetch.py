"""How often the store is asked for inputs: few calls for many small blobs, and several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from cas.digest import Digest
from cas.memory import MemoryStore
from cas.store import SMALL_BLOB_BYTES
from rexec.worker.blob_files import BlobFiles, FileKey
from rexec.worker.files import FileCache
from rexec.worker.transfer import CALLS_IN_FLIGHT


class Asked(MemoryStore):
    """Notes what it is asked, and answers nobody before so many are asking as may at once."""

    def __init__(self, at_once: int = 1) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.questions = 0
        self.asking = self.most_asking = 0
        self._at_once = at_once
        self._enough = asyncio.Event()

    async def find_missing(self, digests: object) -> set[Digest]:
        self.questions += 1
        return set()

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        self.batches.append(len(digests))
        async with self._call():
            return await super().read_many(digests)

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        async with self._call(), super().open(digest, offset, limit) as chunks:
            yield chunks

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        self.asking += 1
        self.most_asking = max(self.most_asking, self.asking)
        if self.asking >= self._at_once:
            self._enough.set()
        try:
            await self._enough.wait()
            yield
        finally:
            self.asking -= 1


async def fetched(store: Asked, path: Path, blobs: Sequence[bytes]) -> None:
    """The blobs come from the store into a cache."""
    await store.write_many([(Digest.of(data), data) for data in blobs])
    cache = FileCache(BlobFiles(str(path)), 1 << 30)
    await cache.adopt()
    keys = [FileKey(Digest.of(data), False) for data in blobs]
    async with asyncio.timeout(60):
        with await cache.hold(keys, store):
            assert all(map(cache.files.is_right, keys))


async def test_small_inputs_come_in_batches_and_nobody_asks_whether_they_are_there(tmp_path: Path) -> None:
    store = Asked()
    await fetched(store, tmp_path, [b"input %d" % number for number in range(2500)])
    assert (sorted(store.batches), store.questions) == ([500, 2000], 0)


async def test_a_batch_fits_a_message(tmp_path: Path) -> None:
    store = Asked()
    await fetched(store, tmp_path, [bytes([number]) * (900 << 10) for number in range(7)])
    assert sorted(store.batches) == [1, 3, 3]


async def test_large_inputs_come_several_at_a_time_and_no_more(tmp_path: Path) -> None:
    store = Asked(CALLS_IN_FLIGHT)
    await fetched(store, tmp_path, [bytes([number]) * (SMALL_BLOB_BYTES + 1) for number in range(CALLS_IN_FLIGHT + 3)])
    assert (store.most_asking, store.batches) == (CALLS_IN_FLIGHT, [])


async def test_batches_and_large_inputs_share_the_calls(tmp_path: Path) -> None:
    store = Asked(CALLS_IN_FLIGHT)
    large = [bytes([number]) * (SMALL_BLOB_BYTES + 1) for number in range(CALLS_IN_FLIGHT)]
    await fetched(store, tmp_path, [*large, *(b"input %d" % number for number in range(100))])
    assert (store.most_asking, store.batches) == (CALLS_IN_FLIGHT, [100])
