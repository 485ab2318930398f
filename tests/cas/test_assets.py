"""Assets remembered: keys, bounds, expiry, restarts, damage; and whether their content is still there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from cas.assets import Asset, AssetNotFound, Kind, Presence, asset_key
from cas.assets_disk import DiskAssets
from cas.bounded_table import ENTRY_BYTES
from cas.digest import Digest
from cas.errors import MalformedRequest, StoreFull, Unavailable
from cas.file_lock import DirectoryUnusable
from cas.hashing import DigestFunction
from cas.memory import MemoryStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

HOUR = 3600.0


def key(name: str) -> bytes:
    return asset_key("main", Kind.BLOB, f"urn:{name}", {})


def asset(name: str = "content", expires_at: float | None = None, references: int = 0) -> Asset:
    blobs = tuple(Digest.of(f"{name} {number}".encode()) for number in range(references))
    return Asset(Digest.of(name.encode(), DigestFunction.BLAKE3), 5.0, expires_at, blobs)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["disk", "memory"])
def assets(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[DiskAssets]:
    path = tmp_path / "assets.sqlite3" if request.param == "disk" else None
    with DiskAssets(path, max_entries=3, max_bytes=100_000, clock=clock) as opened:
        yield opened


async def known(assets: DiskAssets, names: str) -> str:
    found = ""
    for name in names:
        try:
            await assets.get(key(name))
        except AssetNotFound:
            continue
        found += name
    return found


async def test_an_asset_is_found_under_each_of_its_keys(assets: DiskAssets) -> None:
    await assets.put([key("a"), key("b"), key("a")], asset(references=2))
    assert await assets.get(key("a")) == await assets.get(key("b")) == asset(references=2)
    assert len(assets) == 2
    with pytest.raises(AssetNotFound):
        await assets.get(key("c"))


async def test_a_second_push_takes_the_place_of_the_first(assets: DiskAssets) -> None:
    await assets.put([key("a")], asset("one"))
    await assets.put([key("a")], asset("two"))
    assert await assets.get(key("a")) == asset("two")
    assert len(assets) == 1


async def test_an_asset_is_not_found_from_its_expiry_on(assets: DiskAssets, clock: Clock) -> None:
    await assets.put([key("a")], asset(expires_at=1100.0))
    clock.now = 1099.0
    await assets.get(key("a"))
    clock.now = 1100.0
    with pytest.raises(AssetNotFound, match="expired"):
        await assets.get(key("a"))
    assert len(assets) == 0


async def test_those_asked_for_longest_ago_go_first(assets: DiskAssets, clock: Clock) -> None:
    for name in "abc":
        clock.now += 1
        await assets.put([key(name)], asset(name))
    clock.now += 2 * HOUR
    await assets.get(key("a"))
    await assets.put([key("d")], asset("d"))
    assert await known(assets, "abcd") == "acd"
    assert len(assets) == 3


async def test_the_bytes_are_bounded_too(assets: DiskAssets) -> None:
    await assets.put([key("a")], asset("a", references=300))
    await assets.put([key("b")], asset("b", references=300))
    await assets.put([key("c")], asset("c", references=500))
    assert await known(assets, "abc") == "bc"


async def test_what_can_never_fit_is_refused_and_pushes_nothing_out(assets: DiskAssets) -> None:
    await assets.put([key("a")], asset("a"))
    with pytest.raises(StoreFull):
        await assets.put([key("b")], asset("b", references=2000))
    with pytest.raises(StoreFull):
        await assets.put([key(name) for name in "bcde"], asset("b"))
    assert await known(assets, "abcde") == "a"


async def test_assets_are_there_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "state" / "assets.sqlite3"
    with DiskAssets(path, max_entries=10, max_bytes=100_000, clock=clock) as assets:
        await assets.put([key("a")], asset(references=1))
    with DiskAssets(path, max_entries=10, max_bytes=100_000, clock=clock) as assets:
        assert await assets.get(key("a")) == asset(references=1)
        assert len(assets) == 1
        # The bound counts what was there before.
        assert assets._table.used_bytes > ENTRY_BYTES


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "assets.sqlite3"
    path.write_bytes(content)
    with DiskAssets(path, max_entries=10, max_bytes=100_000) as assets:
        await assets.put([key("a")], asset())
        assert await known(assets, "a") == "a"
    assert (tmp_path / "assets.sqlite3.damaged").read_bytes() == content


async def test_a_file_of_another_layout_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "assets.sqlite3"
    with DiskAssets(path, max_entries=10, max_bytes=100_000) as assets:
        assets._table.database.execute("PRAGMA user_version = 99")
    with DiskAssets(path, max_entries=10, max_bytes=100_000) as assets:
        await assets.put([key("a")], asset())
    assert (tmp_path / "assets.sqlite3.damaged").exists()


async def test_damage_found_on_the_way_starts_a_fresh_file(tmp_path: Path) -> None:
    path = tmp_path / "assets.sqlite3"
    with DiskAssets(path, max_entries=1000, max_bytes=10_000_000) as assets:
        for number in range(200):
            await assets.put([key(str(number))], asset(str(number), references=20))
    content = bytearray(path.read_bytes())
    content[3 * 4096 :] = b"\xa5" * (len(content) - 3 * 4096)
    path.write_bytes(content)
    with DiskAssets(path, max_entries=1000, max_bytes=10_000_000) as assets:
        for number in range(200):
            with pytest.raises(AssetNotFound):
                await assets.get(key(str(number)))
        await assets.put([key("a")], asset())
        assert await known(assets, "a") == "a"
    assert (tmp_path / "assets.sqlite3.damaged").exists()


async def test_an_entry_that_does_not_parse_is_not_found_and_goes(assets: DiskAssets) -> None:
    await assets.put([key("a")], asset())
    assets._table.database.execute("UPDATE assets SET asset = x'c1'")
    assert await known(assets, "a") == ""
    assert len(assets) == 0


async def test_a_full_disk_is_a_full_store(tmp_path: Path) -> None:
    with DiskAssets(tmp_path / "assets.sqlite3", max_entries=1000, max_bytes=1 << 30) as assets:
        await assets.put([key("a")], asset())
        (pages,) = assets._table.database.execute("PRAGMA page_count").fetchone()
        assets._table.database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreFull):
            await assets.put([key("b")], asset("b", references=5000))
        assets._table.database.execute("PRAGMA max_page_count = 1000000")
        assert await known(assets, "ab") == "a"
        assert len(assets) == 1


async def test_a_disk_that_takes_nothing_more_still_gives_what_it_has(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "assets.sqlite3"
    with DiskAssets(path, max_entries=10, max_bytes=100_000, clock=lambda: now[0]) as assets:
        await assets.put([key("a")], asset())
        await assets.put([key("b")], asset("b", expires_at=HOUR))
        assets._table.database.execute("PRAGMA query_only = ON")
        now[0] += 2 * HOUR  # the time of use is due to be renewed
        assert await known(assets, "a") == "a"
        with pytest.raises(AssetNotFound, match="expired"):
            await assets.get(key("b"))
        with pytest.raises(Unavailable, match="assets cannot be used now"):
            await assets.put([key("c")], asset("c"))
        assets._table.database.execute("PRAGMA query_only = OFF")
        assert await known(assets, "abc") == "a"
        assert len(assets) == 1


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DirectoryUnusable, match=r"assets\.sqlite3"),
        DiskAssets(tmp_path / "file" / "assets.sqlite3", max_entries=1, max_bytes=1000),
    ):
        pass


def test_the_order_of_qualifiers_does_not_matter_and_everything_else_does() -> None:
    first = asset_key("main", Kind.BLOB, "urn:a", {"x": "1", "y": "2"})
    assert first == asset_key("main", Kind.BLOB, "urn:a", {"y": "2", "x": "1"})
    others = [
        asset_key("", Kind.BLOB, "urn:a", {"x": "1", "y": "2"}),
        asset_key("main", Kind.DIRECTORY, "urn:a", {"x": "1", "y": "2"}),
        asset_key("main", Kind.BLOB, "urn:b", {"x": "1", "y": "2"}),
        asset_key("main", Kind.BLOB, "urn:a", {"x": "1"}),
        asset_key("main", Kind.BLOB, "urn:a", {"x": "1", "y": "3"}),
        asset_key("main", Kind.BLOB, "urn:a", {"x": "1y2"}),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_headers_are_part_of_the_key_unless_a_checksum_says_what_the_content_is() -> None:
    with_secret = asset_key("main", Kind.BLOB, "urn:a", {"http_header:Authorization": "x"})
    assert with_secret != asset_key("main", Kind.BLOB, "urn:a", {})
    checksum = {"checksum.sri": "sha256-x"}
    assert asset_key("main", Kind.BLOB, "urn:a", {**checksum, "http_header:Authorization": "x"}) == asset_key(
        "main", Kind.BLOB, "urn:a", checksum
    )


async def tree(store: MemoryStore) -> tuple[Digest, dict[str, Digest]]:
    """A root with a file, and a directory with a file in it."""
    blobs = {"file": b"in the root", "inner": b"further down"}
    inner = re_pb2.Directory(files=[re_pb2.FileNode(name="inner", digest=Digest.of(blobs["inner"]).to_proto())])
    blobs["directory"] = inner.SerializeToString()
    root = re_pb2.Directory(
        files=[re_pb2.FileNode(name="file", digest=Digest.of(blobs["file"]).to_proto())],
        directories=[re_pb2.DirectoryNode(name="sub", digest=Digest.of(blobs["directory"]).to_proto())],
    )
    blobs["root"] = root.SerializeToString()
    await store.write_many([(Digest.of(data), data) for data in blobs.values()])
    return Digest.of(blobs["root"]), {name: Digest.of(data) for name, data in blobs.items()}


@pytest.mark.parametrize("gone", ["root", "directory", "file", "inner"])
@pytest.mark.parametrize("referenced", [False, True])
async def test_an_asset_is_gone_with_any_blob_of_its_tree(gone: str, referenced: bool) -> None:
    store = MemoryStore()
    root, digests = await tree(store)
    presence = Presence()
    content = Digest.of(b"content")
    await store.write_many([(content, b"content")])
    kept = Asset(content, 0.0, directories=(root,)) if referenced else Asset(root, 0.0)
    kind = Kind.BLOB if referenced else Kind.DIRECTORY
    await presence.require(kept, kind, store)

    smaller = MemoryStore()
    await smaller.write_many([(digest, data) for digest, data in store.blobs.items() if digest != digests[gone]])

    with pytest.raises(AssetNotFound, match=str(digests[gone])):
        await presence.require(kept, kind, smaller)
    with pytest.raises(AssetNotFound, match=str(digests[gone])):
        await Presence().require(kept, kind, smaller)


async def test_asking_keeps_the_whole_tree_in_the_store() -> None:
    used: set[Digest] = set()

    class Watched(MemoryStore):
        async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
            used.update(digests)
            return set()

    store = Watched()
    root, digests = await tree(store)
    await Presence().require(Asset(root, 0.0), Kind.DIRECTORY, store)
    assert used == set(digests.values())


async def test_a_reference_to_what_is_no_directory_is_gone_too() -> None:
    store = MemoryStore()
    nonsense = Digest.of(b"\xff\xff\xff")
    await store.write_many([(nonsense, b"\xff\xff\xff")])
    with pytest.raises(AssetNotFound, match="no directory"):
        await Presence().require(Asset(nonsense, 0.0, directories=(nonsense,)), Kind.BLOB, store)


async def test_only_references_that_are_whole_are_held() -> None:
    store = MemoryStore()
    root, digests = await tree(store)
    nonsense, away = Digest.of(b"\xff\xff\xff"), Digest.of(b"away")
    await store.write_many([(nonsense, b"\xff\xff\xff")])
    presence = Presence()
    assert await presence.held([away, root, nonsense, root], Kind.DIRECTORY, store) == (root,)
    assert await presence.held([away, root, nonsense, root], Kind.BLOB, store) == (root, nonsense)
    assert await presence.held([], Kind.BLOB, store) == ()
    assert digests["root"] == root


async def test_what_one_asset_refers_to_is_bounded() -> None:
    store = MemoryStore()
    root, _ = await tree(store)
    assert await Presence(max_blobs=4).missing(Asset(root, 0.0), Kind.DIRECTORY, store) == set()
    with pytest.raises(MalformedRequest, match="more than 3 blobs"):
        await Presence(max_blobs=3).missing(Asset(root, 0.0), Kind.DIRECTORY, store)
