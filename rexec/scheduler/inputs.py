"""Whether everything that an action needs is in the store, asked once for each directory of a build.

Consecutive actions share nearly all of their inputs. A subtree that was found whole is taken to be whole for a while, by
the digest of its Directory, so that the next action costs only the directories that are new on the way to its root. What
is evicted in that time is found by the worker, whose report makes us forget what we believed.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from cas.digest import EMPTY, Digest
from cas.errors import InputsMissing, MalformedRequest
from cas.store import BlobStore
from cas.tree import MAX_DEPTH, MAX_ENTRIES, MAX_TREE_BYTES, Directory, DirectoryCache, children_first, read_directories
from rexec.scheduler.clock import Clock
from rexec.scheduler.settings import SchedulerSettings

MAX_KNOWN = 500_000
"""Directories believed to be whole; about 100 bytes each."""

SLICE = 5_000
"""How many blobs the store is asked for at once: some milliseconds of work."""

MAX_NAMED = 20_000
"""How many missing blobs one error names, so that it fits a message of 4 MiB. A client that uploads them all and tries
again is told of the rest."""

MAX_PARTS = 8
MAX_PARTS_OPENED = 4
MAX_PART_ENTRIES = 200
"""A directory with more names in it is taken as a whole."""
PART_NAME_CHARACTERS = 16
"""Of the hash: two different parts with one name cost a cache miss."""


@dataclass(frozen=True, slots=True)
class _Whole:
    """A subtree that was in the store with everything below it."""

    until: float
    """Monotonic seconds."""
    entries: int
    """Names in the laid-out subtree, those reached by several paths counted each time."""
    depth: int


class InputRoots:
    """Checks input roots of all instances."""

    def __init__(self, settings: SchedulerSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._directories = DirectoryCache()
        self._whole: OrderedDict[tuple[str, Digest], _Whole] = OrderedDict()
        self._times_forgotten = 0

    async def require(self, instance_name: str, store: BlobStore, root: Digest) -> None:
        """Raises InputsMissing, which names every missing blob that can be known to be missing, and MalformedRequest for
        a directory that is none or a tree too large to be laid out."""
        now = self._clock.monotonic()
        times_forgotten = self._times_forgotten
        loaded: dict[Digest, Directory] = {}
        missing: set[Digest] = set()
        # Held here, because others forget while this waits for the store.
        believed: dict[Digest, _Whole] = {}
        wanted = [] if self._known(instance_name, root, now) else [root]
        depth = entries = size_bytes = 0
        while wanted:
            depth += 1
            if depth > MAX_DEPTH:
                raise MalformedRequest(f"the tree below {root} is more than {MAX_DEPTH} directories deep")
            size_bytes += sum([digest.size_bytes for digest in wanted])
            if size_bytes > MAX_TREE_BYTES:
                raise MalformedRequest(f"the directories below {root} have more than {MAX_TREE_BYTES} bytes")
            found, gone = await read_directories(store, wanted, self._directories)
            loaded |= found
            missing |= gone
            if len(loaded) > self._settings.max_input_directories:
                most = self._settings.max_input_directories
                raise MalformedRequest(f"the tree below {root} has more than {most} different directories")
            entries += sum([directory.entries for directory in found.values()])
            if entries > MAX_ENTRIES:
                raise _too_many_entries(root)
            children = dict.fromkeys(chain.from_iterable(directory.child_digests for directory in found.values()))
            wanted = []
            for child in children:
                if child in loaded or child in missing:
                    continue
                whole = self._known(instance_name, child, now)
                if whole is None:
                    wanted.append(child)
                else:
                    believed[child] = whole
        files = chain.from_iterable(directory.file_digests for directory in loaded.values())
        # The directories too: those that came from our own cache may have left the store.
        blobs = list({*loaded, *files} - {EMPTY[root.function]})
        for start in range(0, len(blobs), SLICE):
            missing |= await store.find_missing(blobs[start : start + SLICE])
            await asyncio.sleep(0)  # a store in memory answers without ever letting others run
        if missing:
            raise InputsMissing(heapq.nsmallest(MAX_NAMED, missing, key=lambda digest: digest.hash))
        measured = self._measured(root, loaded, believed, now)
        if times_forgotten == self._times_forgotten:
            self._remember(instance_name, measured)

    async def require_directory(self, store: BlobStore, root: Digest, path: Sequence[str]) -> None:
        """Raises MalformedRequest unless `path`, from the root, names a directory of the input root.

        A symlink on the way is left to the worker, who sees where it leads. The root must have passed `require`.
        """
        digest = root
        for name in path:
            found, gone = await read_directories(store, [digest], self._directories)
            if gone:
                raise InputsMissing(gone)
            directory = found[digest]
            child = next((held for node, held in directory.directories() if node.name == name), None)
            if child is None:
                if any(symlink.name == name for symlink in directory.symlinks()):
                    return
                raise MalformedRequest(
                    f"working_directory {'/'.join(path)[:200]!r} is not a directory of the input root"
                )
            digest = child

    def largest(self, instance_name: str, root: Digest) -> tuple[str, ...]:
        """Names of large parts of a root that has passed `require`: actions that share such a name share much input.

        Beginning with the root, the largest directory is replaced by those inside it, some times over: what actions share is
        rarely the whole. Looks at nothing but what is remembered.
        """
        parts: list[tuple[int, Digest]] = [(0, root)]
        for _ in range(MAX_PARTS_OPENED):
            parts.sort(key=lambda part: -part[0])
            opened = next((part for part in parts if self._opens(part[1])), None)
            if opened is None:
                break
            parts.remove(opened)
            directory = self._directories.get(opened[1])
            for child in directory.child_digests if directory is not None else ():
                whole = self._whole.get((instance_name, child))
                if whole is not None and whole.entries:
                    parts.append((whole.entries, child))
        parts.sort(key=lambda part: -part[0])
        return tuple([digest.hash[:PART_NAME_CHARACTERS] for size, digest in parts[:MAX_PARTS] if size])

    def _opens(self, digest: Digest) -> bool:
        """Whether a directory is rather looked at by its parts."""
        directory = self._directories.get(digest)
        return directory is not None and bool(directory.child_digests) and directory.entries <= MAX_PART_ENTRIES

    def forget(self, instance_name: str) -> None:
        """Believe nothing of an instance any more: something that was there is gone."""
        self._times_forgotten += 1
        for key in [key for key in self._whole if key[0] == instance_name]:
            del self._whole[key]

    def _known(self, instance_name: str, digest: Digest, now: float) -> _Whole | None:
        whole = self._whole.get((instance_name, digest))
        return whole if whole is not None and whole.until > now else None

    def _measured(
        self, root: Digest, loaded: dict[Digest, Directory], believed: dict[Digest, _Whole], now: float
    ) -> dict[Digest, _Whole]:
        """What was found whole, children before their parents. Raises MalformedRequest for a tree past the limits: a few
        directories that hold each other many times can describe more files than any disk has."""
        until = now + self._settings.inputs_known_seconds
        measured: dict[Digest, _Whole] = {}
        for digest in children_first(root, loaded):
            children = loaded[digest].child_digests
            held = [measured.get(child) or believed[child] for child in children]
            entries = loaded[digest].entries + sum([whole.entries for whole in held])
            depth = 1 + max([whole.depth for whole in held], default=0)
            if entries > MAX_ENTRIES:
                raise _too_many_entries(root)
            if depth > MAX_DEPTH:
                raise MalformedRequest(f"the tree below {root} is more than {MAX_DEPTH} directories deep")
            # What was believed already keeps its own end: the parent is not believed for longer than its parts.
            end = min([until, *[whole.until for whole in held]])
            measured[digest] = _Whole(end, entries, depth)
        return measured

    def _remember(self, instance_name: str, measured: dict[Digest, _Whole]) -> None:
        for digest, whole in measured.items():
            self._whole[instance_name, digest] = whole
        while len(self._whole) > MAX_KNOWN:
            self._whole.popitem(last=False)


def _too_many_entries(root: Digest) -> MalformedRequest:
    return MalformedRequest(f"the tree below {root} has more than {MAX_ENTRIES} files, directories and symlinks")
