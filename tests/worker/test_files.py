"""The worker's file cache: its bound, what is held, what is shared, and what an earlier agent left."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from cas.digest import Digest
from cas.errors import DigestMismatch, InputsMissing, Unavailable
from cas.memory import MemoryStore
from cas.store import SMALL_BLOB_BYTES
from rexec.worker.blob_files import BlobFiles, FileKey
from rexec.worker.files import FileCache, InputsTooLarge


def key(data: bytes, *, executable: bool = False) -> FileKey:
    return FileKey(Digest.of(data), executable)


async def filled(store: MemoryStore, *blobs: bytes) -> list[FileKey]:
    assert not await store.write_many([(Digest.of(data), data) for data in blobs])
    return [key(data) for data in blobs]


async def cache_at(path: Path, max_bytes: int = 1000) -> FileCache:
    cache = FileCache(BlobFiles(str(path)), max_bytes)
    await cache.adopt()
    return cache


def content(cache: FileCache, file: FileKey) -> bytes:
    return Path(cache.files.path(file)).read_bytes()


async def test_files_not_used_for_longest_go_first(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path)
    a, b, c = await filled(store, b"a" * 400, b"b" * 400, b"c" * 400)
    (await cache.hold([a], store)).release()
    (await cache.hold([b], store)).release()
    (await cache.hold([a], store)).release()
    (await cache.hold([c], store)).release()
    assert (a in cache, b in cache, c in cache) == (True, False, True)
    assert not os.path.exists(cache.files.path(b))  # noqa: ASYNC240
    assert cache.used_bytes == 800


async def test_held_files_stay_and_others_wait_for_room(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path)
    a, b = await filled(store, b"a" * 600, b"b" * 600)
    first = await cache.hold([a], store)
    second = asyncio.create_task(cache.hold([b], store))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not second.done()
    first.release()
    async with asyncio.timeout(10):
        (await second).release()
    assert b in cache


async def test_two_that_wait_for_room_do_not_block_each_other(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path)
    keys = await filled(store, *(bytes([n]) * 300 for n in range(12)))

    async def use(start: int) -> None:
        for turn in range(12):
            wanted = {keys[(start + turn + step) % 12] for step in range(3)}
            with await cache.hold(wanted, store):
                assert all(os.path.exists(cache.files.path(each)) for each in wanted)  # noqa: ASYNC240

    async with asyncio.timeout(20):
        await asyncio.gather(*(use(start) for start in range(6)))
    assert cache.used_bytes <= 1000


async def test_a_blob_wanted_twice_at_once_is_fetched_once(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path)
    (a,) = await filled(store, b"a")
    reads: list[Digest] = []
    original = store.read_many

    async def counted(digests: Sequence[Digest]) -> dict[Digest, bytes]:
        reads.extend(digests)
        await asyncio.sleep(0)
        return await original(digests)

    store.read_many = counted  # type: ignore[method-assign]
    holds = await asyncio.gather(*(cache.hold([a], store) for _ in range(5)))
    assert len(reads) == 1
    for hold in holds:
        hold.release()
        hold.release()
    assert cache._index.pinned_bytes == 0


async def test_a_failed_fetch_is_tried_again_by_those_who_waited_for_it(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path)
    (a,) = await filled(store, b"a" * 900)
    original = store.read_many
    calls = 0

    async def failing_once(digests: Sequence[Digest]) -> dict[Digest, bytes]:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        if calls == 1:
            raise Unavailable("the store is away")
        return await original(digests)

    store.read_many = failing_once  # type: ignore[method-assign]
    async with asyncio.timeout(10):
        first, second = await asyncio.gather(cache.hold([a], store), cache.hold([a], store), return_exceptions=True)
    assert isinstance(first, Unavailable)
    assert not isinstance(second, BaseException)
    second.release()
    assert (cache._index.pinned_bytes, cache._reserved_bytes, cache.used_bytes) == (0, 0, 900)


async def test_missing_and_wrong_blobs_leave_no_room_booked(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path)
    (a,) = await filled(store, b"a" * 500)
    with pytest.raises(InputsMissing) as missing:
        await cache.hold([a, key(b"gone"), key(b"also gone", executable=True)], store)
    assert {digest.size_bytes for digest in missing.value.digests} == {4, 9}
    store.blobs[a.digest] = b"b" * 500
    cache.forget([a])
    with pytest.raises(DigestMismatch):
        await cache.hold([a], store)
    assert a not in cache
    assert (cache._index.pinned_bytes, cache._reserved_bytes) == (0, 0)
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_more_than_the_cache_is_refused_at_once(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path)
    with pytest.raises(InputsTooLarge, match="1200 bytes; this worker keeps at most 1000"):
        await cache.hold(await filled(store, b"a" * 600, b"b" * 600), store)


async def test_a_large_blob_with_wrong_bytes_or_length_is_never_visible(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path, 10 << 20)
    data = bytes(3 << 20)
    (large,) = await filled(store, data)
    for wrong in (data[:-1], b"y" + data[1:]):
        store.blobs[large.digest] = wrong
        with pytest.raises(DigestMismatch):
            await cache.hold([large], store)
        assert not os.path.exists(cache.files.path(large))  # noqa: ASYNC240
    store.blobs[large.digest] = data
    (await cache.hold([large], store)).release()
    assert content(cache, large) == data


async def test_the_next_agent_takes_over_what_is_whole(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path)
    a, b, c = await filled(store, b"aa", b"bb", b"cc")
    both = FileKey(a.digest, True)
    (await cache.hold([a, b, c, both], store)).release()
    os.chmod(cache.files.path(b), 0o644)
    os.unlink(cache.files.path(c))
    with open(cache.files.path(c), "wb") as tampered:  # noqa: ASYNC230
        tampered.write(b"xx")
    (tmp_path / "tmp" / "7").write_bytes(b"half of someth")
    (tmp_path / "sha256" / "zz").mkdir()
    (tmp_path / "sha256" / "zz" / "stray").write_bytes(b"?")
    again = await cache_at(tmp_path)
    assert (a in again, both in again, b in again, c in again) == (True, True, False, False)
    assert again.used_bytes == 4
    assert list((tmp_path / "tmp").iterdir()) == []
    store.blobs.clear()
    (await again.hold([a, both], store)).release()


async def test_a_smaller_bound_holds_from_the_start(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path)
    (await cache.hold(await filled(store, b"a" * 400, b"b" * 400), store)).release()
    assert (await cache_at(tmp_path, 500)).used_bytes == 400


async def test_files_of_an_earlier_boot_are_not_trusted(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path)
    (a,) = await filled(store, b"a")
    (await cache.hold([a], store)).release()
    (tmp_path / "boot").write_text("another start of the machine")
    assert a not in await cache_at(tmp_path)


async def test_files_are_not_trusted_where_the_boot_is_unknown(tmp_path: Path, store: MemoryStore) -> None:
    async def adopted() -> FileCache:
        cache = FileCache(BlobFiles(str(tmp_path), boot_id=str), 1000)
        await cache.adopt()
        return cache

    cache = await adopted()
    (a,) = await filled(store, b"a")
    (await cache.hold([a], store)).release()
    assert a in cache
    assert a not in await adopted()


async def test_outputs_are_taken_as_far_as_there_is_room(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path / "cache")
    (a,) = await filled(store, b"a" * 700)
    held = await cache.hold([a], store)
    fits, does_not = tmp_path / "fits", tmp_path / "does not"
    fits.write_bytes(b"f" * 200)
    does_not.write_bytes(b"d" * 200)
    await cache.take([(key(b"f" * 200), str(fits)), (key(b"d" * 200), str(does_not))])
    assert key(b"f" * 200) in cache
    assert key(b"d" * 200) not in cache
    assert does_not.exists()
    assert cache.files.changed_ns(key(b"f" * 200)) > 0
    held.release()
    (await cache.hold([key(b"f" * 200)], store)).release()
    assert cache._index.pinned_bytes == 0


async def test_a_cancelled_hold_gives_everything_back(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path)
    (a, b) = await filled(store, b"a" * 300, b"b" * 300)
    (await cache.hold([a], store)).release()
    asked = asyncio.Event()

    async def never(_digests: Sequence[Digest]) -> dict[Digest, bytes]:
        asked.set()
        await asyncio.Event().wait()
        return {}

    store.read_many = never  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(cache.hold([a, b], store))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (cache._index.pinned_bytes, cache._reserved_bytes) == (0, 0)


async def test_who_lets_a_changed_file_go_does_not_let_the_new_one_go(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path)
    a, b = await filled(store, b"a" * 600, b"b" * 600)
    first = await cache.hold([a], store)
    assert first.forget([a]) == 0
    with await cache.hold([a], store):
        first.release()
        waiting = asyncio.create_task(cache.hold([b], store))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        assert content(cache, a) == b"a" * 600
    async with asyncio.timeout(10):
        (await waiting).release()
    assert (cache._index.pinned_bytes, cache.used_bytes) == (0, 600)


async def test_a_file_changed_while_two_hold_it_is_spoilt_for_both(tmp_path: Path, store: MemoryStore) -> None:
    cache = await cache_at(tmp_path)
    (a,) = await filled(store, b"a")
    with await cache.hold([a], store) as first, await cache.hold([a], store) as second:
        assert first.forget([a]) == 1
        with await cache.hold([a], store) as third:
            assert second.forget([]) == 1
            assert third.forget([]) == 0


@pytest.mark.parametrize("size_bytes", [6, SMALL_BLOB_BYTES + 1])
async def test_what_a_cancelled_fetch_still_wrote_is_counted(
    tmp_path: Path, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    cache = await cache_at(tmp_path, 4 << 20)
    data = b"a" * size_bytes
    (a,) = await filled(store, data)
    writing, go_on = threading.Event(), threading.Event()
    rename = os.rename

    def slow_rename(source: str, target: str) -> None:
        writing.set()
        assert go_on.wait(20)
        rename(source, target)

    monkeypatch.setattr(os, "rename", slow_rename)
    task = asyncio.create_task(cache.hold([a], store))
    assert await asyncio.to_thread(writing.wait, 20)
    task.cancel()
    await asyncio.wait([task], timeout=0.01)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert content(cache, a) == data
    assert (a in cache, cache.used_bytes, cache._index.pinned_bytes, cache._reserved_bytes) == (True, size_bytes, 0, 0)
