"""Bytes that are counted, both ways."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cas.digest import Digest
from cas.errors import DigestMismatch
from cas.memory import MemoryStore
from cas.metered import Metered
from cas.store import CHUNK_BYTES
from tests.blobs import read


class Moved:
    def __init__(self) -> None:
        self.read_bytes = self.written_bytes = 0

    def read(self, size_bytes: int) -> None:
        self.read_bytes += size_bytes

    def written(self, size_bytes: int) -> None:
        self.written_bytes += size_bytes


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def test_small_blobs_are_counted_as_far_as_they_are_there() -> None:
    moved = Moved()
    store = Metered(MemoryStore(), moved.read, moved.written)
    assert await store.write_many([(Digest.of(data), data) for data in (b"one", b"three")]) == {}
    await store.read_many([Digest.of(b"three"), Digest.of(b"missing")])
    assert (moved.read_bytes, moved.written_bytes) == (5, 8)


async def test_large_blobs_are_counted_as_they_move() -> None:
    moved = Moved()
    store = Metered(MemoryStore(), moved.read, moved.written)
    data = b"x" * (2 * CHUNK_BYTES)
    digest = Digest.of(data)
    await store.put(digest, pieces(data[:CHUNK_BYTES], data[CHUNK_BYTES:]))
    assert (moved.read_bytes, moved.written_bytes) == (0, len(data))
    assert await read(store, digest) == data
    assert moved.read_bytes == len(data)
    with pytest.raises(DigestMismatch):
        await store.put(Digest.of(b"too short"), pieces(b"short"))
