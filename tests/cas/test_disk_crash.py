"""DiskStore: a killed process, a crash of the machine, a full or broken disk. Each is made to happen."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cas import disk_upkeep
from cas.blob_directory import BlobDirectory
from cas.digest import Digest
from cas.disk import DiskStore, charge
from cas.durability import SyncMarker, load_marker
from cas.errors import Internal, StoreFull
from tests.blobs import MIB, blob, in_chunks, read

BOUND = 64 * MIB
HOUR = 3600.0


def file_of(root: Path, digest: Digest) -> Path:
    return Path(BlobDirectory(root).path_of(digest))


def files_below(root: Path) -> set[Path]:
    return {path for path in (root / "blobs").rglob("*") if path.is_file()} | set((root / "incoming").iterdir())


# The process is killed

KILLED = """
import asyncio, os, random, signal, sys
from pathlib import Path
from cas import blob_directory, disk_transfer
from cas.digest import Digest
from cas.disk import DiskStore

def blob(size_bytes, seed=0):
    data = random.Random(f"{size_bytes} {seed}").randbytes(size_bytes)
    return Digest.of(data), data

async def chunks(data):
    for position in range(0, len(data), 1 << 20):
        yield data[position : position + (1 << 20)]

def write_half_and_die(descriptor, data):
    os.write(descriptor, bytes(data)[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

async def main(root, size_bytes):
    async with DiskStore(root, 64 << 20) as store:
        for size in (1000, 300_000, 3 << 20):
            digest, data = blob(size, 1)
            await store.put(digest, chunks(data))
        blob_directory.write_all = disk_transfer.write_all = write_half_and_die
        digest, data = blob(size_bytes)
        await store.put(digest, chunks(data))

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.parametrize("size_bytes", [2000, 500_000, 3 * MIB])
async def test_a_process_killed_while_it_writes_loses_only_that_blob(tmp_path: Path, size_bytes: int) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(tmp_path), str(size_bytes))
    returncode = await process.wait()
    assert returncode == -signal.SIGKILL
    before = dict(blob(size, 1) for size in (1000, 300_000, 3 * MIB))
    digest, data = blob(size_bytes)
    assert len(files_below(tmp_path)) == 4

    async with DiskStore(tmp_path, BOUND) as store:
        assert await store.find_missing([digest]) == {digest}
        assert {held: await read(store, held) for held in before} == before
        assert len(files_below(tmp_path)) == 3
        await store.put(digest, in_chunks(data))
        assert await read(store, digest) == data


# The machine crashes


async def crash_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blobs: list[tuple[Digest, bytes]]) -> None:
    """Write `blobs`, the first of them long before the last sync, and end without a further one."""
    now = time.time()
    async with DiskStore(tmp_path, BOUND, boot_id=lambda: "first boot", clock=lambda: now) as store:
        await store.write_many(blobs[:1])
        os.utime(file_of(tmp_path, blobs[0][0]), (now - 60, now - 60))
        await store.sync()
        for digest, data in blobs[1:]:
            await store.put(digest, in_chunks(data))
        monkeypatch.setattr(disk_upkeep, "sync_file_system", failing(OSError(errno.EIO, "the power is gone")))
    monkeypatch.undo()


def failing(reason: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise reason

    return fail


async def test_after_a_crash_of_the_machine_small_blobs_not_yet_synced_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = [blob(1000, 1), blob(1000, 2), blob(3 * MIB, 3)]
    await crash_after(tmp_path, monkeypatch, blobs)

    async with DiskStore(tmp_path, BOUND, boot_id=lambda: "second boot") as store:
        # The large one was synced before it got its name.
        assert await store.find_missing([digest for digest, _ in blobs]) == {blobs[1][0]}
    assert len(files_below(tmp_path)) == 2


async def test_a_restart_in_the_same_boot_drops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = [blob(1000, 1), blob(1000, 2), blob(3 * MIB, 3)]
    await crash_after(tmp_path, monkeypatch, blobs)

    async with DiskStore(tmp_path, BOUND, boot_id=lambda: "first boot") as store:
        assert await store.find_missing([digest for digest, _ in blobs]) == set()


async def test_a_restart_in_the_same_boot_does_not_make_old_blobs_count_as_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = [blob(1000, 1), blob(1000, 2)]
    await crash_after(tmp_path, monkeypatch, blobs)
    async with DiskStore(tmp_path, BOUND, boot_id=lambda: "first boot", clock=lambda: time.time() + HOUR):
        monkeypatch.setattr(disk_upkeep, "sync_file_system", failing(OSError(errno.EIO, "the power is gone")))
    monkeypatch.undo()

    async with DiskStore(tmp_path, BOUND, boot_id=lambda: "second boot") as store:
        assert await store.find_missing([digest for digest, _ in blobs]) == {blobs[1][0]}


async def test_after_an_orderly_end_a_reboot_drops_nothing(tmp_path: Path) -> None:
    digest, data = blob(1000)
    async with DiskStore(tmp_path, BOUND, boot_id=lambda: "first boot") as store:
        await store.write_many([(digest, data)])

    async with DiskStore(tmp_path, BOUND, boot_id=lambda: "second boot") as store:
        assert await store.read_many([digest]) == {digest: data}


@pytest.mark.parametrize("marker", [None, b"", b"{", b'{"boot_id": 3, "synced_at": null}'])
async def test_without_a_readable_marker_small_blobs_are_not_trusted(tmp_path: Path, marker: bytes | None) -> None:
    (small, small_data), (large, large_data) = blob(1000), blob(2 * MIB)
    async with DiskStore(tmp_path, BOUND) as store:
        await store.write_many([(small, small_data)])
        await store.put(large, in_chunks(large_data))
    path = tmp_path / "synced.json"
    path.unlink()
    if marker is not None:
        path.write_bytes(marker)

    async with DiskStore(tmp_path, BOUND) as store:
        assert await store.find_missing([small, large]) == {small}


async def test_a_sync_that_fails_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    async with DiskStore(tmp_path, BOUND, boot_id=lambda: "boot", clock=lambda: now[0]) as store:
        before = load_marker(tmp_path / "synced.json")
        monkeypatch.setattr(disk_upkeep, "sync_file_system", failing(OSError(errno.EIO, "Input/output error")))
        await store.write_many([blob(1000)])
        await store.sync()
        assert load_marker(tmp_path / "synced.json") == before
        monkeypatch.undo()
        now[0] = 5000.0
        await store.sync()
        assert load_marker(tmp_path / "synced.json").synced_at == 4998.0


async def test_a_store_that_was_written_is_synced_after_the_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = threading.Event()
    monkeypatch.setattr(disk_upkeep, "sync_file_system", lambda _path: synced.set())
    async with DiskStore(tmp_path, BOUND, sync_seconds=0.001, boot_id=lambda: "boot") as store:
        await store.write_many([blob(1000)])
        assert await asyncio.to_thread(synced.wait, 10)


def test_a_marker_trusts_its_own_boot_and_what_was_synced() -> None:
    marker = SyncMarker("one", 100.0)
    assert marker.survived("one", 200.0)
    assert marker.survived("two", 99.0)
    assert not marker.survived("two", 100.0)
    assert not SyncMarker("", 100.0).survived("", 200.0)


# The disk


@pytest.mark.parametrize("size_bytes", [2000, 500_000, 3 * MIB])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_a_full_store_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int, number: int
) -> None:
    (held, held_data), (digest, data) = blob(1000, 1), blob(size_bytes)
    async with DiskStore(tmp_path, BOUND) as store:
        await store.write_many([(held, held_data)])
        used_bytes = store.used_bytes
        write = os.write

        def write_some(descriptor: int, some: bytes) -> int:
            if len(some) <= size_bytes // 2:
                raise OSError(number, os.strerror(number))
            return write(descriptor, bytes(some)[: len(some) // 2 + 1])

        with monkeypatch.context() as full:
            full.setattr("os.write", write_some)
            with pytest.raises(StoreFull, match=digest.hash):
                await store.put(digest, in_chunks(data))
            if size_bytes < MIB:
                assert isinstance((await store.write_many([(digest, data)]))[digest], StoreFull)

        assert files_below(tmp_path) == {file_of(tmp_path, held)}
        assert store.used_bytes == used_bytes
        assert await store.find_missing([held, digest]) == {digest}
        await store.put(digest, in_chunks(data))
        assert await read(store, digest) == data


LIMITED = """
import asyncio, resource, sys
from pathlib import Path
from cas.digest import Digest
from cas.disk import DiskStore
from cas.errors import StoreFull

async def chunks():
    for _ in range(4):
        yield bytes(1 << 20)

async def main(root):
    async with DiskStore(root, 64 << 20) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, resource.RLIM_INFINITY))
        small, large = Digest.of(bytes(1 << 20)), Digest.of(bytes(4 << 20))
        assert isinstance((await store.write_many([(small, bytes(1 << 20))]))[small], StoreFull)
        try:
            await store.put(large, chunks())
        except StoreFull:
            print("full", store.used_bytes, await store.find_missing([small, large]) == {small, large})

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_real_limit_of_the_system_is_a_full_store(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "full 0 True"
    assert files_below(tmp_path) == set()


async def test_a_broken_disk_fails_the_blob_and_not_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bad, bad_data), (good, good_data) = blob(1000, 1), blob(1001, 2)
    write = os.write

    def write_good(descriptor: int, data: bytes) -> int:
        if data == bad_data:
            raise OSError(errno.EIO, "Input/output error")
        return write(descriptor, data)

    async with DiskStore(tmp_path, BOUND) as store:
        with monkeypatch.context() as broken:
            broken.setattr("os.write", write_good)
            failures = await store.write_many([(bad, bad_data), (good, good_data)])

        assert {digest: type(failure) for digest, failure in failures.items()} == {bad: Internal}
        assert await store.find_missing([bad, good]) == {bad}
        assert store.used_bytes == charge(good.size_bytes)


async def test_a_large_blob_that_cannot_be_synced_never_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, data = blob(3 * MIB)
    async with DiskStore(tmp_path, BOUND) as store:
        with monkeypatch.context() as broken:
            broken.setattr("cas.disk_transfer.os.fsync", failing(OSError(errno.EIO, "Input/output error")))
            with pytest.raises(OSError, match="Input/output error"):
                await store.put(digest, in_chunks(data))

        assert await store.find_missing([digest]) == {digest}
        assert files_below(tmp_path) == set()
        assert store.used_bytes == 0


@pytest.mark.parametrize("size_bytes", [500_000, 3 * MIB])
async def test_a_put_cancelled_while_a_thread_writes_waits_for_it_and_leaves_no_half_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    digest, data = blob(size_bytes)
    writing, go_on = threading.Event(), threading.Event()
    write = os.write

    def write_slowly(descriptor: int, some: bytes) -> int:
        writing.set()
        go_on.wait(10)
        return write(descriptor, some)

    async with asyncio.timeout(30), DiskStore(tmp_path, BOUND) as store:
        with monkeypatch.context() as slow:
            slow.setattr("cas.blob_directory.os.write", write_slowly)
            put = asyncio.ensure_future(store.put(digest, in_chunks(data)))
            await asyncio.to_thread(writing.wait, 10)
            put.cancel()
            put.cancel()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await put

        # The thread had all of the small blob: that one is whole, and counted.
        whole = size_bytes < MIB
        assert await store.find_missing([digest]) == (set() if whole else {digest})
        assert len(files_below(tmp_path)) == len(store) == int(whole)
        await store.put(digest, in_chunks(data))
        assert await read(store, digest) == data
