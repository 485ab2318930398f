"""A filter of system calls that builds do not need and that lead out of an isolation (seccomp(2), classic BPF).

It is a list of what is denied, not of what is allowed: a compiler of next year may use calls that nobody knows today. Denied are

- what rearranges the system: mounts, namespaces, kernel modules, clocks, swap, names; most of it needs rights that an action
  does not have, but the kernel's code behind it is reached less;
- what has had many of the kernel's holes, and whose users get on without: bpf, perf, userfaultfd, keys, io_uring (which
  would also open sockets past this filter);
- new namespaces, with which a user becomes root of a world of his own. A build that wants to sandbox its own steps could not
  do so anyway: Landlock denies it to mount. clone3 is answered as by a kernel without it, since a filter cannot see its flags,
  and every C library then uses clone;
- limits of other processes: the worker's own, for one;
- sockets, as far as `Sockets` says.

ptrace is not in it: leak checkers use it on their own processes, and for others' Landlock denies it.

A program for another processor mode (32 bit on x86_64) has other numbers, so it is killed (SIGSYS).
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rexec.worker.system_calls import Architecture, call

_LD_W_ABS: Final = 0x20
_AND_K: Final = 0x54
_JEQ_K: Final = 0x15
_JGE_K: Final = 0x35
_JSET_K: Final = 0x45
_RET_K: Final = 0x06

# struct seccomp_data (linux/seccomp.h); of an argument, the lower half of 64 bits on a little-endian machine.
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4

RET_ALLOW: Final = 0x7FFF0000
RET_KILL_PROCESS: Final = 0x80000000
RET_ERRNO: Final = 0x00050000
RET_USER_NOTIF: Final = 0x7FC00000

_SET_MODE_FILTER: Final = 1
_FLAG_SPEC_ALLOW: Final = 4
"""Without it the kernel may slow down memory accesses of every program under a filter."""
_FLAG_NEW_LISTENER: Final = 8

_X32: Final = 0x4000_0000
"""x86_64: numbers from here on are of the x32 mode, which shares the architecture's number. -1, of no call, is as well."""

_NAMESPACES: Final = 0x7E02_0000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (linux/sched.h). NEWTIME is no flag of clone."""

_MSG_FASTOPEN: Final = 0x2000_0000
_SOCK_TYPE_MASK: Final = 0xF

REFUSED: Final = (
    *("mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick"),
    *("mount_setattr", "unshare", "setns", "open_by_handle_at", "fanotify_init", "quotactl", "quotactl_fd", "acct"),
    *("bpf", "perf_event_open", "userfaultfd", "add_key", "request_key", "keyctl"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "iopl", "ioperm"),
    *(
        "swapon",
        "swapoff",
        "reboot",
        "settimeofday",
        "clock_settime",
        "sethostname",
        "setdomainname",
        "syslog",
        "vhangup",
    ),
)
"""Always answered with EPERM."""

OPENING: Final = ("open", "openat", "openat2", "execve", "execveat")
"""What is told to a listener."""


class Sockets(StrEnum):
    """Which sockets an action may make. Pairs (socketpair) are always allowed."""

    NONE = "none"
    UNIX = "unix"
    NO_TCP = "no-tcp"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Instruction:
    """struct sock_filter (linux/filter.h)."""

    code: int
    k: int
    on_true: int = 0
    on_false: int = 0

    def packed(self) -> bytes:
        return struct.pack("=HBBI", self.code, self.on_true, self.on_false, self.k)


def _argument(index: int) -> int:
    return 16 + 8 * index


def _answer(code: int) -> Instruction:
    return Instruction(_RET_K, RET_ERRNO | code)


def _load(offset: int) -> Instruction:
    return Instruction(_LD_W_ABS, offset)


_ALLOW: Final = Instruction(_RET_K, RET_ALLOW)


def program(known: Architecture, sockets: Sockets, *, notify: bool = False) -> list[Instruction]:
    """The filter; with `notify` a listener is told of each file that is opened or executed."""
    code = [
        _load(_ARCHITECTURE),
        Instruction(_JEQ_K, known.audit_number, on_true=1),
        Instruction(_RET_K, RET_KILL_PROCESS),
        _load(_NUMBER),
    ]
    if known.name == "x86_64":
        code += [Instruction(_JGE_K, _X32, on_false=1), _answer(errno.ENOSYS)]

    def on(name: str, block: Iterable[Instruction]) -> None:
        block = list(block)
        code.extend([Instruction(_JEQ_K, known.numbers[name], on_false=len(block)), *block])

    for name in REFUSED:
        if name in known.numbers:
            on(name, [_answer(errno.EPERM)])
    on("clone3", [_answer(errno.ENOSYS)])
    on("clone", _refuse_flags(0, _NAMESPACES))
    # One's own limits are asked for by the number 0.
    on("prlimit64", [_load(_argument(0)), Instruction(_JEQ_K, 0, on_false=1), _ALLOW, _answer(errno.EPERM)])
    on("socket", _of_sockets(sockets))
    if sockets is Sockets.NO_TCP:
        # TCP Fast Open connects without connect(2), which is all that Landlock sees.
        for name, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
            on(name, _refuse_flags(flags, _MSG_FASTOPEN))
    if notify:
        for name in OPENING:
            if name in known.numbers:
                on(name, [Instruction(_RET_K, RET_USER_NOTIF)])
    return [*code, _ALLOW]


def _refuse_flags(argument: int, flags: int) -> list[Instruction]:
    return [_load(_argument(argument)), Instruction(_JSET_K, flags, on_false=1), _answer(errno.EPERM), _ALLOW]


def _of_sockets(sockets: Sockets) -> list[Instruction]:
    family = _load(_argument(0))
    refused = _answer(errno.EACCES)
    match sockets:
        case Sockets.NONE:
            return [refused]
        case Sockets.UNIX:
            return [family, Instruction(_JEQ_K, socket.AF_UNIX, on_false=1), _ALLOW, refused]
        case Sockets.NO_TCP | Sockets.ALL:
            code = [family]
            for always in (socket.AF_UNIX, socket.AF_NETLINK):
                code += [Instruction(_JEQ_K, always, on_false=1), _ALLOW]
            # Others are seldom used and have often been broken: packets, kernel cryptography, virtual machines, radio.
            code += [
                Instruction(_JEQ_K, socket.AF_INET, on_true=2),
                Instruction(_JEQ_K, socket.AF_INET6, on_true=1),
                refused,
            ]
            code += [
                _load(_argument(1)),
                Instruction(_AND_K, _SOCK_TYPE_MASK),
                Instruction(_JEQ_K, socket.SOCK_RAW, on_false=1),
                refused,
            ]
            if sockets is Sockets.NO_TCP:
                # Multipath TCP, SCTP and their like are TCP by another name that Landlock does not see.
                code.append(_load(_argument(2)))
                for protocol in (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP):
                    code += [Instruction(_JEQ_K, protocol, on_false=1), _ALLOW]
                return [*code, refused]
            return [*code, _ALLOW]


class Filter:
    """A program, ready to be put on a thread. Kept as long as it is used: the kernel reads from its memory."""

    def __init__(self, known: Architecture, instructions: list[Instruction]) -> None:
        self._number = known.numbers["seccomp"]
        packed = b"".join(instruction.packed() for instruction in instructions)
        self._code = ctypes.create_string_buffer(packed, len(packed))
        # struct sock_fprog: a count, and a pointer at its natural place.
        self._program = ctypes.create_string_buffer(
            struct.pack("@HP", len(instructions), ctypes.addressof(self._code)), struct.calcsize("@HP")
        )

    def put_on_this_thread(self) -> None:
        """For good, and on what the thread starts. Needs no_new_privs. Raises OSError."""
        call(self._number, _SET_MODE_FILTER, _FLAG_SPEC_ALLOW, ctypes.addressof(self._program))

    def put_on_this_thread_and_listen(self) -> int:
        """The same; returns the descriptor of the listener. Raises OSError, EBUSY if there is a listener already."""
        return call(
            self._number, _SET_MODE_FILTER, _FLAG_SPEC_ALLOW | _FLAG_NEW_LISTENER, ctypes.addressof(self._program)
        )
