"""Blobs as files: bounded by bytes, forgetting those used longest ago, loaded again at the next start.

Small blobs are written straight to their names: which blobs are visible is decided by the ledger in memory, and a file
that a killed process left cut short is found by its size at the next start. Little work (INLINE_BYTES, INLINE_BLOBS) is
done on the event loop, because a thread hop costs more than it; everything else is one hop for a batch or for a piece of
CHUNK_BYTES. Blobs above SMALL_BLOB_BYTES arrive in a temporary file, are synced, and get their name last. What a crash of
the machine costs is in cas/durability.py.

A digest whose file is being written or removed is *busy*: whoever else wants to write it waits, so no file is ever
written by two, and none is removed after it has been written anew. The content is the caller's to check (`Verified`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

import structlog

from cas.blob_directory import BlobDirectory, store_full
from cas.cancellation import to_the_end
from cas.config import SYNC_SECONDS
from cas.digest import Digest
from cas.disk_transfer import Incoming, Outgoing
from cas.disk_upkeep import DiskUpkeep
from cas.durability import current_boot_id
from cas.errors import BlobNotFound, DigestMismatch, Internal, StatusError, StoreFull
from cas.ledger import Entry, Ledger
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES, extent_of

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()

INLINE_BYTES = 128 << 10
"""Batches up to this size are moved on the event loop: about 0.1 ms, as much as the hop to a thread."""
INLINE_BLOBS = 4
"""Files that may be created on the event loop in one go, at 0.06 to 0.3 ms each, or removed, or read, which costs less."""
THREADS = 4
BLOCK_BYTES = 4096
"""File systems give room in blocks of this size, and never less than one (with the inode) for a file."""


def charge(size_bytes: int) -> int:
    """What a blob of that size takes on the disk, in bytes."""
    return max(BLOCK_BYTES, (size_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES)


class DiskStore:
    """A bounded BlobStore in a directory that one process owns. Use it as an async context manager.

    Entering raises DirectoryUnusable if the directory cannot be used, and returns when every blob in it is known.
    """

    def __init__(
        self,
        root: Path,
        max_bytes: int | None = None,
        *,
        sync_seconds: float = SYNC_SECONDS,
        clock: Callable[[], float] = time.time,
        boot_id: Callable[[], str] = current_boot_id,
    ) -> None:
        """`max_bytes` bounds the room on the disk (see `charge`); None decides by the disk (cas/config.py)."""
        self._directory = BlobDirectory(root)
        self._ledger = Ledger(1 if max_bytes is None else max_bytes, charge)
        self._upkeep = DiskUpkeep(self._directory, self._ledger, max_bytes, clock, boot_id())
        self._sync_seconds = sync_seconds
        self._clock = clock
        self._busy: dict[Digest, asyncio.Future[None]] = {}
        self._dirty = asyncio.Event()
        """Something was written, or a time of last use fell behind, since the last sync."""
        self._tasks = asyncio.TaskGroup()

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
                await self._settle(self._upkeep.load)
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
        await self._tasks.__aexit__(None, None, None)
        try:
            await self._settle(self._upkeep.close)
        finally:
            self._threads.shutdown()
            os.close(self._lock)

    # Reading

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        missing = self._ledger.find_missing(digests, self._clock())
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
        async with aclosing(self._pieces(digest, entry, start, end)) as pieces:
            # The first step opens the file, so that entering fails if it is gone and the blob stays readable from here.
            await anext(pieces)
            yield pieces

    async def _pieces(self, digest: Digest, entry: Entry, start: int, end: int) -> AsyncGenerator[bytes, None]:
        inline = end - start <= INLINE_BYTES
        outgoing = Outgoing(self._directory, digest)
        try:
            first = min(end, start + CHUNK_BYTES)
            found = outgoing.open(start, first) if inline else await self._settle(outgoing.open, start, first)
            if found:
                yield b""
                if start < end:
                    yield outgoing.piece
                position = first
                while position < end and found:
                    following = min(end, position + CHUNK_BYTES)
                    found = await self._settle(outgoing.read, position, following)
                    if found:
                        yield outgoing.piece
                    position = following
            if not found:
                await self._lose(digest, entry)
                raise BlobNotFound(digest)
        finally:
            outgoing.close()

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
        return {digest: _failure(digest, reason) for digest, reason in failed.items()}

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
            async with aclosing(_measured(digest, chunks)) as measured:
                data = b"".join([chunk async for chunk in measured])
            for failure in (await self.write_many([(digest, data)])).values():
                raise failure
            return
        incoming = Incoming(self._directory, digest)
        try:
            buffer = bytearray()
            async with aclosing(_measured(digest, chunks)) as measured:
                async for chunk in measured:
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
        if self._ledger.stale:
            self._dirty.set()
        return entry

    async def _lose(self, digest: Digest, entry: Entry) -> None:
        """Forget a blob whose file turned out missing or of a wrong size."""
        if not self._ledger.forget(digest, entry):
            return
        log.warning("a blob was damaged on the disk and is dropped", digest=str(digest))
        done = self._occupy([digest])
        try:
            await self._settle(self._directory.remove, [digest])
        finally:
            self._vacate(done, [digest])

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
        """Do blocking work in a thread. If the call is cancelled it still waits for the thread to end, then says so: only
        then may files be closed, removed, or declared whole."""
        loop = asyncio.get_running_loop()
        return await to_the_end(loop.run_in_executor(self._threads, lambda: work(*args, **kwargs)))


async def _measured(digest: Digest, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """`chunks`, raising DigestMismatch as soon as they are more bytes than `digest` says, and if they end with fewer."""
    size_bytes = 0
    async for chunk in chunks:
        size_bytes += len(chunk)
        if size_bytes > digest.size_bytes:
            raise DigestMismatch(digest, f"at least {size_bytes} bytes")
        yield chunk
        del chunk  # or it would stay in memory for as long as a slow client takes to send the next
    if size_bytes != digest.size_bytes:
        raise DigestMismatch(digest, f"{size_bytes} bytes")


def _failure(digest: Digest, reason: OSError) -> StatusError:
    full = store_full(digest, reason)
    if full is None:
        log.error("cannot write a blob", digest=str(digest), reason=str(reason))
    return full or Internal()
