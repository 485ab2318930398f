"""Which files an action read that it was not given: seen, not denied (seccomp_unotify(2)).

The kernel stops each open and exec of the action until a thread here has looked at the path and let it go on. What is looked at
is a report and no guard: a program can change the path between the look and the open. Only files that exist are reported,
since compilers ask for many that do not.

The listener needs no rights beyond those over one's own children. It ends when the last process of the action is gone.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import queue
import select
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.system_calls import Architecture

MAX_PATHS: Final = 100
"""Kept of one action."""
SHOWN_PATHS: Final = 10
"""Named in the message of a result."""
_SHOWN_CHARACTERS: Final = 300
_TOLD_BYTES: Final = 32 << 10
"""Of paths in the metadata of a result, which every client and the action cache get."""
_MOST_LEFT_OUT: Final = (1 << 31) - 1
_MAX_KNOWN: Final = 10_000
"""Paths remembered as looked at; then they are looked at again."""
_PATH_MAX: Final = 4096

_RECEIVE: Final = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND: Final = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND
_CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
_ANSWER: Final = struct.Struct("=QqiI")

_OF_THE_READER: Final = ("/proc/", "/dev/fd/", "/dev/std")
"""What these lead to depends on who looks; all of it is declared."""


class UndeclaredReads:
    """One action's, or rather one attempt to start it."""

    def __init__(self, known: Architecture, declared: Sequence[str]) -> None:
        """`declared` are real paths, which stand for all below as well."""
        self.paths: list[str] = []
        """Real paths in the order in which they were read, at most MAX_PATHS."""
        self.more = 0
        """How many there were beside them."""
        self._numbers = {number: name for name, number in known.numbers.items()}
        self._declared = tuple(path.rstrip("/") + "/" for path in declared)
        self._known: set[str] = set()
        self._reported: set[str] = set()
        self._listener: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="undeclared reads", daemon=True)

    def start(self) -> None:
        """Get ready. To be called by a thread that is not restricted: this one inherits from it."""
        self._thread.start()

    def listen(self, fd: int) -> None:
        """Watch the listener `fd`, and close it at the end; -1 if there will be none."""
        self._listener.put(fd)

    def ended(self, seconds: float) -> None:
        """The processes are gone: wait for what was seen last, at most for `seconds`."""
        self._thread.join(seconds)

    def opened(self, path: str) -> None:
        """Take note of a file that is about to be read, by its absolute path. Looks at the file system."""
        if path in self._known or path.startswith(_OF_THE_READER):
            return
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known.add(path)
        real = os.path.realpath(path)
        if (real + "/").startswith(self._declared) or real in self._reported or not os.path.lexists(real):
            return
        if len(self.paths) < MAX_PATHS:
            self.paths.append(real)
            self._reported.add(real)
        else:
            self.more += 1

    def _watch(self) -> None:
        fd = self._listener.get()
        if fd < 0:
            return
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        try:
            while any(events & select.POLLIN for _, events in poll.poll()):
                self._answer_one(fd)
        finally:
            os.close(fd)

    def _answer_one(self, fd: int) -> None:
        message = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(fd, _RECEIVE, message)
        except OSError as reason:
            if reason.errno in (errno.ENOENT, errno.EINTR):  # its process was killed meanwhile
                return
            raise
        number, pid, _, call, _, _, *arguments = _NOTIFICATION.unpack(message)
        # What cannot be found out is not reported; the action must go on in any case.
        with suppress(OSError, ValueError, OverflowError):
            path = _path_of(pid, self._numbers.get(call, ""), arguments)
            if path:
                self.opened(path)
        with suppress(OSError):
            fcntl.ioctl(fd, _SEND, _ANSWER.pack(number, 0, 0, _CONTINUE))


def _path_of(pid: int, call: str, arguments: Sequence[int]) -> str:
    """The absolute path that a call is about; "" if it reads nothing. Raises OSError if the process hides or is gone."""
    directory, address, flags = arguments[0], arguments[1], arguments[2]
    match call:
        case "open":
            address, flags = arguments[0], arguments[1]
        case "execve":
            address, flags = arguments[0], 0
        case "openat2" | "execveat":
            flags = 0
    if call in ("open", "execve"):
        directory = _AT_FDCWD
    if flags & os.O_PATH or flags & os.O_ACCMODE == os.O_WRONLY:
        return ""
    path = os.fsdecode(_text_at(pid, address))
    if not path or path.startswith("/"):
        return path
    number = ctypes.c_int(directory & 0xFFFFFFFF).value
    link = "cwd" if number == ctypes.c_int(_AT_FDCWD).value else f"fd/{number}"
    return os.path.join(os.readlink(f"/proc/{pid}/{link}"), path)


_AT_FDCWD: Final = -100 & 0xFFFFFFFF


def _text_at(pid: int, address: int) -> bytes:
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.pread(fd, _PATH_MAX, address)
    finally:
        os.close(fd)
    return text.partition(b"\0")[0]


def remark_on(paths: Sequence[str], more: int) -> str:
    """For the user; "" if there is nothing to say."""
    if not paths:
        return ""
    shown = [os.fsencode(path).decode(errors="replace")[:_SHOWN_CHARACTERS] for path in paths[:SHOWN_PATHS]]
    rest = len(paths) - len(shown) + more
    return f"read without being declared: {', '.join(map(repr, shown))}" + (f" and {rest} more" if rest else "")


def found_in(paths: Sequence[str], more: int) -> list[worker_pb2.UndeclaredReads]:
    """For programs: one message, of bounded size; none if there is nothing to say."""
    if not paths:
        return []
    found, left_bytes = worker_pb2.UndeclaredReads(), _TOLD_BYTES
    for path in paths:
        text = os.fsencode(path).decode(errors="replace")
        left_bytes -= len(text.encode())
        if left_bytes < 0:
            break
        found.paths.append(text)
    found.left_out = min(len(paths) - len(found.paths) + more, _MOST_LEFT_OUT)
    return [found]
