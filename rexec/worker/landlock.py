"""Landlock: what a thread, and all that it starts, may still do with files, TCP, signals and sockets (landlock(7)).

A ruleset names the kinds of access that are handled, which means denied, and for directories and files those that are allowed
nevertheless, there and below. The kernel says how much of it it has by a version number (ABI); what it does not have stays
allowed, and `GAPS` says what that is:

    1  files: read, execute, write, make, remove (Linux 5.13)      4  TCP: bind and connect (6.7)
    2  moving and linking between directories (5.19)               5  ioctl on devices (6.10)
    3  truncate (6.2)                                              6  signals, abstract Unix sockets (6.12)

Later versions add nothing that is used here. Never handled, so always allowed: to see that a file exists and its metadata, to
change mode, owner, times or extended attributes of one's own files, and to connect to a Unix socket that has a path. Looking
into other processes (ptrace, /proc/PID/environ, mem, fd) is denied by any ruleset, and so is mounting.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from rexec.worker.system_calls import Architecture, call, close, open_path


class FileAccess(IntFlag):
    """LANDLOCK_ACCESS_FS_*."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


class NetAccess(IntFlag):
    """LANDLOCK_ACCESS_NET_*."""

    BIND_TCP = 1 << 0
    CONNECT_TCP = 1 << 1


class Scope(IntFlag):
    """LANDLOCK_SCOPE_*: what must not reach beyond the processes under the same ruleset."""

    ABSTRACT_UNIX_SOCKET = 1 << 0
    SIGNAL = 1 << 1


_ABI_1: Final = FileAccess.REFER - 1

READ: Final = FileAccess.EXECUTE | FileAccess.READ_FILE | FileAccess.READ_DIR
DEVICE: Final = FileAccess.READ_FILE | FileAccess.WRITE_FILE | FileAccess.TRUNCATE | FileAccess.IOCTL_DEV
"""For /dev/null and its like. TRUNCATE, because a shell's `>` asks for it."""
OWN: Final = (
    READ
    | FileAccess.WRITE_FILE
    | FileAccess.TRUNCATE
    | FileAccess.REMOVE_DIR
    | FileAccess.REMOVE_FILE
    | FileAccess.MAKE_DIR
    | FileAccess.MAKE_REG
    | FileAccess.MAKE_SOCK
    | FileAccess.MAKE_FIFO
    | FileAccess.MAKE_SYM
    | FileAccess.REFER
)
"""All but making devices and talking to them."""

_OF_FILES: Final = (
    FileAccess.EXECUTE | FileAccess.WRITE_FILE | FileAccess.READ_FILE | FileAccess.TRUNCATE | FileAccess.IOCTL_DEV
)
"""What can be allowed on something that is no directory."""

GAPS: Final = (
    (2, "moving files between directories is refused with EXDEV (Landlock 2)"),
    (3, "files outside may be truncated (Landlock 3)"),
    (4, "TCP is not denied by Landlock (4)"),
    (5, "ioctl on devices is not denied (Landlock 5)"),
    (6, "signals to the worker's other processes and abstract Unix sockets are not denied (Landlock 6)"),
)
"""What is denied only since a version, or denied too much before it; for people."""


_RULE_PATH_BENEATH: Final = 1
_BENEATH: Final = struct.Struct("=Qi")
"""struct landlock_path_beneath_attr."""


@dataclass(frozen=True, slots=True)
class Handled:
    """What a ruleset denies unless a rule allows it."""

    files: FileAccess
    net: NetAccess
    scope: Scope


@dataclass(frozen=True, slots=True)
class Rule:
    """What is allowed on a file, or in a directory and everything below."""

    path: str
    access: FileAccess

    def for_what_it_is(self) -> Rule:
        """Without what only directories have, if it is none now: the kernel refuses the rest, and trying twice takes time."""
        return self if os.path.isdir(self.path) else Rule(self.path, self.access & _OF_FILES)


def handled_by(abi: int, *, tcp: bool = True, reads: bool = True) -> Handled:
    """All that a kernel with this version can deny; without `tcp` and without `reads` those stay allowed."""
    files = FileAccess(_ABI_1)
    for since, access in ((2, FileAccess.REFER), (3, FileAccess.TRUNCATE), (5, FileAccess.IOCTL_DEV)):
        if abi >= since:
            files |= access
    if not reads:
        files &= ~READ
    net = NetAccess.BIND_TCP | NetAccess.CONNECT_TCP if tcp and abi >= 4 else NetAccess(0)
    scope = Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL if abi >= 6 else Scope(0)
    return Handled(files, net, scope)


def ruleset_attribute(handled: Handled, abi: int) -> bytes:
    """struct landlock_ruleset_attr (linux/landlock.h), as long as this version knows it."""
    fields = [handled.files, *((handled.net,) if abi >= 4 else ()), *((handled.scope,) if abi >= 6 else ())]
    return struct.pack(f"={len(fields)}Q", *fields)


def packed(rules: Iterable[Rule], handled: Handled) -> list[tuple[bytes, int]]:
    """In the kernel's terms; a right that is not handled needs no rule and must have none."""
    return [(os.fsencode(rule.path), access) for rule in rules if (access := int(rule.access & handled.files))]


def without_those_below(rules: Iterable[Rule]) -> list[Rule]:
    """Without rules that another one makes needless, which allows as much on a directory above. Paths are real ones.

    Each rule costs every action some microseconds: /lib, /bin and /sbin mostly lead into /usr.
    """
    kept: list[Rule] = []
    for rule in sorted(rules, key=lambda rule: rule.path.rstrip("/")):
        if not any(_covers(other, rule) for other in kept):
            kept.append(rule)
    return kept


def _covers(above: Rule, below: Rule) -> bool:
    return (below.path + "/").startswith(above.path.rstrip("/") + "/") and not below.access & ~above.access


class Landlock:
    """The kernel's Landlock on this machine."""

    def __init__(self, known: Architecture) -> None:
        self._create = known.numbers["landlock_create_ruleset"]
        self._add = known.numbers["landlock_add_rule"]
        self._restrict = known.numbers["landlock_restrict_self"]

    def abi(self) -> int:
        """The version that the kernel has. Raises OSError: ENOSYS without Landlock, EOPNOTSUPP if it is switched off."""
        return call(self._create, 0, 0, 1)  # LANDLOCK_CREATE_RULESET_VERSION

    def restrict_this_thread(self, abi: int, handled: Handled, rules: Sequence[tuple[bytes, int]]) -> None:
        """Leave this thread, and what it starts, only what `rules` (see `packed`) allow of what is `handled`; for good.

        A path that is missing by now is passed over: there is nothing to be allowed. Needs no_new_privs. Raises OSError.
        """
        form = ruleset_attribute(handled, abi)
        attribute = ctypes.create_string_buffer(form, len(form))
        ruleset = call(self._create, ctypes.addressof(attribute), len(form), 0)
        try:
            beneath = ctypes.create_string_buffer(_BENEATH.size)
            for path, access in rules:
                self._allow(ruleset, path, access, beneath)
            call(self._restrict, ruleset, 0)
        finally:
            close(ruleset)

    def _allow(self, ruleset: int, path: bytes, access: int, beneath: ctypes.Array[ctypes.c_char]) -> None:
        try:
            fd = open_path(path)
        except OSError as reason:
            if reason.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                return
            raise
        try:
            for wanted in (access, access & _OF_FILES):
                _BENEATH.pack_into(beneath, 0, wanted, fd)
                try:
                    call(self._add, ruleset, _RULE_PATH_BENEATH, ctypes.addressof(beneath), 0)
                except OSError as reason:
                    # No directory, though the rule says so.
                    if reason.errno != errno.EINVAL or wanted != access:
                        raise
                else:
                    return
        finally:
            close(fd)
