"""A store that is far away, with the small blobs that passed by lately in memory.

A client uploads an action and its command, and asks for their execution next: a frontend need not fetch what it has just
passed on. What the store lacks counts as missing whatever is remembered; large blobs are never kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from cas.digest import Digest
from cas.errors import BlobNotFound, StatusError
from cas.memory import MemoryStore
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES, BlobStore, extent_of


class Remembered:
    """A BlobStore that keeps up to `max_bytes` of small blobs of `inner` at hand."""

    def __init__(self, inner: BlobStore, max_bytes: int) -> None:
        self._inner = inner
        self._memory = MemoryStore(max_bytes)

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        return await self._inner.find_missing(digests)

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        blobs = await self._memory.read_many(digests)
        rest = [digest for digest in dict.fromkeys(digests) if digest not in blobs]
        if rest:
            found = await self._inner.read_many(rest)
            await self._keep(found.items())
            blobs |= found
        return blobs

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        failures = await self._inner.write_many(blobs)
        await self._keep((digest, data) for digest, data in blobs if digest not in failures)
        return failures

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        await self._inner.put(digest, chunks)

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        if digest.size_bytes > SMALL_BLOB_BYTES:
            async with self._inner.open(digest, offset, limit) as chunks:
                yield chunks
            return
        data = (await self.read_many([digest])).get(digest)
        if data is None:
            raise BlobNotFound(digest)
        start, end = extent_of(digest, offset, limit)
        yield _pieces(data[start:end])

    async def _keep(self, blobs: Iterable[tuple[Digest, bytes]]) -> None:
        """What does not fit is not kept, and nobody need know."""
        await self._memory.write_many([blob for blob in blobs if blob[0].size_bytes <= SMALL_BLOB_BYTES])


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for position in range(0, len(data), CHUNK_BYTES):
        yield data[position : position + CHUNK_BYTES]
