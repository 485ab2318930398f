"""Files of the cache that are held together: those of one directory of an input root.

The same headers come with every action of a build. To count each file's holders one by one would cost as much as to look at each
file, so the holders of a bundle are counted, and the bundle counts once for each of its files, also while nobody holds it: an
idle bundle is as good as in use until room is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cas.digest import Digest
from rexec.worker.blob_files import FileKey

NEVER: Final = -1
FRESH: Final = 0


class CachedFile:
    """One file on the disk. The same key has another one once the file was forgotten and fetched again."""

    __slots__ = ("changed_ns", "is_forgotten", "key", "last_use", "pins", "seen", "watch")

    def __init__(self, key: FileKey, pins: int = 0) -> None:
        self.key = key
        self.pins = pins
        """Bundles that it is in, and those who fetch one with it."""
        self.is_forgotten = False
        """It is not in the cache any more; whoever holds it keeps his links."""
        self.last_use = 0
        """When the last pin went, in holds since the agent began."""
        self.watch = NEVER
        """The number of its watch, NEVER if it has none."""
        self.seen = NEVER
        """The round of the guard in which it was found intact and since when every change to it is told."""
        self.changed_ns = FRESH
        """With this change time its bytes are right; FRESH if no action has had it since it was written, NEVER if only reading it
        tells."""


class Bundle:
    """The files of one directory, or (`name` is None) of one hold alone. Its files are always the same objects."""

    __slots__ = ("files", "holders", "is_broken", "is_dissolved", "keys", "last_use", "name", "seen", "size_bytes")

    def __init__(self, name: Digest | None, keys: frozenset[FileKey], files: Mapping[FileKey, CachedFile]) -> None:
        self.name = name
        """The digest of the directory."""
        self.keys = keys
        self.files = files
        self.size_bytes = sum([key.digest.size_bytes for key in keys])
        self.holders = 0
        self.last_use = 0
        """As of a file."""
        self.seen = NEVER
        """As of a file: true of all of them."""
        self.is_broken = False
        """Some file is forgotten, so nobody new may have it."""
        self.is_dissolved = False
        """It does not keep its files any more."""

    def is_like(self, other: Bundle) -> bool:
        """Whether it has the same files, and not only files of the same bytes."""
        return self is other or (
            self.keys == other.keys and all(other.files[key] is file for key, file in self.files.items())
        )
