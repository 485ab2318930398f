"""Blobs as files: bounded by bytes, forgetting those used longest ago, loaded again at the next start.

Small blobs are written straight to their names: which blobs are visible is decided by the ledger in memory, and a file
that a killed process left cut short is found by its size at the next start. Little work (INLINE_BYTES, INLINE_BLOBS) is
done on the event loop, because a thread hop costs more than it; everything else is one hop for a batch or for a piece of
CHUNK_BYTES. Blobs above SMALL_BLOB_BYTES arrive in a temporary file, are synced, and get their name last. What a crash of
the machine costs is in cas/durability.py.

A digest whose file is being written or removed is *busy*: whoever else wants to write it waits, so no file is ever
written by two, and none is removed after it has been written anew. The content is the caller's to check (`Verified`).

A store may be shared: then further processes of this machine, its guests, read and write the files themselves
(cas/shared_disk.py), while this one goes on to decide what stays (cas/disk_guests.py). Every file then gets its name last,
and a blob that the ledger does not know is looked for on the disk if a guest may have written it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

import structlog

from cas.blob_directory import BlobDirectory, charge, failure_of, store_full
from cas.cancellation import in_thread
from cas.config import SYNC_SECONDS
from cas.digest import Digest
from cas.disk_guests import Guests
from cas.disk_transfer import INLINE_BLOBS, INLINE_BYTES, Incoming, measured, pieces_of
from cas.disk_upkeep import DiskUpkeep
from cas.durability import current_boot_id
from cas.errors import BlobNotFound, DigestMismatch, StatusError, StoreFull
from cas.ledger import Entry, Ledger
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES, extent_of

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()

THREADS = 4


class DiskStore:
    """A bounded BlobStore in a directory that one process owns. Use it as an async context manager.

    Entering raises DirectoryUnusable if the directory cannot be used, and returns when every blob in it is known.
    """

    def __init__(
        self,
        root: Path,
        max_bytes: int | None = None,
        *,
        shared: bool = False,
        sync_seconds: float = SYNC_SECONDS,
        clock: Callable[[], float] = time.time,
        boot_id: Callable[[], str] = current_boot_id,
    ) -> None:
        """`max_bytes` bounds the room on the disk (see `charge`); None decides by the disk (cas/config.py). A `shared` store
        takes guests."""
        self._directory = BlobDirectory(root)
        self._ledger = Ledger(1 if max_bytes is None else max_bytes, charge)
        self._upkeep = DiskUpkeep(self._directory, self._ledger, max_bytes, clock, boot_id())
        self._sync_seconds = sync_seconds
        self._clock = clock
        self._busy: dict[Digest, asyncio.Future[None]] = {}
        self._dirty = asyncio.Event()
        """Something was written, or a time of last use fell behind, since the last sync."""
        self._tasks = asyncio.TaskGroup()
        self._guests = Guests(self._directory, self._ledger, self) if shared else None

    @property
    def used_bytes(self) -> int:
        """Room taken by the blobs held."""
        return self._ledger.used_bytes

    @property
    def max_bytes(self) -> int:
        """The bound, decided once the store has been entered."""
        return self._ledger.max_bytes

    def __len__(self) -> int:
        return len(self._ledger)

    async def __aenter__(self) -> Self:
        self._threads = ThreadPoolExecutor(THREADS, "disk-store")
        try:
            self._lock = await self._settle(self._directory.lock)
            try:
                if self._guests is not None:
                    await self._settle(self._guests.prepare)
                await self._settle(self._upkeep.load)
                if self._guests is not None:
                    await self._settle(self._guests.publish_all)
                    await self._guests.listen()
            except BaseException:
                os.close(self._lock)
                raise
        except BaseException:
            self._threads.shutdown(wait=False)
            raise
        await self._tasks.__aenter__()
        self._syncing = self._tasks.create_task(self._keep_synced())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._syncing.cancel()
        guests = self._guests is not None and self._guests.close()
        await self._tasks.__aexit__(None, None, None)
        try:
            await self._settle(self._upkeep.close, guests)
        finally:
            self._threads.shutdown()
            os.close(self._lock)

    # Reading

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        missing = self._ledger.find_missing(digests, self._clock())
        if missing and self._guests is not None:
            missing.difference_update(self._guests.find_unknown(missing))
        if self._ledger.stale:
            self._dirty.set()
        return missing

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        entries = {digest: entry for digest in digests if (entry := self._touch(digest)) is not None}
        held = list(entries)
        if len(held) <= INLINE_BLOBS and sum(digest.size_bytes for digest in held) <= INLINE_BYTES:
            blobs = self._directory.read(held)
        else:
            blobs = await self._settle(self._directory.read, held)
        if len(blobs) < len(held):
            for digest in held:
                if digest not in blobs:
                    await self._lose(digest, entries[digest])
        return blobs

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        entry = self._touch(digest)
        if entry is None:
            raise BlobNotFound(digest)
        start, end = extent_of(digest, offset, limit)
        lose = partial(self._lose, digest, entry)
        async with aclosing(pieces_of(self._directory, digest, start, end, self._threads, lose)) as pieces:
            # The first step opens the file, so that entering fails if it is gone and the blob stays readable from here.
            await anext(pieces)
            yield pieces

    # Writing

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        failures: dict[Digest, StatusError] = {}
        held = wanted = dict(blobs)
        while wanted:
            batch: list[tuple[Digest, bytes]] = []
            victims: list[Digest] = []
            others: dict[Digest, asyncio.Future[None]] = {}
            missing = await self.find_missing(wanted)
            for digest, data in wanted.items():
                if digest not in missing:
                    continue
                if len(data) != digest.size_bytes:
                    failures[digest] = DigestMismatch(digest, f"{len(data)} bytes")
                elif (busy := self._busy.get(digest)) is not None:
                    others[digest] = busy
                else:
                    try:
                        self._ledger.require_room(digest)
                        victims += self._ledger.reserve(charge(digest.size_bytes), held)
                    except StoreFull as full:
                        failures[digest] = full
                    else:
                        batch.append((digest, data))
            if batch:
                failures |= await self._write(batch, victims)
            # What others write now is ours too once they are done; if they fail, or evict it, it is our turn.
            wanted = {digest: wanted[digest] for digest in others}
            if others:
                await asyncio.wait(others.values())
        return failures

    async def _write(self, batch: list[tuple[Digest, bytes]], victims: list[Digest]) -> dict[Digest, StatusError]:
        written: list[Digest] = []
        failed: dict[Digest, OSError] = {}
        done = self._occupy([*victims, *(digest for digest, _ in batch)])
        inline = (
            max(len(batch), len(victims)) <= INLINE_BLOBS
            and sum(digest.size_bytes for digest, _ in batch) <= INLINE_BYTES
            and all(victim.size_bytes <= SMALL_BLOB_BYTES for victim in victims)
        )
        self._dirty.set()
        if self._guests is not None:
            self._guests.announce(victims, [digest for digest, _ in batch])
        try:
            if inline:
                self._directory.remove(victims)
                self._directory.write(batch, written, failed)
            else:
                await self._settle(self._replace, victims, batch, written, failed)
        finally:
            # Also when the call is cancelled: what the thread wrote is whole.
            now = self._clock()
            for digest in written:
                self._ledger.keep(digest, now)
            if len(written) < len(batch):
                kept = set(written)
                self._ledger.release(sum(charge(digest.size_bytes) for digest, _ in batch if digest not in kept))
            self._vacate(done, [*victims, *(digest for digest, _ in batch)])
        return {digest: failure_of(digest, reason) for digest, reason in failed.items()}

    def _replace(
        self,
        victims: list[Digest],
        batch: list[tuple[Digest, bytes]],
        written: list[Digest],
        failed: dict[Digest, OSError],
    ) -> None:
        self._directory.remove(victims)
        self._directory.write(batch, written, failed)

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        if self._touch(digest) is not None:
            return
        self._ledger.require_room(digest)
        if digest.size_bytes <= SMALL_BLOB_BYTES:
            async with aclosing(measured(digest, chunks)) as whole:
                data = b"".join([chunk async for chunk in whole])
            for failure in (await self.write_many([(digest, data)])).values():
                raise failure
            return
        incoming = Incoming(self._directory, digest)
        try:
            buffer = bytearray()
            async with aclosing(measured(digest, chunks)) as whole:
                async for chunk in whole:
                    buffer += chunk
                    del chunk
                    if len(buffer) >= CHUNK_BYTES:
                        await self._take_in(incoming, buffer)
                        buffer = bytearray()
            if buffer:
                await self._take_in(incoming, buffer)
            await self._publish(incoming)
        except OSError as reason:
            full = store_full(digest, reason)
            if full is None:
                raise
            raise full from reason
        finally:
            self._ledger.release(incoming.reserved_bytes)
            # To delete gigabytes takes a second.
            await self._settle(incoming.discard)

    async def _take_in(self, incoming: Incoming, data: bytearray) -> None:
        """Write a piece of a large blob. Room is reserved piece by piece: a size that is only claimed evicts nothing."""
        needed = charge(incoming.size_bytes + len(data)) - incoming.reserved_bytes
        victims = self._ledger.reserve(needed)
        incoming.reserved_bytes += needed
        done = self._occupy(victims)
        if self._guests is not None:
            self._guests.announce(victims)
        try:
            await self._settle(incoming.write, victims, data)
        finally:
            self._vacate(done, victims)

    async def _publish(self, incoming: Incoming) -> None:
        digest = incoming.digest
        await self._settle(incoming.sync)
        while (busy := self._busy.get(digest)) is not None:
            await asyncio.wait([busy])
        if digest in self._ledger:
            return
        self._dirty.set()
        done = self._occupy([digest])
        if self._guests is not None:
            self._guests.announce([], [digest])
        try:
            await self._settle(incoming.publish)
        finally:
            if incoming.published:
                incoming.reserved_bytes = 0
                self._ledger.keep(digest, self._clock())
            self._vacate(done, [digest])

    # Upkeep

    async def sync(self) -> None:
        """Make everything written so far survive a crash of the machine, and record the times of last use."""
        self._dirty.clear()
        try:
            await self._settle(self._upkeep.sync, self._ledger.take_stale(), self._clock())
        except OSError as reason:
            log.warning(
                "cannot sync the store, will try again", directory=str(self._directory.root), reason=str(reason)
            )
            self._dirty.set()

    async def _keep_synced(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(self._sync_seconds)
            await self.sync()

    # Shared

    def _touch(self, digest: Digest) -> Entry | None:
        entry = self._ledger.touch(digest, self._clock())
        if entry is None and self._guests is not None and self._guests.find_unknown([digest]):
            entry = self._ledger.touch(digest, self._clock())
        if self._ledger.stale:
            self._dirty.set()
        return entry

    async def _lose(self, digest: Digest, entry: Entry) -> None:
        """Forget a blob whose file turned out missing or of a wrong size."""
        if not self._ledger.forget(digest, entry):
            return
        log.warning("a blob was damaged on the disk and is dropped", digest=str(digest))
        await self.discard([digest])

    # For the guests

    def busy_with(self, digest: Digest) -> asyncio.Future[None] | None:
        """What ends when the file of `digest` is no longer being written or removed; None if it is not."""
        return self._busy.get(digest)

    def note(self) -> None:
        """Something was written, or used, by a guest."""
        self._dirty.set()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Have `work` done while the store is open."""
        self._tasks.create_task(work)

    async def discard(self, victims: list[Digest]) -> None:
        """Remove the files of blobs that are forgotten already."""
        done = self._occupy(victims)
        if self._guests is not None:
            self._guests.announce(victims)
        try:
            await self._settle(self._directory.remove, victims)
        finally:
            self._vacate(done, victims)

    def _occupy(self, digests: list[Digest]) -> asyncio.Future[None]:
        done = asyncio.get_running_loop().create_future()
        for digest in digests:
            self._busy[digest] = done
        return done

    def _vacate(self, done: asyncio.Future[None], digests: list[Digest]) -> None:
        for digest in digests:
            self._busy.pop(digest, None)
        done.set_result(None)

    async def _settle(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await in_thread(self._threads, work, *args, **kwargs)


__all__ = ["DiskStore", "charge"]
