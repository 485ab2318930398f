"""A store whose bytes are counted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

from cas.digest import Digest
from cas.errors import StatusError
from cas.store import BlobStore

Moved = Callable[[int], None]
"""Told of so many bytes at once; must return at once."""


class Metered:
    """A store that tells how many bytes of blobs are read from it and written to it.

    Written is what the store was given and has taken, which it may have had already.
    """

    def __init__(self, inner: BlobStore, read: Moved, written: Moved) -> None:
        self._inner = inner
        self._read = read
        self._written = written

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        return await self._inner.find_missing(digests)

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        blobs = await self._inner.read_many(digests)
        self._read(sum(map(len, blobs.values())))
        return blobs

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        failures = await self._inner.write_many(blobs)
        self._written(sum(len(data) for digest, data in blobs if digest not in failures))
        return failures

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        async with self._inner.open(digest, offset, limit) as chunks, aclosing(_counted(chunks, self._read)) as counted:
            yield counted

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        async with aclosing(_counted(chunks, self._written)) as counted:
            await self._inner.put(digest, counted)


async def _counted(chunks: AsyncIterator[bytes], moved: Moved) -> AsyncGenerator[bytes, None]:
    async for chunk in chunks:
        moved(len(chunk))
        yield chunk
