"""Getting blobs from a store into files: small ones in batches, large ones in pieces, every byte checked.

A few calls are in flight at once, so that the store's latency is paid about once and not for every file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from cas.cancellation import to_the_end
from cas.digest import Digest
from cas.errors import BlobNotFound, DigestMismatch
from cas.store import BlobStore
from rexec.worker.blob_files import BlobFiles, FileKey
from rexec.worker.transfer import CALLS_IN_FLIGHT, each_by_size

_STEP_BYTES = 1 << 20
"""Pieces of a large blob are gathered to this size before a thread writes them."""


async def fetch(
    keys: Sequence[FileKey],
    store: BlobStore,
    files: BlobFiles,
    siblings: Mapping[FileKey, FileKey],
    arrived: Callable[[FileKey], None],
) -> set[Digest]:
    """Make a file of every key and report each through `arrived`; returns the blobs that the store does not have.

    `siblings` are files here with the same bytes and the other mode: they are copied. Raises DigestMismatch for wrong bytes,
    OSError for a full disk, and what the store raises; files that were whole by then are reported, also if the call is
    cancelled. `arrived` is called in threads: nothing that is on the disk may go unreported.
    """
    wanted: dict[Digest, list[FileKey]] = {}
    missing: set[Digest] = set()
    for key in keys:
        sibling = siblings.get(key)
        if sibling is None or not await _copied(files, sibling, key, arrived):
            wanted.setdefault(key.digest, []).append(key)
    in_flight = asyncio.Semaphore(CALLS_IN_FLIGHT)

    def write(blobs: Sequence[tuple[FileKey, bytes]]) -> None:
        files.write(blobs)
        for key, _ in blobs:
            arrived(key)

    async def small(batch: Sequence[Digest]) -> None:
        async with in_flight:
            found = dict(await store.read_many(batch))
        found.update((digest, b"") for digest in batch if digest.size_bytes == 0)  # it exists always (REAPI)
        missing.update(digest for digest in batch if digest not in found)
        blobs = [(key, found[digest]) for digest in batch if digest in found for key in wanted[digest]]
        if blobs:
            await to_the_end(asyncio.to_thread(write, blobs))

    async def large(digest: Digest) -> None:
        first, *others = wanted[digest]
        async with in_flight:
            try:
                await _stream(first, store, files, arrived)
            except BlobNotFound:
                missing.add(digest)
                return
        for other in others:
            await to_the_end(asyncio.to_thread(_copy, files, first, other, arrived))

    await each_by_size(wanted, small, large)
    return missing


def _copy(files: BlobFiles, source: FileKey, target: FileKey, arrived: Callable[[FileKey], None]) -> None:
    files.copy(source, target)
    arrived(target)


async def _copied(files: BlobFiles, source: FileKey, target: FileKey, arrived: Callable[[FileKey], None]) -> bool:
    try:
        await to_the_end(asyncio.to_thread(_copy, files, source, target, arrived))
    except (FileNotFoundError, DigestMismatch):
        return False  # evicted or changed meanwhile: the store has it
    return True


async def _stream(key: FileKey, store: BlobStore, files: BlobFiles, arrived: Callable[[FileKey], None]) -> None:
    def publish() -> None:
        partial.publish()
        arrived(key)

    async with store.open(key.digest) as chunks:
        with files.begin(key) as partial:
            gathered: list[bytes] = []
            gathered_bytes = 0
            async for chunk in chunks:
                gathered.append(chunk)
                gathered_bytes += len(chunk)
                if gathered_bytes >= _STEP_BYTES:
                    await asyncio.to_thread(partial.write, b"".join(gathered))
                    gathered, gathered_bytes = [], 0
            await asyncio.to_thread(partial.write, b"".join(gathered))
            await to_the_end(asyncio.to_thread(publish))
