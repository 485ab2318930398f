"""What a store far away is not asked for again (the contract is in tests/contracts)."""

from __future__ import annotations

from cas.digest import Digest
from cas.memory import MemoryStore
from cas.remembered import Remembered
from cas.store import SMALL_BLOB_BYTES


def blob(data: bytes) -> tuple[Digest, bytes]:
    return Digest.of(data), data


async def test_a_small_blob_that_passed_by_is_at_hand_and_counts_as_missing_once_the_store_has_lost_it() -> None:
    far = MemoryStore()
    store = Remembered(far, 1 << 20)
    digest, data = blob(b"action")
    assert await store.write_many([(digest, data)]) == {}
    far.blobs.clear()
    assert await store.read_many([digest]) == {digest: data}
    async with store.open(digest, 2) as chunks:
        assert b"".join([chunk async for chunk in chunks]) == b"tion"
    assert await Remembered(MemoryStore(), 1).find_missing([digest]) == {digest}


async def test_neither_large_blobs_nor_those_that_were_refused_are_kept() -> None:
    store = Remembered(MemoryStore(), 1 << 20)
    large, wrong = blob(b"l" * (SMALL_BLOB_BYTES + 1)), (Digest.of(b"right"), b"wrong!")
    assert set(await store.write_many([large, wrong])) == {wrong[0]}
    assert store._memory.blobs == {}


async def test_what_is_kept_is_bounded() -> None:
    store = Remembered(MemoryStore(), 10_000)
    blobs = [blob(bytes([number]) * 2_000) for number in range(100)]
    assert await store.write_many(blobs) == {}
    assert store._memory.used_bytes <= 10_000
    assert await store.read_many([digest for digest, _data in blobs]) == dict(blobs)
