"""Complete: a result counts only while every blob that it refers to exists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from cas.action_cache import ActionKey, Complete, MemoryActionCache, missing_of
from cas.complete import MAX_TREE_BYTES, TreeContents
from cas.digest import EMPTY, Digest, DigestFunction
from cas.errors import ActionResultNotFound, MalformedRequest
from cas.memory import MemoryStore
from cas.store import SMALL_BLOB_BYTES
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

KEY = ActionKey("", Digest.of(b"action"))
SHA256 = DigestFunction.SHA256


class Counted(MemoryStore):
    """A store in memory that tells how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.questions: list[set[Digest]] = []
        self.opened: list[Digest] = []

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        wanted = list(digests)
        self.questions.append(set(wanted))
        return await super().find_missing(wanted)

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.opened.append(digest)
        async with super().open(digest, offset, limit) as pieces:
            yield pieces


def file_node(content: bytes) -> re_pb2.FileNode:
    return re_pb2.FileNode(name=content.decode(), digest=Digest.of(content).to_proto())


async def keep(store: MemoryStore, *contents: bytes) -> Digest:
    """Stores all of `contents`; the digest of the last."""
    await store.write_many([(Digest.of(content), content) for content in contents])
    return Digest.of(contents[-1])


SUB = re_pb2.Directory(files=[file_node(b"deep")])
ROOT = re_pb2.Directory(
    files=[file_node(b"top")],
    directories=[re_pb2.DirectoryNode(name="sub", digest=Digest.of(SUB.SerializeToString()).to_proto())],
)
TREE = re_pb2.Tree(root=ROOT, children=[SUB]).SerializeToString()
RESULT = re_pb2.ActionResult(
    output_files=[re_pb2.OutputFile(path="file", digest=Digest.of(b"file").to_proto())],
    output_directories=[re_pb2.OutputDirectory(path="dir", tree_digest=Digest.of(TREE).to_proto())],
    stdout_digest=Digest.of(b"out").to_proto(),
    stderr_digest=Digest.of(b"err").to_proto(),
)
BLOBS = [b"file", TREE, b"out", b"err", b"top", b"deep"]


async def test_a_result_with_all_its_blobs_is_found_and_they_all_count_as_used() -> None:
    store, inner = Counted(), MemoryActionCache()
    await keep(store, *BLOBS)
    cache = Complete(inner, store)
    await cache.put(KEY, RESULT)

    assert await cache.get(KEY) == RESULT
    assert store.questions == [{Digest.of(content) for content in BLOBS}]


@pytest.mark.parametrize("gone", BLOBS)
async def test_a_result_with_any_blob_gone_is_not_found(gone: bytes) -> None:
    store = MemoryStore()
    await keep(store, *(content for content in BLOBS if content != gone))
    cache = Complete(MemoryActionCache(), store)
    await cache.put(KEY, RESULT)

    with pytest.raises(ActionResultNotFound, match=Digest.of(gone).hash):
        await cache.get(KEY)
    assert await missing_of(RESULT, store, SHA256) == {Digest.of(gone)}

    await keep(store, gone)
    assert await cache.get(KEY) == RESULT


@pytest.mark.parametrize("gone", [ROOT.SerializeToString(), SUB.SerializeToString(), b"top", b"deep"])
async def test_directories_are_followed_as_trees_are(gone: bytes) -> None:
    blobs = [ROOT.SerializeToString(), SUB.SerializeToString(), b"top", b"deep"]
    root_digest = Digest.of(blobs[0])
    result = re_pb2.ActionResult(
        output_directories=[re_pb2.OutputDirectory(root_directory_digest=root_digest.to_proto())]
    )
    store = MemoryStore()
    await keep(store, *(content for content in blobs if content != gone))

    assert Digest.of(gone) in await missing_of(result, store, SHA256)
    await keep(store, gone)
    assert await missing_of(result, store, SHA256) == set()


async def test_both_forms_of_an_output_directory_are_needed_if_both_are_named() -> None:
    result = re_pb2.ActionResult(
        output_directories=[
            re_pb2.OutputDirectory(
                tree_digest=Digest.of(TREE).to_proto(),
                root_directory_digest=Digest.of(ROOT.SerializeToString()).to_proto(),
            )
        ]
    )
    store = MemoryStore()
    await keep(store, TREE, b"top", b"deep")

    assert await missing_of(result, store, SHA256) == {Digest.of(ROOT.SerializeToString())}


async def test_a_tree_is_read_once_and_its_files_are_checked_each_time() -> None:
    store = Counted()
    await keep(store, *BLOBS)
    cache = Complete(MemoryActionCache(), store)
    await cache.put(KEY, RESULT)

    for _ in range(3):
        await cache.get(KEY)

    assert store.opened == [Digest.of(TREE)]
    assert store.questions == [{Digest.of(content) for content in BLOBS}] * 3


BAD_FILES = [re_pb2.FileNode(name="f", digest=re_pb2.Digest(hash=text, size_bytes=size)) for text, size in
             [("zz", 1), ("", 0), ("ab" * 32, -1), ("../" * 21 + "x", 1)]]  # fmt: skip


@pytest.mark.parametrize(
    "tree",
    [
        b"\xff\xff\xff no message",
        *(re_pb2.Tree(root=re_pb2.Directory(files=[bad])).SerializeToString() for bad in BAD_FILES),
        *(re_pb2.Tree(children=[re_pb2.Directory(files=[bad])]).SerializeToString() for bad in BAD_FILES),
    ],
)
async def test_a_malformed_tree_counts_as_missing(tree: bytes) -> None:
    store = MemoryStore()
    digest = await keep(store, tree)
    result = re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(tree_digest=digest.to_proto())])

    assert await missing_of(result, store, SHA256) == {digest}


@pytest.mark.parametrize(
    "directory",
    [b"\xff\xff\xff no message", *(re_pb2.Directory(files=[bad]).SerializeToString() for bad in BAD_FILES)],
)
async def test_a_malformed_directory_counts_as_missing(directory: bytes) -> None:
    store = MemoryStore()
    digest = await keep(store, directory)
    result = re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(root_directory_digest=digest.to_proto())])

    assert await missing_of(result, store, SHA256) == {digest}


async def test_every_file_of_a_tree_of_many_thousands_is_checked() -> None:
    store = MemoryStore()
    files = [
        re_pb2.FileNode(name=str(number), digest=re_pb2.Digest(hash=f"{number:064x}", size_bytes=1))
        for number in range(20_000)
    ]
    tree = re_pb2.Tree(root=re_pb2.Directory(files=files[:5000]), children=[re_pb2.Directory(files=files[5000:])])
    digest = await keep(store, tree.SerializeToString())
    assert digest.size_bytes > SMALL_BLOB_BYTES
    result = re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(tree_digest=digest.to_proto())])

    assert await missing_of(result, store, SHA256) == {Digest(f"{number:064x}", 1) for number in range(20_000)}


async def test_a_tree_that_is_too_large_to_read_counts_as_missing() -> None:
    huge = Digest("ab" * 32, MAX_TREE_BYTES + 1)
    result = re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(tree_digest=huge.to_proto())])

    assert await missing_of(result, MemoryStore(), SHA256) == {huge}


@pytest.mark.parametrize(
    "result",
    [
        re_pb2.ActionResult(output_files=[re_pb2.OutputFile(path="x")]),
        re_pb2.ActionResult(output_files=[re_pb2.OutputFile(digest=re_pb2.Digest(hash="AB" * 32, size_bytes=1))]),
        re_pb2.ActionResult(stdout_digest=re_pb2.Digest(hash="ab" * 32, size_bytes=-1)),
        re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(path="x")]),
        re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(root_directory_digest=re_pb2.Digest(hash="x"))]),
    ],
)
async def test_a_result_that_names_no_digest_is_malformed_and_never_found(result: re_pb2.ActionResult) -> None:
    store = MemoryStore()
    cache = Complete(MemoryActionCache(), store)
    await cache.put(KEY, result)

    with pytest.raises(MalformedRequest):
        await missing_of(result, store, SHA256)
    with pytest.raises(ActionResultNotFound):
        await cache.get(KEY)


async def test_empty_outputs_need_nothing() -> None:
    empty = EMPTY[SHA256].to_proto()
    result = re_pb2.ActionResult(
        output_files=[re_pb2.OutputFile(digest=empty)],
        output_directories=[
            re_pb2.OutputDirectory(tree_digest=empty),
            re_pb2.OutputDirectory(root_directory_digest=empty),
        ],
        stdout_digest=empty,
        stderr_digest=re_pb2.Digest(),
    )

    assert await missing_of(result, MemoryStore(), SHA256) == set()


async def test_results_of_another_digest_function_are_followed_with_it() -> None:
    function = DigestFunction.BLAKE3
    store = MemoryStore()
    tree = re_pb2.Tree(
        root=re_pb2.Directory(files=[re_pb2.FileNode(name="x", digest=Digest.of(b"x", function).to_proto())])
    ).SerializeToString()
    await store.write_many([(Digest.of(tree, function), tree)])
    result = re_pb2.ActionResult(
        output_directories=[re_pb2.OutputDirectory(tree_digest=Digest.of(tree, function).to_proto())]
    )

    assert await missing_of(result, store, function) == {Digest.of(b"x", function)}


def test_what_is_remembered_of_trees_is_bounded() -> None:
    trees = TreeContents(max_digests=10)
    contents = [frozenset(Digest(f"{seed * 100 + number:064x}", 1) for number in range(3)) for seed in range(4)]
    for seed, digests in enumerate(contents):
        trees.add(Digest(f"{seed:064x}", 9), re_pb2.Tree, digests)

    held = [trees.get(Digest(f"{seed:064x}", 9), re_pb2.Tree) for seed in range(4)]
    assert held == [None, None, contents[2], contents[3]]
