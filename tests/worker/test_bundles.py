"""Files held by directory: what the cache counts, keeps and lets go."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from cas.digest import Digest
from cas.memory import MemoryStore
from cas.tree import parse_directory
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.worker.blob_files import BlobFiles, FileKey
from rexec.worker.files import FileCache
from rexec.worker.hold import Hold
from rexec.worker.listing import Listing, listing_of

SIZE = 100


def key(name: str) -> FileKey:
    return FileKey(Digest.of(name.encode() * SIZE), False)


class Shelf:
    """A cache with room for ten files whose names have one letter."""

    def __init__(self, path: Path) -> None:
        self.cache = FileCache(BlobFiles(str(path)), 10 * SIZE)
        self.store = MemoryStore()
        self.evicted: list[FileKey] = []
        self.cache.evicted = self.evicted.extend

    async def hold(self, *directories: str) -> Hold:
        """Directories, each as the letters of its files."""
        listings: dict[Digest, Listing] = {}
        for letters in directories:
            message = re_pb2.Directory()
            for letter in letters:
                data = letter.encode() * SIZE
                await self.store.write_many([(Digest.of(data), data)])
                message.files.add(name=letter, digest=Digest.of(data).to_proto())
            encoded = message.SerializeToString()
            digest = Digest.of(encoded)
            listings[digest] = listing_of(parse_directory(encoded, digest))
        return await self.cache.hold_directories(listings, self.store)

    def has(self) -> str:
        return "".join(letter for letter in "abcdefghijklmnopqrstuvwxyz" if key(letter) in self.cache)


@pytest.fixture
async def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(tmp_path)
    await made.cache.adopt()
    return made


async def test_a_directory_held_again_has_the_same_files(shelf: Shelf) -> None:
    with await shelf.hold("abc", "cd") as first, await shelf.hold("abc", "cd") as second:
        assert first.bundles == second.bundles
        assert len(first.bundles) == 2
    with await shelf.hold("abc") as third:
        assert set(third.bundles.values()) < set(first.bundles.values())


async def test_the_directory_used_longest_ago_lets_its_files_go_first(shelf: Shelf) -> None:
    for directory in ("abc", "def", "ghi", "abc"):
        (await shelf.hold(directory)).release()
    (await shelf.hold("xy")).release()
    assert shelf.has() in ("abcefghixy", "abcdfghixy", "abcdeghixy")
    assert len(shelf.evicted) == 1


async def test_a_file_stays_while_any_directory_that_was_used_lately_has_it(shelf: Shelf) -> None:
    for directory in ("abcde", "efgh", "a"):
        (await shelf.hold(directory)).release()
    (await shelf.hold("uvwxy")).release()
    assert shelf.has() == "aefghuvwxy"


async def test_files_of_no_directory_and_of_directories_go_in_the_order_of_last_use(
    shelf: Shelf, tmp_path: Path
) -> None:
    (await shelf.hold("abc")).release()
    output = tmp_path / "output"
    output.write_bytes(b"o" * SIZE)
    await shelf.cache.take([(key("o"), str(output))])
    (await shelf.hold("def")).release()
    (await shelf.hold("uvwxy")).release()
    assert shelf.has() in ("adefouvwxy", "bdefouvwxy", "cdefouvwxy")
    (await shelf.hold("rs")).release()
    assert shelf.has() == "defrsuvwxy"


async def test_what_is_held_stays_and_who_needs_its_room_waits(shelf: Shelf) -> None:
    held = await shelf.hold("abc", "cde")
    (await shelf.hold("xyz")).release()
    waiting = asyncio.create_task(shelf.hold("fghijk"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    assert "abcde" in shelf.has()
    held.release()
    async with asyncio.timeout(10):
        (await waiting).release()
    assert "fghijk" in shelf.has()
    assert shelf.cache.used_bytes <= 10 * SIZE


async def test_files_in_several_directories_take_room_once(shelf: Shelf) -> None:
    with await shelf.hold("abcdefgh", "abcdefg", "abcdef"):
        assert shelf.cache.used_bytes == shelf.cache._index.pinned_bytes == 8 * SIZE


async def test_a_directory_with_a_forgotten_file_is_held_anew_with_another(shelf: Shelf) -> None:
    with await shelf.hold("abc", "def") as first:
        shelf.cache.forget([key("b")])
        with await shelf.hold("abc", "def") as second:
            (old,) = [bundle for bundle in first.bundles.values() if key("b") in bundle.keys]
            (new,) = [bundle for bundle in second.bundles.values() if key("b") in bundle.keys]
            assert not new.is_like(old)
            assert new.files[key("a")] is old.files[key("a")]
            assert len(set(first.bundles.values()) & set(second.bundles.values())) == 1
    assert shelf.cache.used_bytes == 6 * SIZE
    assert (await shelf.hold("abc")).bundles == {name: each for name, each in second.bundles.items() if each is new}


async def test_a_file_that_is_forgotten_while_others_are_fetched_is_fetched_as_well(shelf: Shelf) -> None:
    (await shelf.hold("abc")).release()
    original = shelf.store.read_many

    async def forgetting(digests: list[Digest]) -> dict[Digest, bytes]:
        if key("b") in shelf.cache:
            shelf.cache.forget([key("b")])
        shelf.store.read_many = original  # type: ignore[method-assign]
        return await original(digests)

    shelf.store.read_many = forgetting  # type: ignore[method-assign,assignment]
    with await shelf.hold("abc", "xyz"):
        assert shelf.has() == "abcxyz"


async def test_no_more_idle_names_are_remembered_than_may_be(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf.cache._index, "_max_idle_names", 6)
    for directory in ("abc", "def", "gh"):
        (await shelf.hold(directory)).release()
    assert (shelf.cache._index._idle_names, len(shelf.cache._index.bundles)) == (5, 2)
    assert shelf.cache._index.pinned_bytes == 5 * SIZE
    assert shelf.has() == "abcdefgh"
    with await shelf.hold("abc"):
        assert shelf.cache._index._idle_names == 5


def require_consistent(cache: FileCache) -> None:
    known = cache._index.known
    bundles = {*cache._index.bundles.values(), *(bundle for hold in cache._holds for bundle in hold.bundles.values())}
    pins = Counter(file for bundle in bundles for file in bundle.files.values())
    assert {file: file.pins for file in known.values()} == {file: pins[file] for file in known.values()}
    assert set(cache._index._unpinned) == {each for each, file in known.items() if not file.pins}
    assert cache._index.used_bytes == sum(each.digest.size_bytes for each in known) <= cache.max_bytes
    assert cache._index.pinned_bytes == sum(each.digest.size_bytes for each, file in known.items() if file.pins)
    assert cache._index._idle == {name: bundle for name, bundle in cache._index.bundles.items() if not bundle.holders}
    assert cache._index._idle_names == sum(len(bundle.keys) for bundle in cache._index._idle.values())
    holders = Counter(bundle for hold in cache._holds for bundle in hold.bundles.values())
    assert {bundle: bundle.holders for bundle in bundles} == {bundle: holders[bundle] for bundle in bundles}


async def test_whatever_comes_the_counts_are_right(shelf: Shelf) -> None:
    dice = random.Random(7)
    directories = ["abc", "bcd", "defg", "hij", "j", "klmno", "acegi"]
    holds: list[Hold] = []
    for _ in range(300):
        match dice.randrange(5):
            case 0 | 1:
                wanted = dice.sample(directories, dice.randrange(1, 3))
                attempt = asyncio.create_task(shelf.hold(*wanted))
                async with asyncio.timeout(20):
                    while not attempt.done():  # as long as there is no room for it
                        if holds and not shelf.cache._released.is_set():
                            holds.pop().release()
                        await asyncio.sleep(0)
                holds.append(attempt.result())
            case 2 | 3 if holds:
                holds.pop(dice.randrange(len(holds))).release()
            case _:
                shelf.cache.forget([key(dice.choice("abcdefghijklmno"))])
        require_consistent(shelf.cache)
    for hold in holds:
        hold.release()
    require_consistent(shelf.cache)


async def test_releases_and_failures_leave_every_count_at_nothing(shelf: Shelf) -> None:
    with await shelf.hold("abc"), await shelf.hold("abc", "cd"):
        shelf.cache.forget([key("c")])
    (await shelf.hold("vwxyz")).release()
    while shelf.cache._index.dissolve_oldest():
        require_consistent(shelf.cache)
    assert (shelf.cache._index.pinned_bytes, shelf.cache._index._idle_names, shelf.cache._index.bundles) == (0, 0, {})
    assert set(shelf.cache._index.known) == set(shelf.cache._index._unpinned)
    assert all(file.pins == 0 for file in shelf.cache._index.known.values())
    assert not shelf.cache._holds
