"""Content of unknown size: hashed on its way, in memory or in a file, and whole in the store."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cas.digest import Digest
from cas.errors import StoreFull
from cas.fetch_spool import Spool
from cas.hashing import DigestFunction
from cas.memory import MemoryStore
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES
from tests.blobs import blob, in_chunks, read

SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, SMALL_BLOB_BYTES, SMALL_BLOB_BYTES + 1, 3 * CHUNK_BYTES + 5]


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("function", list(DigestFunction))
async def test_content_arrives_under_its_digest(tmp_path: Path, size_bytes: int, function: DigestFunction) -> None:
    _, data = blob(size_bytes)
    store = MemoryStore()
    check = hashlib.sha512()
    with Spool(tmp_path, function, [check]) as spool:
        async for piece in in_chunks(data, 300_000):
            await spool.append(piece)
        digest = await spool.finish()
        await spool.store(digest, store)
    assert digest == Digest.of(data, function)
    assert check.digest() == hashlib.sha512(data).digest()
    assert await read(store, digest) == data


async def test_large_content_is_not_kept_in_memory_and_leaves_no_file(tmp_path: Path) -> None:
    with Spool(tmp_path, DigestFunction.SHA256) as spool:
        for _ in range(5):
            await spool.append(bytes(CHUNK_BYTES))
        assert len(spool._pending) < CHUNK_BYTES
        assert os.listdir(tmp_path) == []
    assert os.listdir(tmp_path) == []


async def test_a_place_that_takes_no_file_is_a_full_store(tmp_path: Path) -> None:
    with Spool(tmp_path / "nowhere", DigestFunction.SHA256) as spool, pytest.raises(StoreFull):
        await spool.append(bytes(CHUNK_BYTES))


async def test_what_the_store_refuses_is_raised(tmp_path: Path) -> None:
    for size_bytes in (100_000, 2 * CHUNK_BYTES):
        with Spool(tmp_path, DigestFunction.SHA256) as spool:
            await spool.append(bytes(size_bytes))
            digest = await spool.finish()
            with pytest.raises(StoreFull):
                await spool.store(digest, MemoryStore(max_bytes=1000))
