"""Directory trees: what is refused, what is read, and in how many round trips."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cas.compose import Verified
from cas.digest import EMPTY, Digest
from cas.errors import MalformedRequest
from cas.hashing import DigestFunction
from cas.memory import MemoryStore
from cas.store import SMALL_BLOB_BYTES
from cas.tree import (
    MAX_DEPTH,
    MAX_DIRECTORY_BYTES,
    MAX_TREE_BYTES,
    DirectoryCache,
    load_tree,
    parse_directory,
    read_directories,
)
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

FILE = Digest.of(b"content")


def file(name: str, digest: Digest = FILE) -> re_pb2.FileNode:
    return re_pb2.FileNode(name=name, digest=digest.to_proto())


def child(name: str, digest: Digest = FILE) -> re_pb2.DirectoryNode:
    return re_pb2.DirectoryNode(name=name, digest=digest.to_proto())


def link(name: str, target: str = "there") -> re_pb2.SymlinkNode:
    return re_pb2.SymlinkNode(name=name, target=target)


def parse(message: re_pb2.Directory) -> object:
    data = message.SerializeToString()
    return parse_directory(data, Digest.of(data))


class Counting(MemoryStore):
    """A store that counts the round trips of small blobs."""

    reads = 0

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        self.reads += 1
        return await super().read_many(digests)

    async def add(self, message: re_pb2.Directory, function: DigestFunction = DigestFunction.SHA256) -> Digest:
        data = message.SerializeToString()
        digest = Digest.of(data, function)
        assert await self.write_many([(digest, data)]) == {}
        return digest


@pytest.fixture
def store() -> Counting:
    return Counting()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        *[
            (re_pb2.Directory(**{kind: [make(name)]}), "which no file can have")  # type: ignore[arg-type]
            for kind, make in (("files", file), ("directories", child), ("symlinks", link))
            for name in ("", ".", "..", "/", "a/b", "/etc", "../x", "a/", "a\0b", "\0")
        ],
        (re_pb2.Directory(files=[file("a" * 256)]), "256 bytes"),
        (re_pb2.Directory(files=[file("ä" * 128)]), "256 bytes"),
        (re_pb2.Directory(files=[file("a"), file("a")]), "'a' twice"),
        (re_pb2.Directory(files=[file("a")], directories=[child("a")]), "'a' twice"),
        (re_pb2.Directory(files=[file("a")], symlinks=[link("a")]), "'a' twice"),
        (re_pb2.Directory(directories=[child("b"), child("a"), child("b")]), "'b' twice"),
        (re_pb2.Directory(symlinks=[link("a"), link("a", "elsewhere")]), "'a' twice"),
        (re_pb2.Directory(symlinks=[link("a", "")]), "symlink 'a'"),
        (re_pb2.Directory(symlinks=[link("a", "b\0c")]), "symlink 'a'"),
        (re_pb2.Directory(files=[re_pb2.FileNode(name="a")]), "files[0]: digest hash ''"),
        (re_pb2.Directory(directories=[re_pb2.DirectoryNode(name="a")]), "directories[0]: digest hash ''"),
        (re_pb2.Directory(files=[file("a", Digest("A" * 64, 1))]), "lower-case"),
        (re_pb2.Directory(files=[file("a", Digest("a" * 40, 1))]), "SHA256 gives 64"),
        (re_pb2.Directory(directories=[child("a", Digest("a" * 64, -1))]), "size -1"),
        (re_pb2.Directory(files=[file("a", Digest("../../../etc/passwd", 1))]), "characters"),
    ],
)
def test_a_directory_that_could_not_or_must_not_be_laid_out_is_refused(message: re_pb2.Directory, said: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        parse(message)
    assert said in str(refused.value)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05abc", b"\x0a\x04\x0a\x02\xff\xfe", b"plain text, no message"])
def test_bytes_that_are_no_directory_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedRequest, match="is not a Directory message"):
        parse_directory(data, Digest.of(data))


def test_odd_but_possible_names_order_and_targets_are_accepted() -> None:
    message = re_pb2.Directory(
        files=[file("z"), file("..."), file(" "), file("a\nb"), file("-rf"), file("ä" * 127), file("a" * 255)],
        directories=[child(".hidden")],
        symlinks=[link("up", "../../.."), link("absolute", "/usr/bin"), link("dangling", "nowhere")],
    )
    data = message.SerializeToString()
    directory = parse_directory(data, Digest.of(data))
    assert directory.entries == 11
    assert next((node.name, digest) for node, digest in directory.files()) == ("z", FILE)
    assert [(node.name, digest) for node, digest in directory.directories()] == [(".hidden", FILE)]
    assert [node.target for node in directory.symlinks()] == ["../../..", "/usr/bin", "nowhere"]


def test_digests_inside_are_of_the_function_that_names_the_directory() -> None:
    data = re_pb2.Directory(files=[file("a", Digest.of(b"x", DigestFunction.BLAKE3))]).SerializeToString()
    directory = parse_directory(data, Digest.of(data, DigestFunction.BLAKE3))
    assert directory.file_digests == (Digest.of(b"x", DigestFunction.BLAKE3),)


async def test_a_tree_is_read_with_one_round_trip_for_each_level(store: Counting) -> None:
    leaves = [await store.add(re_pb2.Directory(files=[file(f"leaf{n}", Digest.of(b"%d" % n))])) for n in range(20)]
    middle = await store.add(re_pb2.Directory(directories=[child(f"d{n}", d) for n, d in enumerate(leaves)]))
    root = await store.add(re_pb2.Directory(files=[file("f")], directories=[child("m", middle)], symlinks=[link("s")]))
    tree = await load_tree(store, root)
    assert store.reads == 3
    assert list(tree.directories) == [root, middle, *leaves]
    assert tree.missing == frozenset()
    assert tree.file_digests() == {FILE, *(Digest.of(b"%d" % n) for n in range(20))}
    assert tree.blobs() == tree.file_digests() | {root, middle, *leaves}
    assert tree.entries == 3 + 20 + 20


async def test_a_large_tree_lets_others_run_while_it_is_parsed(store: Counting) -> None:
    many = [await store.add(re_pb2.Directory(files=[file(f"{n}-{m:0200}") for m in range(300)])) for n in range(20)]
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    found, missing = await read_directories(store, many)
    task.cancel()
    assert (list(found), missing) == (many, set())
    assert turns > 1


async def test_a_directory_reached_by_several_paths_is_read_once_and_counted_each_time(store: Counting) -> None:
    shared = await store.add(re_pb2.Directory(files=[file("a"), file("b")]))
    deeper = await store.add(re_pb2.Directory(directories=[child("shared", shared)]))
    root = await store.add(re_pb2.Directory(directories=[child("x", shared), child("y", shared), child("z", deeper)]))
    tree = await load_tree(store, root)
    assert set(tree.directories) == {root, shared, deeper}
    assert tree.entries == 3 + 2 + 2 + 1 + 2


async def test_missing_directories_are_all_named_and_what_is_there_is_read(store: Counting) -> None:
    there = await store.add(re_pb2.Directory(files=[file("a")]))
    lost = [Digest.of(b"lost 1"), Digest.of(b"lost 2")]
    above = await store.add(re_pb2.Directory(directories=[child("lost", lost[1])]))
    root = await store.add(
        re_pb2.Directory(directories=[child("l", lost[0]), child("t", there), child("u", above), child("v", lost[0])])
    )
    tree = await load_tree(store, root)
    assert tree.missing == frozenset(lost)
    assert set(tree.directories) == {root, there, above}
    assert tree.blobs() == {root, there, above, *lost, FILE}


async def test_a_missing_root_is_a_tree_of_which_all_is_missing(store: Counting) -> None:
    root = Digest.of(b"never stored")
    tree = await load_tree(store, root)
    assert (tree.directories, tree.missing, tree.entries) == ({}, frozenset({root}), 0)


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_the_empty_directory_needs_no_blob(store: Counting, function: DigestFunction) -> None:
    """Behaviour 39."""
    root = await store.add(re_pb2.Directory(directories=[child("e", EMPTY[function])]), function)
    tree = await load_tree(store, root)
    assert tree.missing == frozenset()
    assert tree.directories[EMPTY[function]].entries == 0


async def test_a_directory_past_the_small_blobs_takes_the_streaming_road(store: Counting) -> None:
    names = [f"{n:0250}" for n in range(SMALL_BLOB_BYTES // 300)]
    large = await store.add(re_pb2.Directory(files=[file(name) for name in names]))
    assert large.size_bytes > SMALL_BLOB_BYTES
    root = await store.add(re_pb2.Directory(directories=[child("large", large)]))
    tree = await load_tree(store, root)
    assert store.reads == 1
    assert tree.entries == 1 + len(names)


async def test_a_large_directory_can_be_missing_too(store: Counting) -> None:
    lost = Digest("a" * 64, SMALL_BLOB_BYTES + 1)
    assert await read_directories(store, [lost]) == ({}, {lost})


async def test_a_directory_that_claims_to_be_huge_is_refused_unread(store: Counting) -> None:
    with pytest.raises(MalformedRequest, match="too large"):
        await load_tree(store, Digest("a" * 64, MAX_DIRECTORY_BYTES + 1))
    assert store.reads == 0


async def test_a_tree_whose_directories_claim_to_be_huge_together_is_refused_unread(store: Counting) -> None:
    many = MAX_TREE_BYTES // MAX_DIRECTORY_BYTES + 1
    children = [child(f"c{n}", Digest(f"{n:064x}", MAX_DIRECTORY_BYTES)) for n in range(many)]
    root = await store.add(re_pb2.Directory(directories=children))
    with pytest.raises(MalformedRequest, match=f"more than {MAX_TREE_BYTES} bytes"):
        await load_tree(store, root)
    assert store.reads == 1


async def test_a_few_directories_that_unfold_into_billions_of_files_are_refused(store: Counting) -> None:
    below = await store.add(re_pb2.Directory(files=[file("f")]))
    for _ in range(64):
        below = await store.add(re_pb2.Directory(directories=[child("x", below), child("y", below)]))
    with pytest.raises(MalformedRequest, match="more than 1000000 files"):
        await load_tree(store, below)


async def chain_of(store: Counting, depth: int) -> Digest:
    """A directory with `depth` others below each other in it."""
    below = await store.add(re_pb2.Directory())
    for _ in range(depth):
        below = await store.add(re_pb2.Directory(directories=[child("d", below)]))
    return below


async def test_a_tree_of_the_greatest_depth_is_read(store: Counting) -> None:
    tree = await load_tree(store, await chain_of(store, MAX_DEPTH))
    assert tree.entries == MAX_DEPTH


async def test_a_deeper_tree_is_refused(store: Counting) -> None:
    root = await chain_of(store, MAX_DEPTH + 1)
    with pytest.raises(MalformedRequest, match=f"more than {MAX_DEPTH} directories deep"):
        await load_tree(store, root)


async def test_a_tree_that_is_deep_only_by_a_detour_is_refused(store: Counting) -> None:
    below = await store.add(re_pb2.Directory())
    shortcuts = []
    for _ in range(MAX_DEPTH + 1):
        below = await store.add(re_pb2.Directory(directories=[child("d", below)]))
        shortcuts.append(below)
    root = await store.add(re_pb2.Directory(directories=[child(f"s{n}", d) for n, d in enumerate(shortcuts)]))
    with pytest.raises(MalformedRequest, match=f"more than {MAX_DEPTH} directories deep"):
        await load_tree(store, root)


async def test_one_wrong_directory_far_down_spoils_the_tree(store: Counting) -> None:
    wrong = await store.add(re_pb2.Directory(files=[file("../escape")]))
    root = await store.add(re_pb2.Directory(directories=[child("d", wrong)]))
    with pytest.raises(MalformedRequest, match="escape"):
        await load_tree(store, root)


async def test_what_the_cache_has_is_not_read_again(store: Counting) -> None:
    cache = DirectoryCache()
    first = await store.add(re_pb2.Directory(files=[file("a")]))
    root = await store.add(re_pb2.Directory(directories=[child("first", first)]))
    once = await load_tree(store, root, cache)
    reads = store.reads
    assert (await load_tree(store, root, cache)) == once
    assert store.reads == reads == 2


async def test_the_cache_forgets_what_was_not_used_for_longest(store: Counting) -> None:
    digests = [await store.add(re_pb2.Directory(files=[file(f"name{n}")])) for n in range(4)]
    size_bytes = digests[0].size_bytes
    cache = DirectoryCache(max_bytes=3 * size_bytes)
    await read_directories(store, digests[:3], cache)
    assert cache.get(digests[0]) is not None
    await read_directories(store, [digests[3]], cache)
    assert [cache.get(digest) is not None for digest in digests] == [True, False, True, True]
    assert len(cache) == 3


async def test_a_directory_larger_than_the_cache_pushes_nothing_out(store: Counting) -> None:
    small = await store.add(re_pb2.Directory(files=[file("a")]))
    large = await store.add(re_pb2.Directory(files=[file(f"name{n}") for n in range(10)]))
    cache = DirectoryCache(max_bytes=small.size_bytes)
    await read_directories(store, [small, large], cache)
    assert cache.get(small) is not None
    assert cache.get(large) is None


async def test_unknown_node_properties_are_kept(store: Counting) -> None:
    """Clients hash their directories; a property that we know nothing of is still part of them."""
    node = file("a")
    node.node_properties.properties.add(name="SubtreeReadOnly", value="true")
    data = re_pb2.Directory(files=[node]).SerializeToString() + b"\xfa\x3f\x02hi"  # field 1023, unknown
    directory = parse_directory(data, Digest.of(data))
    assert directory.message.SerializeToString() == data
    assert await Verified(store).write_many([(directory.digest, data)]) == {}
