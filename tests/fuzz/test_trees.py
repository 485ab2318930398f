"""Directories and Trees of people who mean no good, also from a store that gives other bytes than the digest names."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterable, Sequence
from typing import Protocol

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cas.complete import missing_of
from cas.digest import EMPTY, Digest, DigestFunction
from cas.errors import InputsMissing, MalformedRequest
from cas.memory import MemoryStore
from cas.store import BlobStore
from cas.tree import MAX_DEPTH, load_tree, parse_directory
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.inputs import InputRoots
from rexec.scheduler.settings import SchedulerSettings
from tests.fuzz.hostile import TEXTS, examples, guarded, messages
from tests.scheduler.world import HandClock


class Liar(MemoryStore):
    """A store that gives whatever it was told for a digest: what checked stores cannot be made to do."""

    def __init__(self) -> None:
        super().__init__()
        self.lies: dict[Digest, bytes] = {}

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        return {digest for digest in digests if digest not in self.lies} - {EMPTY[DigestFunction.SHA256]}

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        return {digest: self.lies[digest] for digest in digests if digest in self.lies}

    def add(self, number: int, directory: re_pb2.Directory) -> Digest:
        digest = name_of(number)
        self.lies[digest] = directory.SerializeToString()
        return digest


def name_of(number: int) -> Digest:
    return Digest(f"{number:064x}", 100)


class Reader(Protocol):
    async def __call__(self, store: BlobStore, root: Digest) -> object: ...


async def required(store: BlobStore, root: Digest) -> None:
    inputs = InputRoots(SchedulerSettings(), HandClock())
    await inputs.require("", store, root)
    await inputs.require_directory(store, root, ["a", "a", "b"])


async def completed(store: BlobStore, root: Digest) -> object:
    output = re_pb2.OutputDirectory(path="out", root_directory_digest=root.to_proto())
    return await missing_of(re_pb2.ActionResult(output_directories=[output]), store, root.function)


READERS = pytest.mark.parametrize("read", [load_tree, required, completed])


def directory(*children: int) -> re_pb2.Directory:
    """A directory that holds these, under the names a, b, ..."""
    return re_pb2.Directory(
        directories=[
            re_pb2.DirectoryNode(name=chr(ord("a") + place), digest=name_of(child).to_proto())
            for place, child in enumerate(children)
        ]
    )


def attempt(read: Reader, store: BlobStore, root: Digest) -> object:
    """What comes of it, a refusal included. Anything else that is raised, or a hang, fails the test."""
    with guarded():
        try:
            return asyncio.run(read(store, root))
        except (MalformedRequest, InputsMissing) as failure:
            return failure


@READERS
@given(edges=st.lists(st.lists(st.integers(0, 12), max_size=5, unique=True), min_size=1, max_size=12))
@example(edges=[[0]])
@example(edges=[[1], [0]])
@example(edges=[[1, 2], [2], [1]])
@example(edges=[[1, 2, 3], [3], [1, 3], []])
@examples(40)
def test_a_graph_of_any_shape_is_a_tree_or_refused(read: Reader, edges: list[list[int]]) -> None:
    store = Liar()
    for number, children in enumerate(edges):
        store.add(number, directory(*children))
    outcome = attempt(read, store, name_of(0))
    if _has_cycle(edges) and read is not completed and not _reaches_missing(edges):
        assert isinstance(outcome, MalformedRequest)


def _reachable(edges: list[list[int]]) -> set[int]:
    seen, todo = {0}, [0]
    while todo:
        place = todo.pop()
        for child in edges[place] if place < len(edges) else ():
            if child not in seen:
                seen.add(child)
                todo.append(child)
    return seen


def _reaches_missing(edges: list[list[int]]) -> bool:
    return any(number >= len(edges) for number in _reachable(edges))


def _has_cycle(edges: list[list[int]]) -> bool:
    left = {
        number: {child for child in edges[number] if child < len(edges)}
        for number in _reachable(edges)
        if number < len(edges)
    }
    while left:
        leaves = [number for number, children in left.items() if not children & left.keys()]
        if not leaves:
            return True
        for leaf in leaves:
            del left[leaf]
    return False


@READERS
def test_a_billion_laughs_are_refused_at_once(read: Reader) -> None:
    store = Liar()
    for level in range(60):
        store.add(level, directory(level + 1, level + 1))
    store.add(60, re_pb2.Directory())
    outcome = attempt(read, store, name_of(0))
    assert isinstance(outcome, MalformedRequest) or outcome == {name_of(0)}


@READERS
@pytest.mark.parametrize("depth", [MAX_DEPTH + 2, 10_000])
def test_a_tree_too_deep_is_refused_at_once(read: Reader, depth: int) -> None:
    store = Liar()
    for level in range(depth):
        store.add(level, directory(level + 1))
    store.add(depth, re_pb2.Directory())
    outcome = attempt(read, store, name_of(0))
    assert isinstance(outcome, MalformedRequest) or outcome == {name_of(0)}


@given(st.one_of(st.binary(max_size=200), messages(re_pb2.Directory).map(lambda message: message.SerializeToString())))
@examples(200)
def test_any_bytes_are_a_directory_that_can_be_laid_out_or_refused(data: bytes) -> None:
    try:
        parsed = parse_directory(data, Digest.of(data))
    except MalformedRequest:
        return
    names = [
        node.name
        for nodes in (parsed.message.files, parsed.message.directories, parsed.message.symlinks)
        for node in nodes
    ]
    assert len(set(names)) == len(names)
    assert not [name for name in names if not name or name in (".", "..") or "/" in name or "\0" in name]
    assert all(len(name.encode()) <= 255 for name in names)


@given(name=TEXTS, kind=st.sampled_from(["files", "directories", "symlinks"]), below=st.booleans())
@examples(100)
def test_a_tree_whose_names_lead_elsewhere_is_no_output(name: str, kind: str, below: bool) -> None:
    held = re_pb2.Directory()
    node = getattr(held, kind).add(name=name)
    if kind == "symlinks":
        node.target = "x"
    else:
        node.digest.CopyFrom(Digest.of(b"x").to_proto())
    tree = re_pb2.Tree(children=[held]) if below else re_pb2.Tree(root=held)
    data = tree.SerializeToString()
    digest = Digest.of(data)
    result = re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(path="o", tree_digest=digest.to_proto())])

    async def missing() -> set[Digest]:
        store = MemoryStore()
        await store.write_many([(digest, data), (Digest.of(b"x"), b"x")])
        return await missing_of(result, store, DigestFunction.SHA256)

    possible = name not in ("", ".", "..") and not {"/", "\0"} & set(name) and len(name.encode()) <= 255
    assert asyncio.run(missing()) == (set() if possible else {digest})


@pytest.mark.parametrize("nodes", [b"\x0a\x00", b"\x12\x00", b"\x1a\x00"], ids=["files", "directories", "symlinks"])
def test_nodes_without_anything_in_them_are_not_looked_at_one_by_one(nodes: bytes) -> None:
    data = nodes * 1_000_001
    tracemalloc.start()
    try:
        with pytest.raises(MalformedRequest, match="more than 1000000 files"):
            parse_directory(data, Digest("0" * 64, len(data)))
        _now, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000  # of Python's; the message itself is not counted
