"""The implementations that the contracts run on. Adding a line here is all that a new one needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from cas.action_cache import ActionCache, Complete, MemoryActionCache
from cas.action_cache_disk import DiskActionCache
from cas.compose import Tiered, Verified
from cas.disk import DiskStore
from cas.memory import MemoryStore
from cas.metered import Metered
from cas.remembered import Remembered
from cas.shared_disk import SharedDisk
from cas.store import BlobStore
from tests.far_stores import (
    a_single_shard,
    objects,
    objects_behind_a_disk,
    objects_in_files,
    remote,
    results_elsewhere,
    results_in_objects,
    results_in_shards,
    three_shards,
    three_shards_and_two_replicas,
)
from tests.sharing import InTurn, ResultsInTurn, owner_process

OpenStore = Callable[[int], AbstractAsyncContextManager[BlobStore]]
"""Opens an empty store with room for that many bytes of blobs of more than 64 KiB each."""


@asynccontextmanager
async def memory(_path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    yield MemoryStore(max_bytes)


@asynccontextmanager
async def disk(path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    async with DiskStore(path, max_bytes) as store:
        yield store


@asynccontextmanager
async def verified_memory(_path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    yield Verified(MemoryStore(max_bytes))


@asynccontextmanager
async def verified_disk(path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    async with DiskStore(path, max_bytes) as store:
        yield Verified(store)


@asynccontextmanager
async def metered(_path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    yield Metered(MemoryStore(max_bytes), lambda _size_bytes: None, lambda _size_bytes: None)


@asynccontextmanager
async def tiered(path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    async with DiskStore(path, max_bytes) as slow, Tiered(MemoryStore(max_bytes), slow) as store:
        yield store


@asynccontextmanager
async def tiered_behind_a_small_memory(path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    async with DiskStore(path, max_bytes) as slow, Tiered(MemoryStore(1 << 20), slow) as store:
        yield Verified(store)


@asynccontextmanager
async def remembered(path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    async with DiskStore(path, max_bytes) as far:
        yield Verified(Remembered(far, max_bytes))


@asynccontextmanager
async def guest(path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    async with DiskStore(path, max_bytes, shared=True), SharedDisk(path) as store:
        yield store


@asynccontextmanager
async def owner_of_guests(path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    async with DiskStore(path, max_bytes, shared=True) as store, SharedDisk(path):
        yield store


@asynccontextmanager
async def owner_and_guests_in_turn(path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    async with (
        DiskStore(path, max_bytes, shared=True) as owner,
        SharedDisk(path) as one,
        SharedDisk(path) as other,
    ):
        yield InTurn([owner, one, other])


@asynccontextmanager
async def guest_of_another_process(path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    async with owner_process(path, max_bytes), SharedDisk(path) as store:
        yield store


@asynccontextmanager
async def guests_of_another_process_in_turn(path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    async with owner_process(path, max_bytes), SharedDisk(path) as one, SharedDisk(path) as other:
        yield InTurn([one, other])


BOUNDED = [
    memory,
    disk,
    verified_memory,
    verified_disk,
    metered,
    tiered,
    tiered_behind_a_small_memory,
    remote,
    remembered,
    guest,
    owner_of_guests,
    owner_and_guests_in_turn,
    guest_of_another_process,
    guests_of_another_process_in_turn,
    a_single_shard,
]

UNBOUNDED = [objects, objects_in_files, objects_behind_a_disk, three_shards, three_shards_and_two_replicas]
"""Stores whose room is somebody else's to bound, or bounded in each of their parts."""


@pytest.fixture(params=BOUNDED, ids=lambda opener: opener.__name__)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    return lambda max_bytes: request.param(tmp_path / "store", max_bytes)


@pytest.fixture(params=[*BOUNDED, *UNBOUNDED], ids=lambda opener: opener.__name__)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    async with request.param(tmp_path / "store", 256 << 20) as opened:
        yield opened


OpenActionCache = Callable[[int], AbstractAsyncContextManager[ActionCache]]
"""Opens an empty action cache for that many results."""


@asynccontextmanager
async def results_in_memory(_path: Path, max_entries: int) -> AsyncIterator[ActionCache]:
    yield MemoryActionCache(max_entries)


@asynccontextmanager
async def results_on_disk(path: Path, max_entries: int) -> AsyncIterator[ActionCache]:
    async with DiskActionCache(path / "results.sqlite3", max_entries=max_entries, max_bytes=1 << 30) as cache:
        yield cache


@asynccontextmanager
async def shared_results_in_turn(path: Path, max_entries: int) -> AsyncIterator[ActionCache]:
    def opened(shared: bool = False, guest: bool = False) -> DiskActionCache:
        return DiskActionCache(
            path / "results.sqlite3", max_entries=max_entries, max_bytes=1 << 30, shared=shared, guest=guest
        )

    async with opened(shared=True) as owner, opened(guest=True) as one, opened(guest=True) as other:
        yield ResultsInTurn([owner, one, other])


@asynccontextmanager
async def complete_results(_path: Path, max_entries: int) -> AsyncIterator[ActionCache]:
    yield Complete(MemoryActionCache(max_entries), MemoryStore())


BOUNDED_RESULTS = [results_in_memory, results_on_disk, complete_results, results_elsewhere]
UNBOUNDED_RESULTS = [results_in_objects, results_in_shards]


@pytest.fixture(params=BOUNDED_RESULTS, ids=lambda opener: opener.__name__)
def open_action_cache(request: pytest.FixtureRequest, tmp_path: Path) -> OpenActionCache:
    return lambda max_entries: request.param(tmp_path, max_entries)


@pytest.fixture(params=[*BOUNDED_RESULTS, *UNBOUNDED_RESULTS], ids=lambda opener: opener.__name__)
async def action_cache(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ActionCache]:
    async with request.param(tmp_path, 1000) as opened:
        yield opened
