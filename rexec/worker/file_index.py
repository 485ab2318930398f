"""Which files the cache has, which of them are in use, and in which order the others go.

A file in a bundle stays, also while nobody holds the bundle (an idle one): what is in use is counted by directory and not by
file. When room is needed, whatever was used longest ago goes first: a file that is in no bundle is deleted, an idle bundle is
dissolved, and then its files are in none, unless they are in another.

Values in, values out: no disk is touched here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from cas.digest import Digest
from rexec.worker.blob_files import FileKey
from rexec.worker.bundle import Bundle, CachedFile

MAX_IDLE_NAMES: Final = 50_000
"""Files in idle bundles, each counted in each: about 10 MB here, and 60 MB of inodes in the kernel if all are watched."""


class FileIndex:
    """The files of one cache. Every file in `known` is whole."""

    def __init__(self, unused: Callable[[CachedFile], None], max_idle_names: int = MAX_IDLE_NAMES) -> None:
        """`unused` is told of files that no bundle has any more, and of those that are dropped."""
        self.known: dict[FileKey, CachedFile] = {}
        self.bundles: dict[Digest, Bundle] = {}
        """Of directories, by their digest. None is broken."""
        self.used_bytes = 0
        self.pinned_bytes = 0
        """Of the used bytes, those of files with pins."""
        self._unused = unused
        self._max_idle_names = max_idle_names
        self._unpinned: OrderedDict[FileKey, CachedFile] = OrderedDict()
        """Oldest first."""
        self._idle: OrderedDict[Digest, Bundle] = OrderedDict()
        """Of the bundles, oldest first."""
        self._idle_names = 0
        self._uses = 0

    def add(self, file: CachedFile) -> None:
        """A file has arrived, with the pins of those who wait for it."""
        self.known[file.key] = file
        self.used_bytes += file.key.digest.size_bytes
        if file.pins:
            self.pinned_bytes += file.key.digest.size_bytes
        else:
            self._rest(file, self._uses)

    def drop(self, file: CachedFile) -> None:
        """A file is deleted. Who holds it keeps his pins, which count no more."""
        file.is_forgotten = True
        del self.known[file.key]
        self.used_bytes -= file.key.digest.size_bytes
        if file.pins:
            self.pinned_bytes -= file.key.digest.size_bytes
        else:
            del self._unpinned[file.key]
        self._unused(file)

    def pin(self, files: Iterable[CachedFile]) -> None:
        """Keep these files; they are known."""
        for file in files:
            if not file.pins:
                del self._unpinned[file.key]
                self.pinned_bytes += file.key.digest.size_bytes
            file.pins += 1

    def unpin(self, files: Iterable[CachedFile], last_use: int | None = None) -> None:
        """Take the pins away; the files were used now or at `last_use`."""
        for file in files:
            file.pins -= 1
            if not file.pins and not file.is_forgotten:
                self.pinned_bytes -= file.key.digest.size_bytes
                self._rest(file, self._uses if last_use is None else last_use)
                self._unused(file)

    def make(self, name: Digest | None, keys: frozenset[FileKey], files: Mapping[FileKey, CachedFile]) -> Bundle:
        """A new bundle of `files`, which are known, held once. Without `name` it goes with its holder."""
        made = Bundle(name, keys, files)
        self.pin(files.values())
        made.holders = 1
        if name is not None:
            self.bundles[name] = made
        return made

    def take(self, bundle: Bundle) -> None:
        """One more holds the bundle, which is one of `bundles`."""
        if not bundle.holders and bundle.name is not None:
            del self._idle[bundle.name]
            self._idle_names -= len(bundle.keys)
        bundle.holders += 1

    def release(self, bundles: Iterable[Bundle]) -> None:
        """One less holds each of these."""
        self._uses += 1
        for bundle in bundles:
            bundle.holders -= 1
            if bundle.holders:
                continue
            bundle.last_use = self._uses
            if bundle.is_broken or bundle.name is None:
                self._dissolve(bundle)
            else:
                self._idle[bundle.name] = bundle
                self._idle_names += len(bundle.keys)
        while self._idle_names > self._max_idle_names:
            self.dissolve_oldest()

    def break_up(self, keys: frozenset[FileKey]) -> None:
        """Let nobody new have the bundles with files that were dropped."""
        for bundle in [bundle for bundle in self.bundles.values() if not keys.isdisjoint(bundle.keys)]:
            bundle.is_broken = True
            if not bundle.holders:
                self._dissolve(bundle)
            elif bundle.name is not None:
                del self.bundles[bundle.name]

    def dissolve_oldest(self) -> bool:
        """Let the files of the idle bundle go that was used longest ago; False if there is none."""
        oldest = next(iter(self._idle.values()), None)
        if oldest is not None:
            self._dissolve(oldest)
        return oldest is not None

    def oldest(self) -> CachedFile | None:
        """The file that should go first; None if all are held."""
        while True:
            file = next(iter(self._unpinned.values()), None)
            bundle = next(iter(self._idle.values()), None)
            if bundle is None or (file is not None and file.last_use < bundle.last_use):
                return file
            self._dissolve(bundle)

    def _dissolve(self, bundle: Bundle) -> None:
        if bundle.name is not None and self._idle.get(bundle.name) is bundle:
            del self._idle[bundle.name], self.bundles[bundle.name]
            self._idle_names -= len(bundle.keys)
        bundle.is_dissolved = True
        self.unpin(bundle.files.values(), bundle.last_use)

    def _rest(self, file: CachedFile, last_use: int) -> None:
        """Put it among those without pins. Their order is that of last use, but that one of an idle bundle, which is rarely
        younger than any of them, goes before them all."""
        file.last_use = last_use
        self._unpinned[file.key] = file
        if last_use < self._uses:
            self._unpinned.move_to_end(file.key, last=False)
