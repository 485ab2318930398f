"""What the tests of uploads share: blobs, a clock, and a store that can be told to wait or to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from cas.digest import Digest
from cas.memory import MemoryStore
from cas.store import CHUNK_BYTES, BlobStore
from cas.uploads import UploadKey, Uploads

SMALL = b"small blob" * 100
LARGE = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"and a bit"
BOTH = pytest.mark.parametrize("blob", [SMALL, LARGE], ids=["small", "large"])


@dataclass
class Clock:
    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


class Watched(MemoryStore):
    """A store that tells how its puts go, and can be told to wait or to fail."""

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        super().__init__(max_bytes)
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.failure: Exception | None = None
        self.pieces: list[int] = []

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        self.started.set()
        try:
            await self.go_on.wait()
            if self.failure is not None:
                raise self.failure
            await super().put(digest, self._watched(chunks))
        finally:
            self.ended.set()

    async def _watched(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self.pieces.append(len(chunk))
            yield chunk
            await self.go_on.wait()


def key_of(blob: bytes, uuid: str = "u") -> UploadKey:
    return UploadKey("main", uuid, Digest.of(blob))


@asynccontextmanager
async def guarded(uploads: Uploads) -> AsyncIterator[Uploads]:
    """The uploads, within 10 seconds; in the end nothing of them may be left."""
    async with asyncio.timeout(10):
        async with uploads:
            yield uploads
        assert (len(uploads), uploads.partial_bytes) == (0, 0)


async def send(uploads: Uploads, key: UploadKey, store: BlobStore, *messages: bytes) -> None:
    """One stream from the start to finish_write."""
    async with uploads.open(key, store, 0) as upload:
        for message in messages:
            await upload.append(message)
        await upload.finish()
