"""Being told of changes to files by the kernel (inotify(7)), whichever name they are made through.

A watch belongs to the file, not to a name: a hard link in a room, another that an action made, and an open descriptor all lead
to it. What is told is that the file was written to, that a descriptor for writing was closed, and that its mode, times or links
were changed. A write is told before the system call returns. One through a memory map is told when the mapping ends, with its
process at the latest, because the mapping keeps the descriptor that it was made from.

Writing is told through one queue and attributes through another. The worker's own links are attributes, tens of thousands in
a second, and may overflow their queue; few programs write to inputs, so whether one was written to is practically always known.

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
from enum import IntEnum
from pathlib import Path
from typing import Final

_MODIFY: Final = 0x2
_ATTRIBUTES: Final = 0x4
_CLOSE_WRITE: Final = 0x8
_OVERFLOW: Final = 0x4000
_IGNORED: Final = 0x8000
_DO_NOT_FOLLOW: Final = 0x2000000
_WRITES: Final = _MODIFY | _CLOSE_WRITE

_EVENT: Final = struct.Struct("iIII")
_READ_BYTES: Final = 64 << 10
"""4,096 events of files, which have no name in them."""

# With the interpreter's lock held: each call takes a few microseconds.
_libc = ctypes.PyDLL(None, use_errno=True)

OVERFLOWN: Final = -1
"""Told instead of a watch: the kernel has dropped events, of attributes only."""

WRITES_LOST: Final = -2
"""The same, of writing."""


class Touch(IntEnum):
    """What was done to a file; the larger, the worse."""

    ATTRIBUTES = 0
    """Its mode, times or links were changed."""
    CLOSED = 1
    """It was closed by somebody who may have written to it, through a memory map for instance."""
    WRITTEN = 2


class FileWatch:
    """Watches on files. Not for several threads at once, but for `remove`."""

    def __init__(self, max_watches: int | None = None) -> None:
        self._attributes_fd = self._writes_fd = -1
        self._max_watches = _share() // 2 if max_watches is None else max_watches
        """Each is two of the kernel's."""
        self._writes: dict[int, int] = {}
        """The number in the queue of writes by that in the queue of attributes, which is what is given out."""
        self._by_writes: dict[int, int] = {}

    def open(self, directory: str) -> bool:
        """Begin; False, and no watch is ever given, if changes to files in `directory` are not told here."""
        fds = [_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(2)]
        # Closed with the object: nothing else has to know that there is something to close.
        closed = weakref.finalize(self, _close, [fd for fd in fds if fd >= 0])
        self._attributes_fd, self._writes_fd = fds
        if min(fds) < 0 or not self._is_told(f"{directory}/watched"):
            closed()
            self._attributes_fd = self._writes_fd = -1
        return self._attributes_fd >= 0

    def add(self, path: str) -> int:
        """Watch a file from now on. The number of the watch, which no other file gets later; -1 if it cannot be."""
        if self._attributes_fd < 0 or len(self._writes) >= self._max_watches:
            return -1
        name = os.fsencode(path)
        writes = int(_libc.inotify_add_watch(self._writes_fd, name, _WRITES | _DO_NOT_FOLLOW))
        if writes < 0:
            return -1
        watch = int(_libc.inotify_add_watch(self._attributes_fd, name, _ATTRIBUTES | _DO_NOT_FOLLOW))
        if watch < 0:
            _libc.inotify_rm_watch(self._writes_fd, writes)
            return -1
        self._by_writes[writes] = watch
        self._writes[watch] = writes
        return watch

    def remove(self, watch: int) -> None:
        """Do not watch any more; it does not matter if the file is gone, or if another thread does the same."""
        writes = self._writes.pop(watch, -1)
        if writes >= 0:
            self._by_writes.pop(writes, None)
            _libc.inotify_rm_watch(self._attributes_fd, watch)
            _libc.inotify_rm_watch(self._writes_fd, writes)

    def touched(self) -> Iterator[tuple[int, Touch]]:
        """The watches of what was touched since the last call, maybe several times; OVERFLOWN and WRITES_LOST."""
        if self._attributes_fd < 0:
            return
        for number, mask in _told(self._writes_fd):
            if mask & _OVERFLOW:
                yield WRITES_LOST, Touch.WRITTEN
            elif (watch := self._by_writes.get(number)) is not None:
                yield watch, Touch.WRITTEN if mask & _MODIFY else Touch.CLOSED
        for watch, mask in _told(self._attributes_fd):
            yield OVERFLOWN if mask & _OVERFLOW else watch, Touch.ATTRIBUTES

    def _is_told(self, path: str) -> bool:
        """Try it: some file systems and sandboxes give watches that tell nothing."""
        link = f"{path}_too"
        try:
            _unlink(path, link)  # of an agent that was killed
            try:
                Path(path).write_bytes(b"")
                watch = self.add(path)
                os.link(path, link)
                seen = [list(self.touched()) == [(watch, Touch.ATTRIBUTES)]]
                Path(link).write_bytes(b"x")
                seen.append({(watch, Touch.WRITTEN), (watch, Touch.CLOSED)} <= set(self.touched()))
                os.chmod(link, 0o444)
                seen.append(list(self.touched()) == [(watch, Touch.ATTRIBUTES)])
                self.remove(watch)
            finally:
                _unlink(path, link)
        except OSError:
            return False
        return watch >= 0 and all(seen)


def _told(fd: int) -> Iterator[tuple[int, int]]:
    """What is in a queue: watches, each with what is told of it."""
    while True:
        try:
            told = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        for watch, mask, _cookie, length in _EVENT.iter_unpack(told):
            if length:  # names come with watches on directories, of which there are none
                raise AssertionError(f"inotify told {length} bytes of a name, expected none")
            if not mask & _IGNORED:  # which is the end of a watch
                yield watch, mask
        if len(told) < _READ_BYTES - _EVENT.size:
            return


def _unlink(*paths: str) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _share() -> int:
    """Half of what the system lets this user have; none if it does not say."""
    try:
        return int(Path("/proc/sys/fs/inotify/max_user_watches").read_text()) // 2
    except (OSError, ValueError):
        return 0
