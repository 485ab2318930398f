"""Fetches under way: shared, bounded, checked, and independent of who asked."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cas.action_cache import MemoryActionCache
from cas.assets_config import AssetSettings
from cas.compose import Verified
from cas.digest import Digest
from cas.errors import Code, QueueFull, StoreFull
from cas.fetch import Fetcher, Wanted
from cas.fetch_failure import FetchFailed
from cas.fetch_qualifiers import Checksum, parse_checksum
from cas.hashing import DigestFunction
from cas.instances import Instance
from cas.memory import MemoryStore
from tests.blobs import MIB, blob, in_chunks


class ScriptedSource:
    """Gives what a test says, when it says so."""

    def __init__(self, content: bytes = b"content") -> None:
        self.content = content
        self.opened: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.encoded_allowed: list[bool] = []

    @asynccontextmanager
    async def open(
        self, text: str, headers: Sequence[tuple[str, str]], *, encoded_allowed: bool
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.opened.append(text)
        self.encoded_allowed.append(encoded_allowed)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        yield in_chunks(self.content, 64 << 10)


class World:
    def __init__(self, directory: Path, max_fetches: int = 3, fetch_seconds: float = 60.0) -> None:
        self.source = ScriptedSource()
        self.memory = MemoryStore()
        self.instance = Instance("main", Verified(self.memory), MemoryActionCache(10))
        self.now = 1000.0
        settings = AssetSettings(fetch=True, max_fetches=max_fetches, fetch_seconds=fetch_seconds)
        self.fetcher = Fetcher(settings, self.source, directory / "spool", clock=lambda: self.now)

    async def fetch(
        self,
        url: str = "https://host.test/a",
        checksum: Checksum | None = None,
        oldest_at: float | None = None,
        function: DigestFunction = DigestFunction.SHA256,
    ) -> Digest:
        wanted = Wanted("main", url, (), checksum, function)
        return (await self.fetcher.fetch(wanted, self.instance, oldest_at)).digest

    async def until_opened(self, times: int) -> None:
        async with asyncio.timeout(10):
            while len(self.source.opened) < times:  # noqa: ASYNC110 - the source is a fake
                await asyncio.sleep(0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def checksum_of(content: bytes, algorithm: str = "sha256") -> Checksum:
    encoded = base64.b64encode(hashlib.new(algorithm, content).digest()).decode()
    return parse_checksum(f"{algorithm}-{encoded}")


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("size_bytes", [0, 100, 3 * MIB])
async def test_content_with_the_right_checksum_is_stored(world: World, algorithm: str, size_bytes: int) -> None:
    digest, world.source.content = blob(size_bytes)
    async with world.fetcher:
        assert await world.fetch(checksum=checksum_of(world.source.content, algorithm)) == digest
    assert not await world.instance.store.find_missing([digest])
    assert world.source.encoded_allowed == [True]


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("size_bytes", [100, 3 * MIB])
async def test_content_with_another_checksum_is_not_stored(world: World, algorithm: str, size_bytes: int) -> None:
    _, world.source.content = blob(size_bytes)
    async with world.fetcher:
        with pytest.raises(FetchFailed, match="another") as caught:
            await world.fetch(checksum=checksum_of(b"expected", algorithm))
    assert caught.value.code is Code.ABORTED
    assert world.memory.blobs == {}


async def test_the_digest_is_of_the_function_asked_for(world: World) -> None:
    async with world.fetcher:
        assert await world.fetch(function=DigestFunction.BLAKE3) == Digest.of(b"content", DigestFunction.BLAKE3)
        assert await world.fetch(function=DigestFunction.GITSHA1) == Digest.of(b"content", DigestFunction.GITSHA1)
    assert world.source.encoded_allowed == [False, False]


async def test_those_who_want_the_same_at_once_share_one_fetch(world: World) -> None:
    world.source.gate.clear()
    async with world.fetcher, asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(world.fetch()) for _ in range(5)]
        other = tasks.create_task(world.fetch("https://host.test/b"))
        await world.until_opened(2)
        world.source.gate.set()
    assert {task.result() for task in [*waiting, other]} == {Digest.of(b"content")}
    assert sorted(world.source.opened) == ["https://host.test/a", "https://host.test/b"]


async def test_a_failure_is_shared_and_then_forgotten(world: World) -> None:
    world.source.failure = FetchFailed(Code.NOT_FOUND, "gone")
    async with world.fetcher:
        for _ in range(2):
            with pytest.raises(FetchFailed, match="gone"):
                await world.fetch()
        world.source.failure = None
        assert await world.fetch() == Digest.of(b"content")
    assert len(world.source.opened) == 3


async def test_a_fetch_older_than_accepted_is_not_joined(world: World) -> None:
    world.source.gate.clear()
    async with world.fetcher, asyncio.TaskGroup() as tasks:
        tasks.create_task(world.fetch())
        await world.until_opened(1)
        tasks.create_task(world.fetch(oldest_at=1000.0))
        world.now = 1001.0
        tasks.create_task(world.fetch(oldest_at=1000.5))
        await world.until_opened(2)
        world.source.gate.set()
    assert len(world.source.opened) == 2


async def test_who_gives_up_leaves_the_fetch_to_the_next(world: World) -> None:
    world.source.gate.clear()
    async with world.fetcher:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await world.fetch()
        async with asyncio.TaskGroup() as tasks:
            again = tasks.create_task(world.fetch())
            await asyncio.sleep(0)
            world.source.gate.set()
    assert again.result() == Digest.of(b"content")
    assert len(world.source.opened) == 1


async def test_one_more_than_allowed_is_told_to_come_back(world: World) -> None:
    world.source.gate.clear()
    async with world.fetcher, asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(world.fetch(f"https://host.test/{number}"))
        await world.until_opened(3)
        with pytest.raises(QueueFull):
            await world.fetch()
        world.source.gate.set()


async def test_a_fetch_that_takes_too_long_ends(tmp_path: Path) -> None:
    world = World(tmp_path, fetch_seconds=0.02)
    world.source.gate.clear()
    async with world.fetcher:
        with pytest.raises(FetchFailed) as caught:
            await world.fetch()
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        assert world.fetcher.limit_seconds(None) == world.fetcher.limit_seconds(5.0) == 0.02
        assert world.fetcher.limit_seconds(0.01) == 0.01


async def test_a_full_store_is_a_failure_of_the_call(world: World) -> None:
    world.source.content = bytes(5000)
    world.instance = Instance("main", Verified(MemoryStore(max_bytes=1000)), MemoryActionCache(10))
    async with world.fetcher:
        with pytest.raises(StoreFull):
            await world.fetch()


async def test_a_fault_in_one_fetch_does_not_end_the_others(world: World) -> None:
    world.source.failure = RuntimeError("a fault of ours")
    async with world.fetcher:
        with pytest.raises(RuntimeError, match="a fault of ours"):
            await world.fetch()
        world.source.failure = None
        assert await world.fetch() == Digest.of(b"content")


async def test_leaving_ends_the_fetches_under_way(world: World) -> None:
    world.source.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        async with world.fetcher:
            waiting = tasks.create_task(_failure_of(world))
            await world.until_opened(1)
        assert (await waiting).code is Code.UNAVAILABLE


async def _failure_of(world: World) -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        await world.fetch()
    return caught.value
