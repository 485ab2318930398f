"""A disk store for the further processes of a machine: they read and write its files themselves, another process owns it.

The owner (DiskStore with `shared`) holds the lock, keeps the ledger, forgets, syncs and loads. A guest finds a blob by its
name, publishes one by giving a whole file its name, and so every process sees it at once, with no call to the owner. The
owner hears of what was used in batches, and gives room for what is written in advance (cas/disk_guests.py).

While the owner is away a guest goes on: it reads, and writes a little (AWAY_PARTS); then writes wait for the owner, because
nobody else removes anything. What it used meanwhile it reports later, at most MAX_REPORTED blobs; what it could not report,
the owner finds when it is asked for it, or at its next start.

What a guest writes is under a temporary name in a directory of its own, whose lock it holds. When the guest is gone the
owner removes it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final, Self

import structlog

from cas.blob_directory import BlobDirectory, charge, failure_of, store_full
from cas.cancellation import in_thread
from cas.digest import Digest
from cas.disk import THREADS
from cas.disk_room import Room, Taken
from cas.disk_transfer import INLINE_BLOBS, INLINE_BYTES, Incoming, measured, pieces_of
from cas.errors import BlobNotFound, DigestMismatch, StatusError, StoreFull
from cas.file_lock import DirectoryUnusable, lock_file
from cas.ledger import STAMP_SECONDS
from cas.presence import Presence
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES, extent_of

log = structlog.get_logger()

REMEMBER_SECONDS: Final = 600.0
"""How long a blob that was seen is taken to be there without another look, if the owner does not say that it went."""
MAX_REMEMBERED: Final = 200_000
"""Blobs remembered, of some 250 bytes each; beyond, all are looked for anew."""
LOOKS_PER_TURN: Final = 500
"""Blobs looked for on the disk before other calls have their turn: about 2 ms."""

_NEVER: Final = float("-inf")


class SharedDisk:
    """A BlobStore over the directory of a shared DiskStore of another process. Use it as an async context manager.

    Entering waits `start_seconds` for the owner and raises DirectoryUnusable if it does not answer: a store that has an
    owner in this boot of the machine holds whole blobs only (cas/durability.py).
    """

    def __init__(self, root: Path, *, start_seconds: float = 30.0, clock: Callable[[], float] = time.time) -> None:
        self._directory = BlobDirectory(root)
        self._start_seconds = start_seconds
        self._clock = clock
        self._incoming = self._directory.incoming / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._known: dict[Digest, float] = {}
        """Blobs that were seen, with the (monotonic) time; emptied whenever the owner may have forgotten some unheard."""
        self._room = Room(self._directory, self._forget)

    @property
    def max_bytes(self) -> int:
        """The bound that the owner keeps."""
        return self._room.max_bytes

    async def __aenter__(self) -> Self:
        await self._room.open(self._start_seconds)
        try:
            self._incoming.mkdir()
            self._lock = lock_file(self._incoming / "lock")
            self._presence = Presence(self._directory.presence)
        except OSError as reason:
            await self._room.close()
            raise DirectoryUnusable(f"store directory {self._directory.root} cannot be used: {reason}") from reason
        self._threads = ThreadPoolExecutor(THREADS, "shared-disk")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._room.close()
        self._threads.shutdown()
        shutil.rmtree(self._incoming, ignore_errors=True)
        os.close(self._lock)
        self._presence.close()

    def _forget(self, digests: Iterable[Digest] | None) -> None:
        """The owner has forgotten `digests`, or an unknown number if there are none."""
        if digests is None:
            self._known.clear()
            return
        for digest in digests:
            self._known.pop(digest, None)

    async def report(self) -> None:
        """Have the owner know at once what was used, which it otherwise hears within half a second."""
        await self._room.take([], (), {})

    # Reading

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        # Written out in this way because it is the hot loop of FindMissingBlobs: of most requests nearly all blobs were seen
        # before, or nearly all are surely missing, and the first one tells which is worth asking first.
        wanted = sought = list(digests)
        seen_at, trusted = self._known.get, time.monotonic() - REMEMBER_SECONDS
        asked_map = bool(wanted) and wanted[0] not in self._known
        if asked_map:
            sought = self._presence.maybe(wanted)
            if not sought:
                return set(wanted)
        fresh = [digest for digest in sought if seen_at(digest, _NEVER) > trusted]
        self._room.use(fresh)
        if len(fresh) == len(wanted):
            return set()
        looked_for = [digest for digest in sought if seen_at(digest, _NEVER) <= trusted]
        if not asked_map:
            looked_for = self._presence.maybe(looked_for)
        missing = set(wanted)
        missing.difference_update(fresh, looked_for)
        for start in range(0, len(looked_for), LOOKS_PER_TURN):
            if start:
                await asyncio.sleep(0)
            missing.update(digest for digest in looked_for[start : start + LOOKS_PER_TURN] if not self._look(digest))
        return missing

    def _look(self, digest: Digest) -> bool:
        """Whether the blob's file is there, which counts as use."""
        stamped_at = self._directory.stamp_of(digest)
        if stamped_at is None:
            self._known.pop(digest, None)
            return False
        now = self._clock()
        if now - stamped_at > STAMP_SECONDS:
            # At once, and not by a report that might come too late: the owner spares what is stamped (see its docstring).
            self._directory.stamp([digest], now)
        self._see(digest)
        return True

    def _see(self, digest: Digest) -> None:
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        if self._room.is_open:
            # Only then is it told what the owner forgets.
            self._known[digest] = time.monotonic()
        self._room.use([digest])

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        held = self._presence.maybe(dict.fromkeys(digests))
        if len(held) <= INLINE_BLOBS and sum(digest.size_bytes for digest in held) <= INLINE_BYTES:
            blobs = self._directory.read(held)
        else:
            blobs = await in_thread(self._threads, self._directory.read, held)
        self._room.use(blobs)
        if len(blobs) < len(held):
            self._forget(digest for digest in held if digest not in blobs)
        return blobs

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        if not self._presence.maybe([digest]):
            raise BlobNotFound(digest)

        async def lose() -> None:
            self._known.pop(digest, None)

        try:
            start, end = extent_of(digest, offset, limit)
        except StatusError:
            # What is not there is not found, whatever part of it was asked for.
            if not self._look(digest):
                raise BlobNotFound(digest) from None
            raise
        async with aclosing(pieces_of(self._directory, digest, start, end, self._threads, lose)) as pieces:
            # The first step opens the file, so that entering fails if it is gone and the blob stays readable from here.
            await anext(pieces)
            self._room.use([digest])
            yield pieces

    # Writing

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        failures: dict[Digest, StatusError] = {}
        wanted = dict(blobs)
        missing = await self.find_missing(wanted)
        batch: list[tuple[Digest, bytes]] = []
        for digest in wanted if missing else ():
            if digest not in missing:
                continue
            if len(wanted[digest]) != digest.size_bytes:
                failures[digest] = DigestMismatch(digest, f"{len(wanted[digest])} bytes")
                continue
            try:
                self._room.require(digest)
            except StoreFull as full:
                failures[digest] = full
            else:
                batch.append((digest, wanted[digest]))
        if not batch:
            return failures
        amounts = [charge(digest.size_bytes) for digest, _ in batch]
        taken: Taken = {}
        if not self._room.take_at_once(sum(amounts), taken):
            refused = await self._room.take(amounts, wanted, taken)
            failures.update(
                (digest, full) for (digest, _), full in zip(batch, refused, strict=True) if full is not None
            )
            batch = [one for one, full in zip(batch, refused, strict=True) if full is None]
        await self._write(batch, taken, failures)
        return failures

    async def _write(
        self, batch: list[tuple[Digest, bytes]], taken: Taken, failures: dict[Digest, StatusError]
    ) -> None:
        written: list[Digest] = []
        failed: dict[Digest, OSError] = {}
        size_bytes = sum(digest.size_bytes for digest, _ in batch)
        self._presence.publish_as_guest(digest for digest, _ in batch)
        try:
            if len(batch) <= INLINE_BLOBS and size_bytes <= INLINE_BYTES:
                self._directory.write_aside(batch, str(self._incoming), written, failed)
            else:
                await in_thread(self._threads, self._directory.write_aside, batch, str(self._incoming), written, failed)
        finally:
            # Also when the call is cancelled: what the thread wrote is whole.
            self._room.settle(taken, sum(charge(digest.size_bytes) for digest in written))
            for digest in written:
                self._see(digest)
        failures.update((digest, failure_of(digest, reason)) for digest, reason in failed.items())

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        if not await self.find_missing([digest]):
            return
        self._room.require(digest)
        if digest.size_bytes <= SMALL_BLOB_BYTES:
            async with aclosing(measured(digest, chunks)) as whole:
                data = b"".join([chunk async for chunk in whole])
            for failure in (await self.write_many([(digest, data)])).values():
                raise failure
            return
        incoming = Incoming(self._directory, digest, str(self._incoming))
        taken: Taken = {}
        try:
            buffer = bytearray()
            async with aclosing(measured(digest, chunks)) as whole:
                async for chunk in whole:
                    buffer += chunk
                    del chunk
                    if len(buffer) >= CHUNK_BYTES:
                        await self._take_in(incoming, taken, buffer)
                        buffer = bytearray()
            if buffer:
                await self._take_in(incoming, taken, buffer)
            await in_thread(self._threads, incoming.sync)
            self._presence.publish_as_guest([digest])
            await in_thread(self._threads, incoming.publish)
        except OSError as reason:
            full = store_full(digest, reason)
            if full is None:
                raise
            raise full from reason
        finally:
            self._room.settle(taken, charge(digest.size_bytes) if incoming.published else 0)
            if incoming.published:
                self._see(digest)
            # To delete gigabytes takes a second.
            await in_thread(self._threads, incoming.discard)

    async def _take_in(self, incoming: Incoming, taken: Taken, data: bytearray) -> None:
        """Write a piece of a large blob. Room is taken piece by piece: a size that is only claimed evicts nothing."""
        needed = charge(incoming.size_bytes + len(data)) - incoming.reserved_bytes
        if not self._room.take_at_once(needed, taken):
            for full in await self._room.take([needed], (), taken):
                if full is not None:
                    raise full
        incoming.reserved_bytes += needed
        await in_thread(self._threads, incoming.write, [], data)
