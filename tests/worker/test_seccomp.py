"""What the filter answers, on every processor that is known: the instructions are run here as the kernel would."""

from __future__ import annotations

import errno
import platform
import re
import socket
import struct
import subprocess
from collections.abc import Sequence

import pytest

from rexec.worker.seccomp import (
    OPENING,
    REFUSED,
    RET_ALLOW,
    RET_ERRNO,
    RET_KILL_PROCESS,
    RET_USER_NOTIF,
    Instruction,
    Sockets,
    program,
)
from rexec.worker.system_calls import AARCH64, X86_64, Architecture, architecture

MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS (linux/bpf_common.h)."""


def answer(code: Sequence[Instruction], number: int, *arguments: int, arch: int) -> int:
    """The value that the filter returns for a system call."""
    padded = [argument & 0xFFFF_FFFF_FFFF_FFFF for argument in (*arguments, *(0,) * (6 - len(arguments)))]
    data = struct.pack("=iIQ6Q", number if number < 1 << 31 else number - (1 << 32), arch, 0, *padded)
    accumulator, place = 0, 0
    while True:
        step = code[place]
        place += 1
        match step.code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, step.k)
            case 0x54:
                accumulator &= step.k
            case 0x15:
                place += step.on_true if accumulator == step.k else step.on_false
            case 0x35:
                place += step.on_true if accumulator >= step.k else step.on_false
            case 0x45:
                place += step.on_true if accumulator & step.k else step.on_false
            case 0x06:
                return step.k
            case _:
                raise AssertionError(f"instruction {step}")


class Asked:
    """A filter, asked by name."""

    def __init__(self, known: Architecture, sockets: Sockets = Sockets.NONE, *, notify: bool = False) -> None:
        self.known = known
        self.code = program(known, sockets, notify=notify)

    def of(self, name: str, *arguments: int) -> int:
        return answer(self.code, self.known.numbers[name], *arguments, arch=self.known.audit_number)

    def refuses(self, code: int, name: str, *arguments: int) -> bool:
        return self.of(name, *arguments) == RET_ERRNO | code


both = pytest.mark.parametrize("known", [X86_64, AARCH64], ids=lambda known: known.name)


@both
@pytest.mark.parametrize("sockets", Sockets)
def test_the_kernel_takes_it(known: Architecture, sockets: Sockets) -> None:
    code = program(known, sockets, notify=True)
    assert len(code) <= MAX_INSTRUCTIONS
    for place, step in enumerate(code):
        assert place + 1 + max(step.on_true, step.on_false) < len(code) or step.code == 0x06
        assert len(step.packed()) == 8


@both
def test_what_rearranges_the_machine_is_refused_and_the_rest_is_not(known: Architecture) -> None:
    asked_of = Asked(known)
    for name in REFUSED:
        assert name not in known.numbers or asked_of.refuses(errno.EPERM, name), name
    missing = {name for name in REFUSED if name not in known.numbers}
    assert missing == (set() if known is X86_64 else {"iopl", "ioperm"})
    denied = {known.numbers.get(name) for name in (*REFUSED, "clone", "clone3", "prlimit64", "socket")}
    for number in range(600):
        if number not in denied:
            assert answer(asked_of.code, number, arch=known.audit_number) == RET_ALLOW


@both
def test_processes_and_threads_are_made_but_no_namespaces(known: Architecture) -> None:
    asked_of = Asked(known)
    assert asked_of.of("clone", 17) == RET_ALLOW  # fork: SIGCHLD
    assert asked_of.of("clone", 0x3D0F00) == RET_ALLOW  # a thread of the C library
    assert asked_of.of("clone", 0x4111) == RET_ALLOW  # vfork
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert asked_of.refuses(errno.EPERM, "clone", flag | 17), hex(flag)
    assert asked_of.refuses(errno.ENOSYS, "clone3", 0, 88)


@both
def test_only_ones_own_limits_can_be_set(known: Architecture) -> None:
    asked_of = Asked(known)
    assert asked_of.of("prlimit64", 0, 7) == RET_ALLOW
    assert asked_of.of("prlimit64", 1 << 32, 7) == RET_ALLOW  # the kernel takes the lower half only
    assert asked_of.refuses(errno.EPERM, "prlimit64", 1, 7)
    assert asked_of.refuses(errno.EPERM, "prlimit64", -1, 7)


@both
def test_programs_for_another_mode_of_the_processor_are_killed(known: Architecture) -> None:
    code = program(known, Sockets.ALL)
    for other in (0x40000003, 0x40000028, X86_64.audit_number ^ AARCH64.audit_number, 0):  # 386, ARM
        assert answer(code, 1, arch=other) == RET_KILL_PROCESS


def test_the_numbers_of_x32_are_unknown() -> None:
    code = program(X86_64, Sockets.ALL)
    for number in (0x40000000 + 41, 0x40000000, 0xFFFFFFFF):
        assert answer(code, number, arch=X86_64.audit_number) == RET_ERRNO | errno.ENOSYS


UNIX, INET, INET6, NETLINK, PACKET, ALG, VSOCK = 1, 2, 10, 16, 17, 38, 40
STREAM, DATAGRAM, RAW, CLOEXEC = 1, 2, 3, 0o2000000


@both
def test_sockets_are_made_as_far_as_they_are_allowed(known: Architecture) -> None:
    asked = {
        "unix": (UNIX, STREAM | CLOEXEC, 0),
        "tcp": (INET, STREAM | CLOEXEC, 0),
        "tcp6": (INET6, STREAM, socket.IPPROTO_TCP),
        "udp": (INET, DATAGRAM, socket.IPPROTO_UDP),
        "mptcp": (INET, STREAM, 262),
        "sctp": (INET6, STREAM, 132),
        "netlink": (NETLINK, RAW | CLOEXEC, 0),
        "raw": (INET, RAW | CLOEXEC, 1),
        "raw6": (INET6, RAW, 58),
        "packet": (PACKET, RAW, 0),
        "alg": (ALG, 5, 0),
        "vsock": (VSOCK, STREAM, 0),
    }
    allowed = {
        sockets: {name for name, what in asked.items() if Asked(known, sockets).of("socket", *what) == RET_ALLOW}
        for sockets in Sockets
    }
    assert allowed == {
        Sockets.NONE: set(),
        Sockets.UNIX: {"unix"},
        # TCP itself is Landlock's to deny, but for what it does not see.
        Sockets.NO_TCP: {"unix", "netlink", "tcp", "tcp6", "udp"},
        Sockets.ALL: {"unix", "netlink", "tcp", "tcp6", "udp", "mptcp", "sctp"},
    }
    for sockets in Sockets:
        for what in asked.values():
            assert Asked(known, sockets).of("socket", *what) in (RET_ALLOW, RET_ERRNO | errno.EACCES)


@both
def test_tcp_is_not_connected_by_sending(known: Architecture) -> None:
    fast_open = 0x20000000 | 0x4000
    asked_of = Asked(known, Sockets.NO_TCP)
    for name, place in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        assert asked_of.refuses(errno.EPERM, name, *(0,) * place, fast_open)
        assert asked_of.of(name, *(0,) * place, 0x4000) == RET_ALLOW
        assert Asked(known, Sockets.ALL).of(name, *(0,) * place, fast_open) == RET_ALLOW


@both
def test_a_listener_is_told_of_what_is_opened_and_nothing_else(known: Architecture) -> None:
    asked_of, without = Asked(known, notify=True), Asked(known)
    told = {name for name, number in known.numbers.items() if asked_of.of(name) == RET_USER_NOTIF}
    assert told == set(OPENING) & set(known.numbers)
    assert all(without.of(name) == RET_ALLOW for name in told)


def test_unknown_processors_are_named() -> None:
    with pytest.raises(LookupError, match="the system calls of a riscv64 processor are not known"):
        architecture("riscv64")


def test_the_numbers_are_those_of_this_machines_headers() -> None:
    """The compiler's own headers are asked, since a wrong number would refuse the wrong call."""
    known = architecture(platform.machine())
    names = "\n".join(f"#ifdef __NR_{name}\n{name} = __NR_{name}\n#endif" for name in known.numbers)
    compiled = subprocess.run(
        ["cc", "-E", "-P", "-x", "c", "-"],
        input=f"#include <asm/unistd.h>\n{names}\n",
        capture_output=True,
        text=True,
        check=True,
    )
    found = {name: int(number) for name, number in re.findall(r"^(\w+) = (\d+)$", compiled.stdout, re.MULTILINE)}
    # Headers may be older than a call.
    assert len(found) > 40
    assert found.items() <= known.numbers.items()
