"""Directory trees: checked Directory messages, and whole input roots read level by level.

A Directory comes from a client and ends as files on a worker, so it is checked once, here, when it is parsed: names that
would leave the directory or collide, digests that are none. What is checked is REAPI's description of Directory, with one
exception: entries out of order are accepted. The order only makes digests canonical; a client that sorts differently hurts
his own cache hits and nothing else, while a refusal would break his build.

A tree is a graph without cycles (a directory would have to hold its own hash), but one directory may be reached by many
paths, so a few small messages can describe more files than any disk holds. `load_tree` counts entries and depth as they
would be laid out and refuses more than MAX_ENTRIES and MAX_DEPTH.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from google.protobuf.message import DecodeError

from cas.digest import EMPTY, Digest, parse_digests
from cas.errors import MalformedRequest
from cas.store import SMALL_BLOB_BYTES, BlobStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

MAX_DEPTH: Final = 1_000
"""Directories below each other. Linux ends a path at 4,096 bytes, so more than 2,048 cannot be laid out at all."""

MAX_ENTRIES: Final = 1_000_000
"""Files, directories and symlinks of one laid-out tree, those reached by several paths counted each time."""

MAX_DIRECTORY_BYTES: Final = 8 << 20
"""One encoded Directory; about 80,000 files. Parsed it may take 60 times as much: a file without name and digest is encoded
in two bytes."""

MAX_TREE_BYTES: Final = 256 << 20
"""All different Directory messages of one tree together, encoded."""

MAX_NAME_BYTES: Final = 255
"""NAME_MAX of every Linux file system: a longer name could not be laid out."""

PARSED_AT_ONCE_BYTES: Final = 256 << 10
"""After so many bytes of directories, about 2,300 files and 5 ms, it is someone else's turn."""


@dataclass(frozen=True, slots=True)
class Directory:
    """A Directory message that has been checked.

    `message` is shared between all who read the tree: never change it. `file_digests` runs beside `message.files` and
    `child_digests` beside `message.directories`, so that no reader has to check a digest again.
    """

    digest: Digest
    message: re_pb2.Directory
    file_digests: tuple[Digest, ...]
    child_digests: tuple[Digest, ...]

    def files(self) -> Iterator[tuple[re_pb2.FileNode, Digest]]:
        """The files with their digests."""
        return zip(self.message.files, self.file_digests, strict=True)

    def directories(self) -> Iterator[tuple[re_pb2.DirectoryNode, Digest]]:
        """The directories in this one with their digests."""
        return zip(self.message.directories, self.child_digests, strict=True)

    def symlinks(self) -> Sequence[re_pb2.SymlinkNode]:
        """The symbolic links."""
        return self.message.symlinks

    @property
    def entries(self) -> int:
        """How many names the directory itself holds."""
        return len(self.file_digests) + len(self.child_digests) + len(self.message.symlinks)


@dataclass(frozen=True, slots=True)
class Tree:
    """An input root, or what of it a store has."""

    root: Digest
    directories: dict[Digest, Directory]
    """The directories that were found, root first, parents before those that only they hold."""
    missing: frozenset[Digest]
    """The directories that the store does not have. What they hold is not known."""
    entries: int
    """Names in the laid-out tree (without what is missing), as MAX_ENTRIES counts them."""

    def file_digests(self) -> set[Digest]:
        """All different files."""
        return set(chain.from_iterable(directory.file_digests for directory in self.directories.values()))

    def blobs(self) -> set[Digest]:
        """All that must be in the store to lay the tree out: every directory, found or missing, and every file."""
        return self.file_digests().union(self.directories, self.missing)


@dataclass(slots=True)
class DirectoryCache:
    """The directories used last, parsed and checked, so that a build's thousandth action parses few of its inputs."""

    max_bytes: int = 64 << 20
    """Sum of the encoded sizes; in memory a parsed Directory is about five times as large."""
    _directories: OrderedDict[Digest, Directory] = field(default_factory=OrderedDict)
    _size_bytes: int = 0

    def get(self, digest: Digest) -> Directory | None:
        """The directory if it is here; it is then the last that will be forgotten."""
        directory = self._directories.get(digest)
        if directory is not None:
            self._directories.move_to_end(digest)
        return directory

    def add(self, directory: Directory) -> None:
        """Keep a directory, and forget those not used for longest once there are more than `max_bytes`."""
        if directory.digest in self._directories or directory.digest.size_bytes > self.max_bytes:
            return
        self._directories[directory.digest] = directory
        self._size_bytes += directory.digest.size_bytes
        while self._size_bytes > self.max_bytes:
            forgotten, _ = self._directories.popitem(last=False)
            self._size_bytes -= forgotten.size_bytes

    def __len__(self) -> int:
        return len(self._directories)


def parse_directory(data: bytes, digest: Digest) -> Directory:
    """The checked Directory that `data`, the blob of `digest`, encodes. Raises MalformedRequest, which says what is wrong.

    The digests inside are of the same function as `digest` (REAPI, ExecuteRequest.digest_function).
    """
    try:
        message = re_pb2.Directory.FromString(data)
    except DecodeError:
        raise MalformedRequest(f"blob {digest} is not a Directory message") from None
    if len(message.files) + len(message.directories) + len(message.symlinks) > MAX_ENTRIES:
        # Empty nodes take two bytes each. No tree may have as many, so none of them has to be looked at.
        raise MalformedRequest(f"directory {digest} has more than {MAX_ENTRIES} files, directories and symlinks")
    check_names(message, digest)
    for symlink in message.symlinks:
        if not symlink.target or "\0" in symlink.target:
            raise MalformedRequest(
                f"symlink {symlink.name!r} in directory {digest} points to {symlink.target[:200]!r}, which is no path"
            )
    function = digest.function
    try:
        file_digests = tuple(parse_digests([node.digest for node in message.files], function, "files"))
        child_digests = tuple(parse_digests([node.digest for node in message.directories], function, "directories"))
    except MalformedRequest as wrong:
        raise MalformedRequest(f"directory {digest}: {wrong}") from None
    return Directory(digest, message, file_digests, child_digests)


_NO_NAMES: Final = frozenset({".", ".."})


def check_names(message: re_pb2.Directory, digest: Digest) -> None:
    """Raises MalformedRequest unless every entry of a directory, which is in the blob of `digest`, has a name of its own that
    a file can have."""
    names = [node.name for node in message.files]
    names += [node.name for node in message.directories]
    names += [node.name for node in message.symlinks]
    for name in names:
        if not name or name in _NO_NAMES or "/" in name or "\0" in name:
            raise MalformedRequest(f"directory {digest} holds an entry named {name[:200]!r}, which no file can have")
        if len(name) > MAX_NAME_BYTES // 4 and len(name.encode()) > MAX_NAME_BYTES:
            raise MalformedRequest(
                f"directory {digest} holds a name of {len(name.encode())} bytes; {MAX_NAME_BYTES} is the most: {name[:200]!r}"
            )
    if len(set(names)) != len(names):
        repeated = next(name for name, times in Counter(names).items() if times > 1)
        raise MalformedRequest(f"directory {digest} holds {repeated[:200]!r} twice")


async def read_directories(
    store: BlobStore, digests: Iterable[Digest], cache: DirectoryCache | None = None
) -> tuple[dict[Digest, Directory], set[Digest]]:
    """The directories among `digests` that the store has, and those that are missing. One round trip for all small ones.

    Raises MalformedRequest for a blob that is no proper Directory, or too large for one. What `cache` has is not looked
    up, so its blobs do not count as used in the store.
    """
    found: dict[Digest, Directory] = {}
    small: list[Digest] = []
    large: list[Digest] = []
    for digest in digests:
        cached = cache.get(digest) if cache is not None else None
        if cached is not None:
            found[digest] = cached
        elif digest.size_bytes == 0 and digest == EMPTY[digest.function]:
            found[digest] = Directory(digest, re_pb2.Directory(), (), ())
        elif digest.size_bytes > MAX_DIRECTORY_BYTES:
            raise MalformedRequest(f"directory {digest} is too large; {MAX_DIRECTORY_BYTES} bytes is the most")
        else:
            (small if digest.size_bytes <= SMALL_BLOB_BYTES else large).append(digest)
    blobs = await store.read_many(small) if small else {}
    parsed_bytes = 0
    for digest in chain(small, large):
        if parsed_bytes > PARSED_AT_ONCE_BYTES:
            await asyncio.sleep(0)
            parsed_bytes = 0
        parsed_bytes += digest.size_bytes
        if digest.size_bytes <= SMALL_BLOB_BYTES:
            data = blobs.get(digest)
        else:
            data = await _read_large(store, digest)
        if data is not None:
            found[digest] = directory = parse_directory(data, digest)
            if cache is not None:
                cache.add(directory)
    return found, {digest for digest in chain(small, large) if digest not in found}


async def _read_large(store: BlobStore, digest: Digest) -> bytes | None:
    """A whole blob by the streaming road, None if it is missing."""
    if await store.find_missing([digest]):
        return None
    async with store.open(digest) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def load_tree(store: BlobStore, root: Digest, cache: DirectoryCache | None = None) -> Tree:
    """The whole tree below `root`, read in as many round trips as it is deep.

    Missing directories, the root's own included, are named in the answer. Raises MalformedRequest for a directory that is
    none and for a tree past the limits above.
    """
    directories: dict[Digest, Directory] = {}
    missing: set[Digest] = set()
    async with aclosing(levels(store, root, cache)) as tree:
        async for level in tree:
            directories.update(level.found)
            missing |= level.missing
    return Tree(root, directories, frozenset(missing), _measure(root, directories))


@dataclass(frozen=True, slots=True)
class Level:
    """The directories first met at one distance from the root, in the order of their parents and then of the message."""

    found: dict[Digest, Directory]
    missing: set[Digest]


async def levels(store: BlobStore, root: Digest, cache: DirectoryCache | None = None) -> AsyncGenerator[Level, None]:
    """The tree below `root` breadth first, each different directory once. Raises as `load_tree`, but counts no entries."""
    seen = {root}
    wanted = [root]
    size_bytes = 0
    for _depth in range(MAX_DEPTH + 1):
        size_bytes += sum([digest.size_bytes for digest in wanted])
        if size_bytes > MAX_TREE_BYTES:
            raise MalformedRequest(f"the directories below {root} have more than {MAX_TREE_BYTES} bytes")
        found, missing = await read_directories(store, wanted, cache)
        ordered = {digest: found[digest] for digest in wanted if digest in found}
        yield Level(ordered, missing)
        wanted = []
        for directory in ordered.values():
            for child in directory.child_digests:
                if child not in seen:
                    seen.add(child)
                    wanted.append(child)
        if not wanted:
            return
    raise MalformedRequest(f"the tree below {root} is more than {MAX_DEPTH} directories deep")


def children_first(root: Digest, directories: Mapping[Digest, Directory]) -> Iterator[Digest]:
    """Those of `directories` that are reached from `root` through each other: each once, after those that it holds.

    Raises MalformedRequest for a directory that holds itself. No digest can do that, but a store without checks may give
    bytes that are not the digest's.
    """
    done: set[Digest] = set()
    waited: set[Digest] = set()
    stack = [root] if root in directories else []
    while stack:
        digest = stack[-1]
        if digest in done:
            stack.pop()
            continue
        ahead = [child for child in directories[digest].child_digests if child in directories and child not in done]
        if ahead:
            # What waits is on top of the children that it waits for, unless one of them holds it.
            if digest in waited:
                raise MalformedRequest(f"directory {digest} holds itself")
            waited.add(digest)
            stack += ahead
            continue
        stack.pop()
        done.add(digest)
        yield digest


def _measure(root: Digest, directories: dict[Digest, Directory]) -> int:
    """The entries of the laid-out tree. Raises MalformedRequest past MAX_ENTRIES or MAX_DEPTH.

    Each different directory is measured once, however often it is reached.
    """
    entries: dict[Digest, int] = {}
    depth: dict[Digest, int] = {}
    for digest in children_first(root, directories):
        directory = directories[digest]
        held = [child for child in directory.child_digests if child in directories]
        entries[digest] = total = directory.entries + sum([entries[child] for child in held])
        depth[digest] = deepest = 1 + max([depth[child] for child in held], default=-1)
        if total > MAX_ENTRIES:
            raise MalformedRequest(f"the tree below {root} has more than {MAX_ENTRIES} files, directories and symlinks")
        if deepest > MAX_DEPTH:
            raise MalformedRequest(f"the tree below {root} is more than {MAX_DEPTH} directories deep")
    return entries.get(root, 0)
