"""Splicing: a blob made from chunks that are stored already.

Nothing is believed: the blob is put through the store as if a client had sent it, so that it becomes visible only if it is
what its digest names. The chunks are read as the store takes them; the blob is never in memory as a whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from cas.batches import batches
from cas.digest import Digest, hasher
from cas.errors import AlreadyExists, BlobNotFound, ChunksMissing, DigestMismatch, MalformedRequest
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES, BlobStore

MAX_RUNS: Final = 4
"""Blobs that are spliced at the same time; each holds a few MiB."""

CHUNKS_AT_ONCE: Final = 1_000
"""Small chunks read with one call. They are joined up to CHUNK_BYTES, but a client may send ones of a few bytes."""

MOSTLY_REPEATED: Final = 4
"""From this ratio of the blob's size to that of its different chunks on, the blob is hashed before it is written: a request
of 4 MiB can name one chunk 50,000 times, and a lie of that size would push everything else out of the store."""

MAX_REPEATED_BYTES: Final = 64 << 30
"""The largest blob that is hashed so, for about a minute: a request of 4 MiB could name petabytes."""


class Splices:
    """Makes blobs from chunks, a few at a time."""

    def __init__(self, *, max_runs: int = MAX_RUNS) -> None:
        self._runs = asyncio.Semaphore(max_runs)

    async def splice(self, store: BlobStore, digest: Digest, chunks: Sequence[Digest]) -> None:
        """Store the blob that the chunks make up, unless the store has it.

        Raises MalformedRequest if the sizes do not add up, ChunksMissing, DigestMismatch if the blob is another one,
        StoreFull, and AlreadyExists if the store has the blob but not all chunks, so that they were not kept longer.
        """
        size_bytes = sum(chunk.size_bytes for chunk in chunks)
        if size_bytes != digest.size_bytes:
            raise MalformedRequest(f"the {len(chunks)} chunks of blob {digest} have {size_bytes} bytes together")
        different = list(dict.fromkeys(chunks))
        missing = await store.find_missing([digest, *different])
        lost = [chunk for chunk in different if chunk in missing]
        if digest not in missing:
            if lost:
                raise AlreadyExists(f"blob {digest} is stored; {len(lost)} of its chunks are not")
            return
        if lost:
            raise ChunksMissing(lost)
        async with self._runs:
            if sum(chunk.size_bytes for chunk in different) * MOSTLY_REPEATED <= size_bytes:
                if size_bytes > MAX_REPEATED_BYTES:
                    raise MalformedRequest(
                        f"blob {digest} repeats its chunks to {size_bytes} bytes; {MAX_REPEATED_BYTES} is the most"
                    )
                await _check(store, digest, chunks)
            async with aclosing(_joined(store, chunks)) as pieces:
                await store.put(digest, pieces)


async def _check(store: BlobStore, digest: Digest, chunks: Sequence[Digest]) -> None:
    """Raises DigestMismatch if the chunks make up another blob."""
    hash_so_far = hasher(digest.function, digest.size_bytes)
    async with aclosing(_joined(store, chunks)) as pieces:
        async for piece in pieces:
            await asyncio.to_thread(hash_so_far.update, piece)
    actual = Digest(hash_so_far.hexdigest(), digest.size_bytes, digest.function)
    if actual != digest:
        raise DigestMismatch(digest, actual)


async def _joined(store: BlobStore, chunks: Sequence[Digest]) -> AsyncGenerator[bytes, None]:
    """The bytes of the chunks in order, in pieces of at most CHUNK_BYTES. Raises ChunksMissing for one that is gone."""
    # Small ones together, and each large one alone.
    for group in batches(chunks, CHUNK_BYTES, CHUNKS_AT_ONCE):
        if group[0].size_bytes <= SMALL_BLOB_BYTES:
            blobs = await store.read_many(list(dict.fromkeys(group)))
            if gone := [chunk for chunk in group if chunk not in blobs]:
                raise ChunksMissing(dict.fromkeys(gone))
            yield b"".join([blobs[chunk] for chunk in group])
            continue
        try:
            async with store.open(group[0]) as pieces:
                async for piece in pieces:
                    yield piece
        except BlobNotFound as reason:
            raise ChunksMissing(group) from reason
