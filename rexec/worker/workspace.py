"""The directory that a worker works in: held by one agent, cleaned up after the last one, one room for each action.

    <work_dir>/lock       held (flock) while the agent lives; the text names its process
    <work_dir>/sessions   the sessions of the actions started, for the next agent if this one is killed
    <work_dir>/w/3/       a room: root/ is the input root, tmp/ is TMPDIR, stdout and stderr if they are long
    <work_dir>/trash/     rooms that are done with, deleted in the background
    <work_dir>/etc/       what actions in bubblewrap see of /etc
    <work_dir>/programs.json  digests of the compilers of this machine, so that they need not be read at every start
    <work_dir>/cache/     the file cache, unless it is elsewhere

Rooms have small numbers that are used again: the same action mostly runs under the same path, which ends up in debug
information and error messages.
"""

from __future__ import annotations

import heapq
import itertools
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from cas.durability import current_boot_id
from cas.errors import FailedPrecondition
from cas.file_lock import lock_file
from rexec.worker.processes import kill_left_behind

_log = structlog.get_logger()

_MAX_SESSIONS_BYTES = 1 << 20
"""The list of sessions is started anew at this size; what is dropped is long dead, in all likelihood."""


@dataclass(frozen=True, slots=True)
class Room:
    """Where one action runs."""

    number: int
    path: str

    @property
    def root(self) -> str:
        """The input root."""
        return f"{self.path}/root"

    @property
    def tmp(self) -> str:
        """The action's TMPDIR."""
        return f"{self.path}/tmp"


class Workspace:
    """One work directory. `claim` blocks and is called in a thread; the rest takes microseconds."""

    def __init__(self, path: str, boot_id: Callable[[], str] = current_boot_id) -> None:
        self.path = os.path.realpath(path)
        self._rooms = f"{self.path}/w"
        self._trash = f"{self.path}/trash"
        self._boot_id = boot_id
        self._free: list[int] = []
        self._next = itertools.count()
        self._trashed = itertools.count()
        self._lock_fd = -1
        self._sessions_fd = -1
        self._sweeper = ThreadPoolExecutor(1, thread_name_prefix="trash")

    def claim(self) -> None:
        """Make the directory this process's own, and end and delete what an agent that was killed left in it.

        Raises FailedPrecondition if another agent holds it, Unkillable if its processes do not end.
        """
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        lock = Path(self.path, "lock")
        try:
            self._lock_fd = lock_file(lock)
        except BlockingIOError:
            holder = lock.read_bytes()[:32].decode(errors="replace").strip()
            raise FailedPrecondition(f"work directory {self.path} is in use by process {holder or 'unknown'}") from None
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, str(os.getpid()).encode(), 0)
        killed = kill_left_behind(self._rooms, self._read_sessions())
        if killed:
            _log.warning("ended processes of an agent that was killed", processes=killed)
        # A random part keeps the new trash apart from what is there already.
        os.makedirs(self._trash, exist_ok=True)
        if os.path.isdir(self._rooms):
            os.rename(self._rooms, f"{self._trash}/rooms-{os.urandom(8).hex()}")
        os.mkdir(self._rooms)
        self._start_sessions()
        self._sweeper.submit(self._sweep)

    def room(self) -> Room:
        """A new room with an empty input root and TMPDIR. Raises OSError if the disk is full."""
        number = heapq.heappop(self._free) if self._free else next(self._next)
        room = Room(number, f"{self._rooms}/{number}")
        try:
            os.mkdir(room.path)
            os.mkdir(room.root)
            os.mkdir(room.tmp)
        except OSError:
            self.discard(room)
            raise
        return room

    def discard(self, room: Room) -> None:
        """Done with a room: it vanishes at once and is deleted later. No process may be left in it.

        What the action did to the room is no reason for its result to be lost: one that cannot be moved is left alone.
        """
        target = f"{self._trash}/{os.getpid()}-{next(self._trashed)}"
        try:
            with suppress(FileNotFoundError):
                if stat.S_ISDIR(os.lstat(room.path).st_mode):
                    os.chmod(room.path, 0o700)  # to be moved, a directory must be writable: its ".." changes
                os.rename(room.path, target)
        except OSError as failure:
            _log.error("gave up a room that cannot be moved away", room=room.path, failure=str(failure))
            return
        heapq.heappush(self._free, room.number)
        with suppress(RuntimeError):  # closed meanwhile: the next agent deletes it
            self._sweeper.submit(delete_tree, target)

    def scrap(self, path: str) -> None:
        """Take something out of a room, to be deleted later. Raises OSError. May be called in any thread."""
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(path)
            return
        if stat.S_IMODE(status.st_mode) & 0o700 != 0o700:
            os.chmod(path, 0o700)  # as in `discard`
        target = f"{self._trash}/{os.getpid()}-{next(self._trashed)}"
        os.rename(path, target)
        with suppress(RuntimeError):
            self._sweeper.submit(delete_tree, target)

    def abandon(self, room: Room) -> None:
        """Leave a room to the next agent: there are processes in it that do not end. Its number is not used again."""
        _log.error("gave up a room whose processes do not end", room=room.path)

    def note_session(self, session: int, start_ticks: int) -> None:
        """Remember that an action's session exists since `start_ticks`."""
        if os.fstat(self._sessions_fd).st_size > _MAX_SESSIONS_BYTES:
            os.close(self._sessions_fd)
            self._start_sessions()
        os.write(self._sessions_fd, f"{session} {start_ticks}\n".encode())

    def close(self) -> None:
        """Wait for the deletions at hand and let the directory go."""
        self._sweeper.shutdown(wait=True)
        for fd in (self._sessions_fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._sessions_fd = self._lock_fd = -1

    def size_bytes(self) -> int:
        """Of the file system, whoever uses it."""
        status = os.statvfs(self.path)
        return status.f_blocks * status.f_frsize

    def free_bytes(self) -> int:
        """What an ordinary user can still write on the file system."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def _start_sessions(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._sessions_fd = os.open(f"{self.path}/sessions", flags, 0o600)
        os.write(self._sessions_fd, f"{self._boot_id()}\n".encode())

    def _read_sessions(self) -> list[tuple[int, int]]:
        """The sessions noted by the last agent; none if the machine was or may have been started since."""
        try:
            boot, *lines = Path(self.path, "sessions").read_text(errors="replace").splitlines()
        except (FileNotFoundError, ValueError):
            return []
        if not boot or boot != self._boot_id():
            return []
        pairs = [line.split() for line in lines]
        return [(int(pair[0]), int(pair[1])) for pair in pairs if len(pair) == 2 and all(map(str.isdigit, pair))]

    def _sweep(self) -> None:
        with os.scandir(self._trash) as entries:
            paths = [entry.path for entry in entries]
        for path in paths:
            delete_tree(path)


_LONG_PATH_BYTES = 2_000
"""Directories with longer paths are moved up before they are emptied: a system call takes at most 4,095 bytes (PATH_MAX)."""


def delete_tree(path: str) -> None:
    """Delete whatever is at `path`: directories of mode 000, paths longer than PATH_MAX and symlinks included.

    Depth is no trouble: there is no recursion, and a directory far down is moved beside `path` and emptied there. Symlinks are
    deleted, never followed. What cannot be deleted is logged and left.
    """
    beside = os.path.dirname(path)
    emptied: set[str] = set()
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        try:
            if directory in emptied:
                os.rmdir(directory)
            elif stat.S_ISDIR(os.lstat(directory).st_mode):
                emptied.add(directory)
                waiting.append(directory)  # again, after what it holds
                waiting += _empty(directory, beside)
            else:
                os.unlink(directory)
        except FileNotFoundError:
            continue
        except OSError as failure:
            _log.warning("could not delete", path=directory[:200], failure=str(failure)[:300])


def _empty(directory: str, beside: str) -> list[str]:
    """Delete the files in `directory`; returns its directories, moved to `beside` if their paths are long."""
    with suppress(PermissionError):
        os.chmod(directory, 0o700)
    directories = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
            elif len(entry.path) < _LONG_PATH_BYTES:
                directories.append(entry.path)
            else:
                with suppress(PermissionError):
                    os.chmod(entry.path, 0o700)  # its ".." changes, for which it must be writable
                target = f"{beside}/{os.urandom(12).hex()}"
                os.rename(entry.path, target)
                directories.append(target)
    return directories
