"""DiskStore: restarts, its directory, files damaged behind its back. Crashes are in test_disk_crash.py."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from cas.blob_directory import BlobDirectory
from cas.digest import Digest
from cas.disk import DiskStore, charge
from cas.errors import BlobNotFound
from cas.file_lock import DirectoryUnusable
from tests.blobs import MIB, blob, in_chunks, read

BOUND = 64 * MIB
HOUR = 3600.0


def file_of(root: Path, digest: Digest) -> Path:
    return Path(BlobDirectory(root).path_of(digest))


def files_below(root: Path) -> set[Path]:
    return {path for path in (root / "blobs").rglob("*") if path.is_file()} | set((root / "incoming").iterdir())


# Restart


async def test_blobs_are_there_after_a_restart_in_the_order_of_their_use(tmp_path: Path) -> None:
    blobs = [blob(MIB, seed) for seed in range(4)]
    async with DiskStore(tmp_path, BOUND) as store:
        await store.write_many(blobs)
    for age, (digest, _) in zip([10, 40, 20, 30], blobs, strict=True):
        used_at = time.time() - age
        os.utime(file_of(tmp_path, digest), (used_at, used_at))

    async with DiskStore(tmp_path, 4 * MIB) as store:
        assert await store.read_many([digest for digest, _ in blobs]) == dict(blobs)
    async with DiskStore(tmp_path, 2 * MIB) as store:
        assert await store.find_missing([digest for digest, _ in blobs]) == {blobs[1][0], blobs[3][0]}
        assert store.used_bytes == 2 * MIB
    assert len(files_below(tmp_path)) == 2


async def test_use_is_recorded_so_that_the_order_survives_a_restart(tmp_path: Path) -> None:
    now = time.time()
    (used, used_data), (unused, unused_data) = blob(MIB, 1), blob(MIB, 2)
    async with DiskStore(tmp_path, BOUND, clock=lambda: now) as store:
        await store.write_many([(used, used_data)])
        await store.write_many([(unused, unused_data)])
    async with DiskStore(tmp_path, BOUND, clock=lambda: now + 2 * HOUR) as store:
        await store.read_many([used])

    async with DiskStore(tmp_path, MIB, clock=lambda: now + 2 * HOUR) as store:
        assert await store.find_missing([used, unused]) == {unused}


async def test_what_is_no_whole_blob_is_removed_at_the_start(tmp_path: Path) -> None:
    digest, data = blob(5000)
    async with DiskStore(tmp_path, BOUND) as store:
        await store.write_many([(digest, data)])
    shard = file_of(tmp_path, digest).parent
    name = file_of(tmp_path, digest).name
    strangers = [
        shard / "README",
        shard / f"{digest.hash}-4999",
        shard / f"{digest.hash}-05000",
        shard / f"{digest.hash}--5000",
        shard / f"{digest.hash}-",
        shard / f"{digest.hash}-{'9' * 100}",
        shard / f"{digest.hash.upper()}-5000",
        shard.with_name("zz") / name,
        tmp_path / "incoming" / "half",
    ]
    for stranger in strangers:
        stranger.parent.mkdir(exist_ok=True)
        stranger.write_bytes(data)
    (shard / f"{'ab' * 32}-5000").symlink_to(file_of(tmp_path, digest))

    async with DiskStore(tmp_path, BOUND) as store:
        assert len(store) == 1
        assert await store.read_many([digest]) == {digest: data}
    assert files_below(tmp_path) == {file_of(tmp_path, digest)}


async def test_without_a_bound_the_disk_decides(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    async with DiskStore(tmp_path) as store:
        assert MIB < store.max_bytes <= status.f_blocks * status.f_frsize // 2


# One process for a directory


async def test_a_directory_in_use_is_refused_by_name(tmp_path: Path) -> None:
    async with DiskStore(tmp_path, BOUND):
        with pytest.raises(DirectoryUnusable, match=f"{tmp_path} is in use"):
            await DiskStore(tmp_path, BOUND).__aenter__()
    async with DiskStore(tmp_path, BOUND) as store:
        assert len(store) == 0


async def test_a_directory_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(DirectoryUnusable, match=f"{tmp_path}/file/store cannot be used"):
        await DiskStore(tmp_path / "file" / "store", BOUND).__aenter__()


async def test_a_directory_that_cannot_be_written_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("cas.file_lock.os.open", refuse)

    with pytest.raises(DirectoryUnusable, match=f"{tmp_path} cannot be used: .*Permission denied"):
        await DiskStore(tmp_path, BOUND).__aenter__()


# Damage and eviction


@pytest.mark.parametrize("damage", ["shorter", "longer", "gone"])
@pytest.mark.parametrize("size_bytes", [1000, 500_000, 3 * MIB])
async def test_a_file_damaged_behind_our_back_is_a_missing_blob(tmp_path: Path, damage: str, size_bytes: int) -> None:
    digest, data = blob(size_bytes)

    def spoil() -> None:
        path = file_of(tmp_path, digest)
        match damage:
            case "shorter":
                os.truncate(path, size_bytes - 1)
            case "longer":
                os.truncate(path, size_bytes + 1)
            case _:
                path.unlink()

    async with DiskStore(tmp_path, BOUND) as store:
        for by_batch in (True, False):
            await store.put(digest, in_chunks(data))
            spoil()
            if by_batch:
                assert await store.read_many([digest]) == {}
            else:
                with pytest.raises(BlobNotFound):
                    await read(store, digest)
            assert await store.find_missing([digest]) == {digest}
            assert files_below(tmp_path) == set()
            assert store.used_bytes == 0
        await store.put(digest, in_chunks(data))
        assert await read(store, digest) == data


async def test_a_file_that_shrinks_while_it_is_read_ends_the_read(tmp_path: Path) -> None:
    digest, data = blob(5 * MIB)
    async with DiskStore(tmp_path, BOUND) as store:
        await store.put(digest, in_chunks(data))
        async with store.open(digest) as pieces:
            assert await anext(pieces) == data[:MIB]
            os.truncate(file_of(tmp_path, digest), 2 * MIB + 5)
            assert await anext(pieces) == data[MIB : 2 * MIB]
            with pytest.raises(BlobNotFound):
                await anext(pieces)
        assert await store.find_missing([digest]) == {digest}


async def test_evicted_blobs_leave_the_disk(tmp_path: Path) -> None:
    async with DiskStore(tmp_path, 8 * 4096) as store:
        for seed in range(100):
            await store.write_many([blob(100, seed)])
            assert len(files_below(tmp_path)) <= 8
        assert len(store) == len(files_below(tmp_path)) == 8
        assert store.used_bytes == 8 * 4096


async def test_reading_counts_as_use(tmp_path: Path) -> None:
    blobs = [blob(MIB, seed) for seed in range(3)]
    async with DiskStore(tmp_path, 3 * MIB) as store:
        for one in blobs:
            await store.write_many([one])
        await store.read_many([blobs[0][0]])
        await read(store, blobs[1][0])
        await store.write_many([blob(MIB, 10)])
        assert await store.find_missing([digest for digest, _ in blobs]) == {blobs[2][0]}


def test_a_small_blob_takes_a_block() -> None:
    assert [charge(size) for size in (0, 1, 4096, 4097, MIB)] == [4096, 4096, 4096, 8192, MIB]
