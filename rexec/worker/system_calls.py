"""System calls that have no function in Python: Landlock, seccomp, capabilities.

The state that they change is that of the calling thread alone, and what a thread starts inherits it (landlock(7), seccomp(2),
capabilities(7)). All of them take microseconds and are made with the interpreter's lock held: fifty calls that each let it go
could each wait 5 ms to get it back from a busy thread.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long] * 6


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs between processors."""

    name: str
    audit_number: int
    """AUDIT_ARCH_* of linux/audit.h, by which a filter sees whose numbers a call uses."""
    numbers: Mapping[str, int]
    """System calls by name (asm/unistd.h)."""


# The same everywhere: calls that came after the tables were made one.
_COMMON: Final = {
    "clone3": 435,
    "fsconfig": 431,
    "fsmount": 432,
    "fsopen": 430,
    "fspick": 433,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "io_uring_setup": 425,
    "landlock_add_rule": 445,
    "landlock_create_ruleset": 444,
    "landlock_restrict_self": 446,
    "mount_setattr": 442,
    "move_mount": 429,
    "open_tree": 428,
    "openat2": 437,
    "quotactl_fd": 443,
}

# Name: (x86_64, aarch64); a negative number where there is no such call.
_BY_ARCHITECTURE: Final = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "capset": (126, 91),
    "chroot": (161, 51),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "delete_module": (176, 106),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "open": (2, -1),
    "open_by_handle_at": (304, 265),
    "openat": (257, 56),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "seccomp": (317, 277),
    "sendmmsg": (307, 269),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "socket": (41, 198),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}


def _architecture(name: str, audit_number: int, column: int) -> Architecture:
    own = {call: numbers[column] for call, numbers in _BY_ARCHITECTURE.items() if numbers[column] >= 0}
    return Architecture(name, audit_number, MappingProxyType({**_COMMON, **own}))


X86_64: Final = _architecture("x86_64", 0xC000003E, 0)
AARCH64: Final = _architecture("aarch64", 0xC00000B7, 1)


def architecture(machine: str = "") -> Architecture:
    """Of this machine. Raises LookupError for one whose numbers are not known here."""
    name = machine or platform.machine()
    for known in (X86_64, AARCH64):
        if name == known.name:
            return known
    raise LookupError(f"the system calls of a {name} processor are not known, expected x86_64 or aarch64")


def call(number: int, *arguments: int) -> int:
    """Make a system call. Raises OSError."""
    result: int = _syscall(number, *arguments, *(0,) * (5 - len(arguments)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def open_path(path: bytes) -> int:
    """A descriptor that only says which file is meant (O_PATH); symlinks are followed. Raises OSError."""
    fd: int = _libc.open(path, os.O_PATH | os.O_CLOEXEC)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(path))
    return fd


def close(fd: int) -> None:
    """Close a descriptor from `open_path` or of a ruleset."""
    _libc.close(fd)


def gain_no_privileges() -> None:
    """From now on no program gains rights by being executed (PR_SET_NO_NEW_PRIVS): set-user-id means nothing."""
    if _libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_NO_NEW_PRIVS): {os.strerror(code)}")


def drop_capabilities(known: Architecture) -> None:
    """Give up the rights of root. After `gain_no_privileges` no program gets them back, not even one started by user 0."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    call(known.numbers["capset"], ctypes.addressof(header), ctypes.addressof(none))
