"""What an action writes to standard output or standard error: kept up to a bound, read to the end.

The action writes into a pipe and the agent moves what comes. A file given to the action directly would need no work, but
nothing could bound it: RLIMIT_FSIZE is per process and hits output files too, and looking at its size now and then lets a
fast writer fill the disk in between. With a pipe the bound is exact and an action that prints too much may go on: the rest
is thrown away. Most actions print little or nothing, so the first `MEMORY_BYTES` stay in memory and no file is made;
beyond that the kernel moves the bytes from the pipe to a file (splice), and they are never in this process.

A process that the action left behind may keep the pipe open for ever, so the end of the action ends the reading, not the
end of the pipe: `finish` is called when all processes are dead and takes what the pipe holds then.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import termios
from collections.abc import Callable
from contextlib import suppress

MEMORY_BYTES = 64 << 10
"""The capacity of a pipe: what one read can give."""

_TURN_BYTES = 1 << 20
"""Most bytes moved before other events get their turn."""


class CapturedStream:
    """One pipe: `write_fd` goes to the action and is closed in the agent once it has started."""

    def __init__(self, spill_path: str, max_bytes: int) -> None:
        self.spill_path = spill_path
        """The file that a long output goes to; made when it is needed."""
        self.max_bytes = max_bytes
        self.size_bytes = 0
        """Bytes kept so far, in memory and in the file together."""
        self.dropped_bytes = 0
        self.on_growth: Callable[[], None] | None = None
        """Called whenever bytes were kept or dropped."""
        self.spilled = False
        """Whether the bytes are in the file at `spill_path`; else `kept` has them all."""
        self._kept = bytearray()
        self._spill_fd = -1
        self._null_fd = -1
        self._failure: OSError | None = None
        self._read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        # Only the reading end: a writer in non-blocking mode would lose output whenever the pipe is full.
        os.set_blocking(self._read_fd, False)
        self._loop: asyncio.AbstractEventLoop | None = None

    def started(self, loop: asyncio.AbstractEventLoop) -> None:
        """The action runs and has its own copy of the writing end: start to read."""
        self._close_write()
        self._loop = loop
        loop.add_reader(self._read_fd, self._on_readable)

    def finish(self) -> None:
        """Take what the pipe holds now and close it. All processes of the action are dead; what one that escaped goes on to
        write is not waited for. Raises OSError if the file could not be written (no space)."""
        self._stop_reading()
        self._close_write()
        left = _waiting_bytes(self._read_fd) if self._read_fd >= 0 else 0
        while left > 0 and (count := self._move()):
            left -= count
        self.close()
        if self._failure is not None:
            raise self._failure

    @property
    def kept(self) -> bytes:
        """The whole output, if it was short; else nothing."""
        return b"" if self.spilled else bytes(self._kept)

    def read_at(self, offset: int, max_bytes: int) -> bytes:
        """At most `max_bytes` of what is kept so far, from `offset`: fewer at the end, and none if the file is gone."""
        count = min(max_bytes, self.size_bytes - offset)
        if count <= 0:
            return b""
        if not self.spilled:
            return bytes(self._kept[offset : offset + count])
        try:
            # The action could have put something else there, whose opening would wait for ever.
            file = os.open(self.spill_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return b""
        try:
            return os.pread(file, count, offset)
        except OSError:
            return b""
        finally:
            os.close(file)

    def close(self) -> None:
        """Give back the descriptors; what was captured stays."""
        self._stop_reading()
        self._close_write()
        for fd in (self._read_fd, self._spill_fd, self._null_fd):
            if fd >= 0:
                os.close(fd)
        self._read_fd = self._spill_fd = self._null_fd = -1

    def _close_write(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def _stop_reading(self) -> None:
        if self._loop is not None and self._read_fd >= 0:
            self._loop.remove_reader(self._read_fd)
        self._loop = None

    def _on_readable(self) -> None:
        moved = 0
        while moved < _TURN_BYTES:
            count = self._move()
            if count == 0:
                return
            moved += count

    def _move(self) -> int:
        """Move one pipe's worth; 0 when there is nothing to move now, or ever."""
        try:
            count = self._move_or_drop()
        except BlockingIOError:
            return 0
        if count == 0:
            self._stop_reading()  # end of the pipe: an event loop would report it as readable for ever
        elif self.on_growth is not None:
            self.on_growth()
        return count

    def _move_or_drop(self) -> int:
        try:
            return self._move_once()
        except BlockingIOError:
            raise
        except OSError as failure:
            # No space, or a broken disk. The action must not hang on a full pipe: go on reading into nothing, and say so at
            # the end.
            self._failure = self._failure or failure
            return self._drop()

    def _move_once(self) -> int:
        room = self.max_bytes - self.size_bytes
        if room <= 0 or self._failure is not None:
            return self._drop()
        if not self.spilled:
            room_in_memory = min(room, MEMORY_BYTES - len(self._kept))
            if room_in_memory > 0:
                data = os.read(self._read_fd, room_in_memory)
                self._kept += data
                self.size_bytes += len(data)
                return len(data)
            self._start_spill()
        count = _splice(self._read_fd, self._spill_fd, min(room, _TURN_BYTES))
        self.size_bytes += count
        return count

    def _start_spill(self) -> None:
        self._spill_fd = os.open(self.spill_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.spilled = True
        view = memoryview(self._kept)
        while view:
            view = view[os.write(self._spill_fd, view) :]
        view.release()
        self._kept = bytearray()

    def _drop(self) -> int:
        if self._null_fd < 0:
            with suppress(OSError):
                self._null_fd = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        if self._null_fd >= 0:
            count = _splice(self._read_fd, self._null_fd, _TURN_BYTES)
        else:
            count = len(os.read(self._read_fd, MEMORY_BYTES))
        self.dropped_bytes += count
        return count


def _waiting_bytes(pipe: int) -> int:
    """What a pipe holds (FIONREAD, see pipe(7))."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def _splice(source: int, target: int, count: int) -> int:
    """Move at most `count` bytes; raises BlockingIOError if there are none. The flag is needed although `source` is in
    non-blocking mode: for the reading side splice(2) looks at the flag only."""
    return os.splice(source, target, count, flags=os.SPLICE_F_NONBLOCK)
