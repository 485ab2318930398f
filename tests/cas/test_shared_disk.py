"""SharedDisk: owners and guests that die, start again, do not listen; what one does while another one works."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from cas import disk_guests, disk_room, shared_disk
from cas.blob_directory import BlobDirectory
from cas.digest import Digest
from cas.disk import DiskStore, charge
from cas.disk_messages import Ask, Report
from cas.errors import BlobNotFound, StoreFull, Unavailable
from cas.file_lock import DirectoryUnusable
from cas.shared_disk import SharedDisk
from cas.store import BlobStore
from tests.blobs import MIB, blob, in_chunks, read
from tests.sharing import eventually, owner_process

BOUND = 64 * MIB
HOUR = 3600.0
EXTRA_BYTES = BOUND >> 10
"""What a guest may have in hand unasked."""


def owner(root: Path, max_bytes: int = BOUND) -> DiskStore:
    return DiskStore(root, max_bytes, shared=True)


def file_of(root: Path, digest: Digest) -> Path:
    return Path(BlobDirectory(root).path_of(digest))


async def until(guest: SharedDisk, is_open: bool) -> None:
    """Return once the guest has noticed that the owner is there, or away."""
    await eventually(lambda: guest._room.is_open == is_open)


# Seeing each other


async def test_everyone_sees_at_once_what_anyone_writes(tmp_path: Path) -> None:
    async with owner(tmp_path) as disk, SharedDisk(tmp_path) as one, SharedDisk(tmp_path) as other:
        stores: list[BlobStore] = [disk, one, other]
        for seed, writer in enumerate(stores):
            for size_bytes in (0, 1000, 500_000, 3 * MIB):
                digest, data = blob(size_bytes, seed)
                await writer.put(digest, in_chunks(data))
                for reader in stores:
                    assert await reader.find_missing([digest]) == set()
                    assert await read(reader, digest) == data


async def test_the_owner_counts_what_guests_wrote_and_that_they_use_it(tmp_path: Path) -> None:
    blobs = [blob(MIB, seed) for seed in range(3)]
    async with owner(tmp_path, 3 * MIB) as disk, SharedDisk(tmp_path) as guest:
        for one in blobs:
            await guest.write_many([one])
        await guest.read_many([blobs[0][0]])
        await read(guest, blobs[1][0])
        await guest.report()
        assert (len(disk), disk.used_bytes) == (3, 3 * MIB)
        await disk.write_many([blob(MIB, 10)])
        assert await disk.find_missing([digest for digest, _ in blobs]) == {blobs[2][0]}
        # Told before its file went, so that the guest does not take it for there.
        await guest.report()
        assert await guest.find_missing([digest for digest, _ in blobs]) == {blobs[2][0]}


async def test_reports_come_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_room, "REPORT_SECONDS", 0.001)
    async with owner(tmp_path) as disk, SharedDisk(tmp_path) as guest:
        await guest.write_many([blob(1000)])
        await eventually(lambda: len(disk) == 1 and not disk._ledger.reserved_bytes)
        assert disk.used_bytes == charge(1000)


async def test_a_blob_that_a_guest_has_just_looked_at_is_not_forgotten_before_it_reports(tmp_path: Path) -> None:
    blobs = [blob(MIB, seed) for seed in range(3)]
    old = time.time() - 5 * HOUR
    async with DiskStore(tmp_path, BOUND) as disk:
        await disk.write_many(blobs)
    for age, (digest, _) in enumerate(blobs):
        os.utime(file_of(tmp_path, digest), (old + age, old + age))
    async with owner(tmp_path, 3 * MIB) as disk, SharedDisk(tmp_path) as guest:
        assert await guest.find_missing([blobs[0][0]]) == set()
        await disk.write_many([blob(MIB, 10)])
        assert await disk.find_missing([digest for digest, _ in blobs]) == {blobs[1][0]}


async def test_a_damaged_file_is_missing_and_can_be_written_again_by_a_guest(tmp_path: Path) -> None:
    async with owner(tmp_path) as disk, SharedDisk(tmp_path) as guest:
        for size_bytes in (1000, 3 * MIB):
            digest, data = blob(size_bytes)
            await guest.put(digest, in_chunks(data))
            os.truncate(file_of(tmp_path, digest), size_bytes - 1)
            assert await guest.read_many([digest]) == {}
            assert await guest.find_missing([digest]) == {digest}
            with pytest.raises(BlobNotFound):
                await read(guest, digest)
            await guest.put(digest, in_chunks(data))
            assert await read(disk, digest) == await read(guest, digest) == data


async def test_a_blob_read_by_a_guest_stays_readable_when_the_owner_forgets_it(tmp_path: Path) -> None:
    digest, data = blob(3 * MIB)
    async with owner(tmp_path, 4 * MIB) as disk, SharedDisk(tmp_path) as guest:
        await disk.put(digest, in_chunks(data))
        async with guest.open(digest) as pieces:
            first = await anext(pieces)
            for seed in range(5):
                await disk.write_many([blob(MIB, 100 + seed)])
            assert not file_of(tmp_path, digest).exists()
            assert first + b"".join([piece async for piece in pieces]) == data
        with pytest.raises(BlobNotFound):
            await read(guest, digest)


def test_a_guest_works_on_the_event_loop_of_the_server(tmp_path: Path) -> None:
    async def work() -> None:
        digest, data = blob(3 * MIB)
        async with owner(tmp_path) as disk, SharedDisk(tmp_path) as guest:
            await guest.put(digest, in_chunks(data))
            assert await read(disk, digest) == data

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


async def test_a_directory_may_have_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    root = tmp_path / ("x" * 100) / ("y" * 100)
    async with owner(root), SharedDisk(root) as guest:
        assert await guest.write_many([blob(1000)]) == {}


# Room


async def test_guests_and_owner_keep_the_bound_together(tmp_path: Path) -> None:
    async with owner(tmp_path, 8 * MIB) as disk, SharedDisk(tmp_path) as one, SharedDisk(tmp_path) as other:
        for seed in range(30):
            for store in (disk, one, other):
                await store.write_many([blob(500_000, 100 * seed + id(store) % 97)])
                held = sum(path.stat().st_size for path in (tmp_path / "blobs").rglob("*") if path.is_file())
                assert held <= 8 * MIB


async def test_room_that_a_dead_guest_had_is_free_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_guests, "MIN_EXTRA_BYTES", 4096)
    monkeypatch.setattr(disk_guests, "MAX_EXTRA_BYTES", MIB)
    async with owner(tmp_path, 4 << 30) as disk:
        guest = await SharedDisk(tmp_path).__aenter__()
        await guest.write_many([blob(1000)])
        assert disk._ledger.reserved_bytes == MIB + charge(1000)
        await guest.__aexit__()
        await eventually(lambda: not disk._ledger.reserved_bytes)


async def test_a_full_disk_is_a_full_store_for_a_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with owner(tmp_path) as disk, SharedDisk(tmp_path) as guest:
        with monkeypatch.context() as full:
            full.setattr("cas.blob_directory.os.write", refuse)
            for size_bytes in (1000, 3 * MIB):
                digest, data = blob(size_bytes)
                with pytest.raises(StoreFull, match=digest.hash):
                    await guest.put(digest, in_chunks(data))
                assert await guest.find_missing([digest]) == {digest}
        await guest.report()
        assert disk._ledger.reserved_bytes <= EXTRA_BYTES
        assert [path for path in (tmp_path / "incoming").rglob("*") if path.is_file() and path.name != "lock"] == []


# The owner goes


async def test_guests_go_on_while_the_owner_is_away_and_report_when_it_is_back(tmp_path: Path) -> None:
    before, during = blob(1000, 1), [blob(1000, 2), blob(500_000, 3)]
    async with owner_process(tmp_path, BOUND) as process, SharedDisk(tmp_path) as guest:
        await guest.write_many([before])
        process.kill()
        await process.wait()
        await until(guest, False)
        assert await guest.write_many(during) == {}
        assert await guest.read_many([before[0]]) == dict([before])
        assert await guest.find_missing([digest for digest, _ in during]) == set()
        async with owner(tmp_path) as disk:
            await until(guest, True)
            assert len(disk) == 3
            late = blob(2000, 4)
            assert await guest.write_many([late]) == {}
            await guest.report()
            assert len(disk) == 4
            assert await read(disk, late[0]) == late[1]


async def test_without_the_owner_writes_end_at_a_part_of_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_room, "AWAY_SECONDS", 0.01)
    disk = await owner(tmp_path, BOUND).__aenter__()
    async with SharedDisk(tmp_path) as guest:
        await disk.__aexit__()
        await until(guest, False)
        assert await guest.write_many([blob(500_000, 1)]) == {}
        refused = blob(900_000, 2)
        assert isinstance((await guest.write_many([refused]))[refused[0]], Unavailable)
        monkeypatch.setattr(disk_room, "AWAY_SECONDS", 30.0)
        waiting = asyncio.ensure_future(guest.write_many([refused]))
        async with owner(tmp_path, BOUND):
            assert await waiting == {}


async def test_a_guest_does_not_start_without_an_owner(tmp_path: Path) -> None:
    async with DiskStore(tmp_path, BOUND):
        with pytest.raises(DirectoryUnusable, match="no process that shares it"):
            await SharedDisk(tmp_path, start_seconds=0.01).__aenter__()


async def test_a_new_owner_leaves_the_half_written_blobs_of_living_guests_alone(tmp_path: Path) -> None:
    digest, data = blob(3 * MIB)
    disk = await owner(tmp_path).__aenter__()
    async with SharedDisk(tmp_path) as guest:

        async def over_a_restart() -> AsyncIterator[bytes]:
            nonlocal disk
            yield data[:MIB]
            yield data[MIB : 2 * MIB]
            await disk.__aexit__()
            disk = await owner(tmp_path).__aenter__()
            yield data[2 * MIB :]

        await guest.put(digest, over_a_restart())
        assert await read(guest, digest) == await read(disk, digest) == data
        await disk.__aexit__()


# A guest goes

KILLED = """
import asyncio, os, random, signal, sys
from pathlib import Path
from cas import blob_directory, disk_transfer
from cas.digest import Digest
from cas.shared_disk import SharedDisk
from cas.store import BlobStore

async def chunks(data):
    for position in range(0, len(data), 1 << 20):
        yield data[position : position + (1 << 20)]

def write_half_and_die(descriptor, data):
    os.write(descriptor, bytes(data)[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

async def main(root, size_bytes):
    async with SharedDisk(root) as store:
        data = random.Random(f"1000 1").randbytes(1000)
        await store.put(Digest.of(data), chunks(data))
        blob_directory.write_all = disk_transfer.write_all = write_half_and_die
        data = random.Random(f"{size_bytes} 0").randbytes(size_bytes)
        await store.put(Digest.of(data), chunks(data))

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.parametrize("size_bytes", [2000, 500_000, 3 * MIB])
async def test_a_guest_killed_while_it_writes_leaves_nothing_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    monkeypatch.setattr(disk_guests, "SWEEP_SECONDS", 0.001)
    digest, data = blob(size_bytes)
    before, _ = blob(1000, 1)
    async with owner(tmp_path) as disk, SharedDisk(tmp_path) as other:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(tmp_path), str(size_bytes))
        assert await process.wait() == -signal.SIGKILL
        for store in (disk, other):
            assert await store.find_missing([digest, before]) == {digest}
        # Its own directory goes; the other guest's stays.
        await eventually(lambda: len(list((tmp_path / "incoming").iterdir())) == 1)
        await other.put(digest, in_chunks(data))
        assert await read(disk, digest) == data
        await other.report()
        assert disk._ledger.reserved_bytes <= EXTRA_BYTES


async def test_what_dead_guests_left_is_removed_at_the_owners_start(tmp_path: Path) -> None:
    left = tmp_path / "incoming" / "123-abc"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    (left / "lock").touch()
    async with owner(tmp_path):
        assert list((tmp_path / "incoming").iterdir()) == []


async def test_nonsense_on_the_socket_harms_nobody(tmp_path: Path) -> None:
    async with owner(tmp_path) as disk, SharedDisk(tmp_path) as guest:
        nonsense = [b"\xff" * 100, b"\x00\x00\x00\x03abc", (1 << 31).to_bytes(4, "big"), b"\x00\x00\x00\x00"]
        for data in nonsense:
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "guests.sock"))
            writer.write(data)
            async with asyncio.timeout(30):
                await reader.read()  # the welcome, then the end
                writer.close()
        peer = guest._room._peer
        assert peer is not None
        peer.send(Report([Digest("../../../etc/passwd", 5), Digest("", -1)], 1 << 40, 1 << 40))
        peer.send(Ask(10**6, [-5], []))
        digest, data = blob(1000)
        assert await guest.write_many([(digest, data)]) == {}
        await guest.report()
        assert disk._ledger.reserved_bytes >= 0
        assert await read(disk, digest) == data


async def test_what_a_guest_remembers_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_disk, "MAX_REMEMBERED", 10)
    monkeypatch.setattr(disk_room, "MAX_REPORTED", 5)
    blobs = [blob(100, seed) for seed in range(30)]
    disk = await owner(tmp_path).__aenter__()
    async with SharedDisk(tmp_path) as guest:
        await guest.write_many(blobs)
        assert len(guest._known) <= 10
        await guest.report()
        await disk.__aexit__()
        await until(guest, False)
        for digest, _ in blobs:
            await guest.find_missing([digest])
        assert len(guest._room._used) <= 10
        async with owner(tmp_path):
            await until(guest, True)
            assert await guest.find_missing([digest for digest, _ in blobs]) == set()
