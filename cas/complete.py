"""Whether everything that an action result refers to is still there.

REAPI (ActionCache.GetActionResult): a client that gets a result may rely on all its blobs, those named inside of Trees
and Directories too, so a result with a blob missing is no result. Asking also lets the store keep the blobs longer.

Trees are read once: the digests in each are kept in memory, bounded by TREE_CACHE_DIGESTS. One that is too large, does
not parse, or names something that is no digest or no file counts as missing: no client could use it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from cas.digest import EMPTY, Digest, DigestFunction
from cas.errors import ActionResultNotFound, BlobNotFound, MalformedRequest
from cas.store import SMALL_BLOB_BYTES, BlobStore
from cas.tree import check_names, load_tree
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

if TYPE_CHECKING:
    from cas.action_cache import ActionCache, ActionKey

MAX_TREE_BYTES: Final = 64 << 20
"""Of one Tree: half a million files. It is parsed in memory, where it takes several times that."""

TREE_CACHE_DIGESTS: Final = 500_000
"""Digests remembered over all Trees, about 0.2 kB each."""


class TreeContents:
    """The digests of the files in each Tree (or Directory, with its subdirectories) seen lately."""

    def __init__(self, max_digests: int = TREE_CACHE_DIGESTS) -> None:
        self._max_digests = max_digests
        self._digests = 0
        self._trees: OrderedDict[tuple[Digest, type], frozenset[Digest]] = OrderedDict()

    def get(self, digest: Digest, kind: type) -> frozenset[Digest] | None:
        contents = self._trees.get((digest, kind))
        if contents is not None:
            self._trees.move_to_end((digest, kind))
        return contents

    def add(self, digest: Digest, kind: type, contents: frozenset[Digest]) -> None:
        if (digest, kind) in self._trees:
            return
        # One more, so that empty trees are bounded too.
        self._digests += len(contents) + 1
        self._trees[digest, kind] = contents
        while self._digests > self._max_digests:
            _, dropped = self._trees.popitem(last=False)
            self._digests -= len(dropped) + 1


class Complete:
    """An action cache that knows only results whose blobs all exist in `store`."""

    def __init__(self, inner: ActionCache, store: BlobStore) -> None:
        self._inner = inner
        self._store = store
        self._trees = TreeContents()

    async def get(self, key: ActionKey) -> re_pb2.ActionResult:
        result = await self._inner.get(key)
        try:
            missing = await missing_of(result, self._store, key.action_digest.function, self._trees)
        except MalformedRequest as reason:
            raise ActionResultNotFound(f"the result of action {key.action_digest} is malformed: {reason}") from reason
        if missing:
            raise ActionResultNotFound(
                f"blob {min(missing, key=str)} of the result of action {key.action_digest} is gone"
            )
        return result

    async def put(self, key: ActionKey, result: re_pb2.ActionResult) -> None:
        await self._inner.put(key, result)


async def missing_of(
    result: re_pb2.ActionResult, store: BlobStore, function: DigestFunction, trees: TreeContents | None = None
) -> set[Digest]:
    """The blobs that `result` refers to, directly or through Trees and Directories, and that `store` lacks.

    Asks for all of them in one find_missing. Raises MalformedRequest if the result itself names something that is no
    digest.
    """
    trees = trees if trees is not None else TreeContents()
    wanted: set[Digest] = set()
    unusable: set[Digest] = set()
    for file in result.output_files:
        wanted.add(Digest.from_proto(file.digest, function))
    for stream in (result.stdout_digest, result.stderr_digest):
        # A client that has no output may leave the digest out or send an empty message.
        if stream.hash:
            wanted.add(Digest.from_proto(stream, function))
    for directory in result.output_directories:
        if directory.tree_digest.hash or not directory.root_directory_digest.hash:
            digest = Digest.from_proto(directory.tree_digest, function)
            contents = await _files_of_tree(digest, store, trees)
            wanted.add(digest)
            if contents is None:
                unusable.add(digest)
            else:
                wanted |= contents
        if directory.root_directory_digest.hash:
            digest = Digest.from_proto(directory.root_directory_digest, function)
            contents = await _blobs_of_directory(digest, store, trees)
            if contents is None:
                unusable.add(digest)
            else:
                wanted |= contents
    wanted.discard(EMPTY[function])
    return unusable | await store.find_missing(wanted)


async def _files_of_tree(digest: Digest, store: BlobStore, trees: TreeContents) -> frozenset[Digest] | None:
    """The digests of all files in the Tree `digest`; None if it is missing or unusable."""
    contents = trees.get(digest, re_pb2.Tree)
    if contents is not None:
        return contents
    try:
        data = await _content(digest, store)
        if len(data) <= SMALL_BLOB_BYTES:
            contents = _files_in(data, digest)
        else:
            # Tens of thousands of files: in a thread, others get their turn meanwhile.
            contents = await asyncio.to_thread(_files_in, data, digest)
    except (BlobNotFound, DecodeError, MalformedRequest):
        return None
    trees.add(digest, re_pb2.Tree, contents)
    return contents


def _files_in(encoded_tree: bytes, tree_digest: Digest) -> frozenset[Digest]:
    """Raises DecodeError, and MalformedRequest for a digest that is none and for a name such as "../x", which a client would
    write outside of its directory."""
    function = tree_digest.function
    tree = re_pb2.Tree.FromString(encoded_tree)
    check_names(tree.root, tree_digest)
    files = {Digest.from_proto(file.digest, function) for file in tree.root.files}
    for directory in tree.children:
        check_names(directory, tree_digest)
        files.update([Digest.from_proto(file.digest, function) for file in directory.files])
    return frozenset(files - {EMPTY[function]})


async def _blobs_of_directory(root: Digest, store: BlobStore, trees: TreeContents) -> frozenset[Digest] | None:
    """The digests of the Directory `root`, the Directories below it, and all their files; None as above."""
    contents = trees.get(root, re_pb2.Directory)
    if contents is not None:
        return contents
    try:
        tree = await load_tree(store, root)
    except MalformedRequest:
        return None
    contents = frozenset(tree.blobs() - {EMPTY[root.function]})
    if not tree.missing:
        trees.add(root, re_pb2.Directory, contents)
    return contents


async def _content(digest: Digest, store: BlobStore) -> bytes:
    """The blob of a Tree. Raises BlobNotFound, also if it is larger than MAX_TREE_BYTES."""
    if digest == EMPTY[digest.function]:
        return b""
    if digest.size_bytes > MAX_TREE_BYTES:
        raise BlobNotFound(digest)
    async with store.open(digest) as pieces:
        return b"".join([piece async for piece in pieces])
