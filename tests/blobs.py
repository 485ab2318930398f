"""Blobs to test with: made up from a seed, sent in chunks, read whole."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from functools import lru_cache

from cas.digest import Digest
from cas.store import BlobStore

KIB, MIB = 1 << 10, 1 << 20


@lru_cache(maxsize=100)
def blob(size_bytes: int, seed: int = 0) -> tuple[Digest, bytes]:
    """Random bytes, the same for the same arguments, and their digest."""
    data = random.Random(f"{size_bytes} {seed}").randbytes(size_bytes)
    return Digest.of(data), data


async def in_chunks(data: bytes, chunk_bytes: int = MIB) -> AsyncIterator[bytes]:
    """`data` as a client sends it."""
    for position in range(0, len(data), chunk_bytes):
        yield data[position : position + chunk_bytes]


async def read(store: BlobStore, digest: Digest, offset: int = 0, limit: int | None = None) -> bytes:
    """What the streaming road gives, in one piece."""
    async with store.open(digest, offset, limit) as pieces:
        return b"".join([piece async for piece in pieces])
