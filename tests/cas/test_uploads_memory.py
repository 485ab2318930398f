"""What unfinished uploads hold in memory, beside the bytes that are counted."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path

import pytest

from cas.compose import Verified
from cas.digest import Digest
from cas.disk import DiskStore
from cas.memory import MemoryStore
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES
from cas.uploads import UploadKey, Uploads

UPLOADS = 20


def _size_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("size_bytes", [SMALL_BLOB_BYTES, 3 * CHUNK_BYTES])
async def test_empty_messages_leave_no_trace(size_bytes: int) -> None:
    key = UploadKey("main", "u", Digest("a" * 64, size_bytes))
    async with Uploads() as uploads, uploads.open(key, MemoryStore(), 0) as upload:
        await upload.append(b"")
        tracemalloc.start()
        try:
            for _ in range(20_000):
                await upload.append(b"")
            grown_bytes, _peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert grown_bytes < 50_000


async def test_what_the_store_has_taken_is_not_held_for_a_client_that_sends_no_more(tmp_path: Path) -> None:
    async with DiskStore(tmp_path, 1 << 30) as disk, Uploads() as uploads:
        store = Verified(disk)
        tracemalloc.start()
        try:
            for number in range(UPLOADS):
                key = UploadKey("main", "u", Digest(f"{number:064x}", 3 * CHUNK_BYTES))
                async with uploads.open(key, store, 0) as upload:
                    await upload.append(bytes(CHUNK_BYTES + 1))
                    async with asyncio.timeout(10):
                        while uploads.partial_bytes > number + 1 or _size_bytes(tmp_path) < (number + 1) * CHUNK_BYTES:
                            await asyncio.to_thread(list)
            assert len(uploads) == UPLOADS
            held_bytes, _peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert held_bytes < UPLOADS * CHUNK_BYTES // 2  # the last ones may still be in a thread
