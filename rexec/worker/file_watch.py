"""Being told of changes to files by the kernel (inotify(7)), whichever name they are made through.

A watch belongs to the file, not to a name: a hard link in a room, another that an action made, and an open descriptor all lead
to it. What is told is that the file was written to, that a descriptor for writing was closed, and that its mode, times or links
were changed. A write is told before the system call returns. One through a memory map is told when the mapping ends, with its
process at the latest, because the mapping keeps the descriptor that it was made from.

The kernel bounds the watches of a user, and they are other programs' too: half of them is the most that is taken here. What is
refused is no failure; the caller looks at such files himself.
"""

from __future__ import annotations

import ctypes
import os
import struct
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_MODIFY: Final = 0x2
_ATTRIBUTES: Final = 0x4
_CLOSE_WRITE: Final = 0x8
_OVERFLOW: Final = 0x4000
_IGNORED: Final = 0x8000
_DO_NOT_FOLLOW: Final = 0x2000000
_WANTED: Final = _MODIFY | _ATTRIBUTES | _CLOSE_WRITE | _DO_NOT_FOLLOW

_EVENT: Final = struct.Struct("iIII")
_READ_BYTES: Final = 64 << 10
"""4,096 events of files, which have no name in them."""

# With the interpreter's lock held: each call takes a few microseconds.
_libc = ctypes.PyDLL(None, use_errno=True)

OVERFLOWN: Final = -1
"""Told instead of a watch: the kernel has dropped events."""


class FileWatch:
    """Watches on files. Not for several threads at once, but for `remove`."""

    def __init__(self, max_watches: int | None = None) -> None:
        self._fd = -1
        self._max_watches = _share() if max_watches is None else max_watches
        self._watches: set[int] = set()

    def open(self, directory: str) -> bool:
        """Begin; False, and no watch is ever given, if changes to files in `directory` are not told here."""
        fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            return False
        # Closed with the object: nothing else has to know that there is something to close.
        closed = weakref.finalize(self, os.close, fd)
        self._fd = fd
        if not self._is_told(f"{directory}/watched"):
            closed()
            self._fd = -1
        return self._fd >= 0

    def add(self, path: str) -> int:
        """Watch a file from now on. The number of the watch, which no other file gets later; -1 if it cannot be."""
        if self._fd < 0 or len(self._watches) >= self._max_watches:
            return -1
        watch = int(_libc.inotify_add_watch(self._fd, os.fsencode(path), _WANTED))
        if watch >= 0:
            self._watches.add(watch)
        return watch

    def remove(self, watch: int) -> None:
        """Do not watch any more; it does not matter if the file is gone."""
        if watch in self._watches:
            self._watches.remove(watch)
            _libc.inotify_rm_watch(self._fd, watch)

    def touched(self) -> Iterator[tuple[int, bool]]:
        """The watches of what was touched since the last call, maybe several times, each with whether it may have been written
        to; and OVERFLOWN."""
        if self._fd < 0:
            return
        while True:
            try:
                told = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return
            for watch, mask, _cookie, length in _EVENT.iter_unpack(told):
                if length:  # names come with watches on directories, of which there are none
                    raise AssertionError(f"inotify told {length} bytes of a name, expected none")
                if mask & _OVERFLOW:
                    yield OVERFLOWN, True
                elif not mask & _IGNORED:  # which is the end of a watch
                    yield watch, bool(mask & (_MODIFY | _CLOSE_WRITE))
            if len(told) < _READ_BYTES - _EVENT.size:
                return

    def _is_told(self, path: str) -> bool:
        """Try it: some file systems and sandboxes give watches that tell nothing."""
        link = f"{path}_too"
        try:
            try:
                Path(path).write_bytes(b"")
                watch = self.add(path)
                os.link(path, link)
                seen = [list(self.touched()) == [(watch, False)]]
                Path(link).write_bytes(b"x")
                seen.append((watch, True) in list(self.touched()))
                os.chmod(link, 0o444)
                seen.append(list(self.touched()) == [(watch, False)])
                self.remove(watch)
            finally:
                for name in (path, link):
                    with suppress(FileNotFoundError):
                        os.unlink(name)
        except OSError:
            return False
        return watch >= 0 and all(seen)


def _share() -> int:
    """Half of what the system lets this user have; none if it does not say."""
    try:
        return int(Path("/proc/sys/fs/inotify/max_user_watches").read_text()) // 2
    except (OSError, ValueError):
        return 0
