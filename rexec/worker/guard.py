"""Whether the inputs of actions are what they were fetched as: a look at each file once, then at those only that were touched.

A hard link shares its bytes and its mode with the cache. A worker that runs as root, and an action that first changes the mode
of its own file, are not stopped by mode 0444. So no file is taken to be intact after an action without evidence:

- A file without a watch gets one before the first action begins that has it, and only then it is looked at
  (`BlobFiles.is_intact`). A change before the look is seen by it, one after it is told.
- A file with a watch was seen intact in this `round`. Nothing was told since, or it is looked at again. If it may have been
  written to, its bytes are read: `cp -p` gives a file the time of another, and the size may be the same.
- When the kernel drops events, a new round begins: each file is looked at again before the next result is trusted.
- A file that gets no watch is looked at before and after every action.

What is told is mostly harmless: links that come and go, of the rooms that the worker itself makes. It costs a look.

An action's processes are dead before its inputs are looked at, so what they did is told by then. What they left to others that
write later (a descriptor given away) is found before the next action begins.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from rexec.worker.blob_files import BlobFiles
from rexec.worker.bundle import NEVER, Bundle, CachedFile
from rexec.worker.file_watch import OVERFLOWN, FileWatch


class Guard:
    """Of all files of one cache. `open` and `look` block and are called in threads, the rest on the event loop."""

    def __init__(self, files: BlobFiles, watch: FileWatch | None = None) -> None:
        self._files = files
        self._watch = watch or FileWatch()
        self._by_watch: dict[int, CachedFile] = {}
        self._round = 0
        self._found: deque[CachedFile] = deque()
        # One look at a time: what one thread has taken from the kernel another would not hear of.
        self._lock = threading.Lock()

    def open(self) -> bool:
        """Begin, with the directory of the files there; False if each file has to be looked at every time. Blocks."""
        return self._watch.open(self._files.root)

    def look(self, bundles: Iterable[Bundle]) -> None:
        """Find all changes to these files, which are held, and to any other that have been told."""
        with self._lock:
            self._hear()
            for bundle in bundles:
                if bundle.seen != self._round:
                    self._look_at(bundle)

    def found(self) -> list[CachedFile]:
        """The changed files that were not told of yet; each is told once."""
        changed = []
        while self._found:
            changed.append(self._found.popleft())
        return changed

    def let_go(self, file: CachedFile) -> None:
        """Nobody uses the file, or it is not in the cache any more."""
        if file.watch != NEVER:
            watch, file.watch, file.seen = file.watch, NEVER, NEVER
            if self._by_watch.get(watch) is file:
                del self._by_watch[watch]
                self._watch.remove(watch)

    def _hear(self) -> None:
        touched: dict[CachedFile, bool] = {}
        for watch, may_be_written in self._watch.touched():
            if watch == OVERFLOWN:
                self._round += 1
            else:
                file = self._by_watch.get(watch)
                if file is not None:
                    touched[file] = may_be_written or touched.get(file, False)
        for file, may_be_written in touched.items():
            if not self._is_intact(file) or (may_be_written and not self._files.is_right(file.key)):
                self._found.append(file)

    def _look_at(self, bundle: Bundle) -> None:
        is_sure = True
        for file in bundle.files.values():
            if file.seen == self._round or file.is_forgotten:
                continue
            watch = file.watch
            if watch == NEVER:
                watch = self._watch.add(self._files.path(file.key))
                if watch != NEVER:
                    self._by_watch[watch] = file
                    file.watch = watch
            if not self._is_intact(file):
                self._found.append(file)
            elif watch != NEVER:
                file.seen = self._round
            is_sure = is_sure and watch != NEVER
        if is_sure:
            bundle.seen = self._round

    def _is_intact(self, file: CachedFile) -> bool:
        return file.is_forgotten or self._files.is_intact(file.key)
