"""Whether the inputs of actions are what they were fetched as: a look at each file once, then at those only that were touched.

A hard link shares its bytes and its mode with the cache. A worker that runs as root, and an action that first changes the mode
of its own file, are not stopped by mode 0444. `cp -p` gives a file the time of another, and the size may be the same. So no file
is taken to be intact after an action without evidence:

- A file without a watch gets one before the first action begins that has it, and only then it is looked at. A change before the
  look is seen by it, one after it is told.
- A file with a watch was seen intact in this `round`. Nothing was told since, or it is looked at again. One that was written to
  is changed, also if it is right again: another action may have read it meanwhile. One that may have been is read.
- When the kernel drops events, a new round begins: each file is looked at again before the next result is trusted. If writing may
  have been among them, nothing that was told before is relied on.
- A file that gets no watch is looked at before and after every action.

A look compares size, mode and time. Where what was told cannot be relied on, or there was no watch so far, it also compares the
change time with that of the last look, and reads the bytes if it is another one; mostly that was a link.

What is told is mostly harmless: links that come and go, of the rooms that the worker itself makes. It costs a look.

An action's processes are dead before its inputs are looked at, so what they did is told by then. What they left to others that
write later (a descriptor given away) is found before the next action begins.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from rexec.worker.blob_files import BlobFiles, NotIntact
from rexec.worker.bundle import FRESH, NEVER, Bundle, CachedFile
from rexec.worker.change_time import tells_all
from rexec.worker.file_watch import OVERFLOWN, WRITES_LOST, FileWatch, Touch


class Guard:
    """Of all files of one cache. `open` and `look` block and are called in threads, the rest on the event loop."""

    def __init__(
        self, files: BlobFiles, watch: FileWatch | None = None, wall_clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._files = files
        self._watch = watch or FileWatch()
        self._wall_clock_ns = wall_clock_ns
        self._by_watch: dict[int, CachedFile] = {}
        self._round = 0
        self._lost_round = 0
        """Of files seen in it and later all writing was told."""
        self._found: deque[CachedFile] = deque()
        # One look at a time: what one thread has taken from the kernel another would not hear of.
        self._lock = threading.Lock()

    def open(self) -> bool:
        """Begin, with the directory of the files there; False if each file has to be looked at every time. Blocks."""
        return self._watch.open(self._files.root)

    def look(self, bundles: Iterable[Bundle]) -> None:
        """Find all changes to these files, which are held, and to any other that have been told."""
        with self._lock:
            # From before the first event is taken: what is done to a file between its event and the look at it is no news then.
            looked_ns = self._wall_clock_ns()
            self._hear(looked_ns)
            for bundle in bundles:
                if bundle.seen != self._round:
                    self._look_at(bundle, looked_ns)

    def found(self) -> list[CachedFile]:
        """The changed files that were not told of yet; each is told once."""
        changed = []
        while self._found:
            changed.append(self._found.popleft())
        return changed

    def let_go(self, file: CachedFile) -> None:
        """Nobody uses the file, or it is not in the cache any more. May be called in two threads at once."""
        if file.watch != NEVER:
            watch, file.watch, file.seen = file.watch, NEVER, NEVER
            if self._by_watch.get(watch) is file:
                self._by_watch.pop(watch, None)
                self._watch.remove(watch)

    def _hear(self, looked_ns: int) -> None:
        touched: dict[CachedFile, Touch] = {}
        for watch, touch in self._watch.touched():
            if watch in (OVERFLOWN, WRITES_LOST):
                self._round += 1
                if watch == WRITES_LOST:
                    self._lost_round = self._round
            else:
                file = self._by_watch.get(watch)
                if file is not None:
                    touched[file] = max(touch, touched.get(file, touch))
        for file, touch in touched.items():
            is_told = touch is Touch.ATTRIBUTES and file.seen >= self._lost_round
            if touch is Touch.WRITTEN or not self._is_right(file, looked_ns, is_told=is_told):
                self._found.append(file)

    def _look_at(self, bundle: Bundle, looked_ns: int) -> None:
        is_sure = True
        for file in bundle.files.values():
            if file.seen == self._round or file.is_forgotten:
                continue
            watch, is_told = file.watch, file.seen >= self._lost_round
            if watch == NEVER:
                watch = self._watch.add(self._files.path(file.key))
                if watch != NEVER:
                    self._by_watch[watch] = file
                    file.watch = watch
                    if file.is_forgotten:  # meanwhile, when it had no watch to be taken away
                        self.let_go(file)
                        continue
            if not self._is_right(file, looked_ns, is_told=is_told):
                self._found.append(file)
            elif watch != NEVER:
                file.seen = self._round
            is_sure = is_sure and watch != NEVER
        if is_sure:
            bundle.seen = self._round

    def _is_right(self, file: CachedFile, looked_ns: int, *, is_told: bool) -> bool:
        """Whether it is what it was fetched as. `is_told` if it is known that nobody has written to it since the last look."""
        if file.is_forgotten:
            return True
        try:
            changed_ns = self._files.changed_ns(file.key)
        except NotIntact:
            return False
        if not is_told and file.changed_ns not in (FRESH, changed_ns) and not self._files.is_right(file.key):
            return False
        file.changed_ns = changed_ns if tells_all(changed_ns, looked_ns) else NEVER
        return True
