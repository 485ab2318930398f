"""Putting what an action made into the store: one question which blobs are missing, then only those.

Small blobs go in bounded batches, large ones one by one in pieces; a few calls are in flight at once.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from cas.digest import Digest
from cas.errors import StatusError, StoreFull
from cas.store import CHUNK_BYTES, BlobStore
from rexec.worker.transfer import CALLS_IN_FLIGHT, each_by_size

Source = bytes | str
"""The bytes themselves, or the path of a file that holds them and does not change."""

FULL_STORE_PAUSES_SECONDS = (0.5, 2.0)
"""Before an upload is tried again that found the store full. Writes that were under way may have ended meanwhile; a blob
that is larger than the store, or a full disk below it, stays what it is, on every worker."""


class NotKept(Exception):
    """The store has no room for a blob, and will have none for it later."""

    def __init__(self, digest: Digest, failure: StoreFull) -> None:
        super().__init__(str(failure))
        self.digest = digest


async def upload(
    sources: Mapping[Digest, Source],
    store: BlobStore,
    pauses_seconds: Sequence[float] = FULL_STORE_PAUSES_SECONDS,
) -> None:
    """Have every blob in the store; tries again after each of `pauses_seconds` while the store is full.

    Raises NotKept, and what else the store raises, first failure first; OSError if a file cannot be read.
    """
    for pause_seconds in pauses_seconds:
        try:
            return await _upload(sources, store)
        except NotKept:
            await asyncio.sleep(pause_seconds)
    return await _upload(sources, store)


async def _upload(sources: Mapping[Digest, Source], store: BlobStore) -> None:
    missing = await store.find_missing([digest for digest in sources if digest.size_bytes]) if sources else set()
    if not missing:
        return
    in_flight = asyncio.Semaphore(CALLS_IN_FLIGHT)

    async def small(batch: Sequence[Digest]) -> None:
        async with in_flight:
            if any(isinstance(sources[digest], str) for digest in batch):
                blobs = await asyncio.to_thread(_read_all, batch, sources)
            else:
                blobs = _read_all(batch, sources)
            failures = await store.write_many(blobs)
        for digest, failure in failures.items():
            raise _refused(digest, failure)

    async def large(digest: Digest) -> None:
        async with in_flight:
            try:
                await store.put(digest, _chunks(sources[digest]))
            except StoreFull as failure:
                raise _refused(digest, failure) from failure

    await each_by_size([digest for digest in sources if digest in missing], small, large)


def _refused(digest: Digest, failure: StatusError) -> Exception:
    return NotKept(digest, failure) if isinstance(failure, StoreFull) else failure


def _read_all(batch: Sequence[Digest], sources: Mapping[Digest, Source]) -> list[tuple[Digest, bytes]]:
    blobs = []
    for digest in batch:
        source = sources[digest]
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if len(data) != digest.size_bytes:
            # Not for the store to mend, so not a StatusError.
            raise OSError(errno.EIO, f"an output of {digest.size_bytes} bytes has {len(data)} when it is uploaded")
        blobs.append((digest, data))
    return blobs


async def _chunks(source: Source) -> AsyncIterator[bytes]:
    if isinstance(source, bytes):
        for start in range(0, len(source), CHUNK_BYTES):
            yield source[start : start + CHUNK_BYTES]
        return
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    offset = 0
    try:
        # pread and to_thread: a cancelled read goes on in its thread, on a descriptor that is closed or not, never on
        # a position that somebody else moved.
        while chunk := await asyncio.to_thread(os.pread, fd, CHUNK_BYTES, offset):
            offset += len(chunk)
            yield chunk
    finally:
        os.close(fd)
