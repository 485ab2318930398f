"""The options of `isolation = "landlock"`: the only place of their defaults.

The lists say what an action may read beside its inputs. All workers must have the same there, or equal actions have different
results; so the defaults are what makes a machine run programs at all, and no more.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rexec.worker.seccomp import Sockets
from rexec.worker.system_paths import ETC, PROGRAMS

KERNEL: Final = (
    "/proc",  # a process's own (self/fd, self/maps), cpuinfo, meminfo; of others only what is no secret
    "/sys/devices/system/cpu",  # the number of processors
    "/sys/fs/cgroup",  # a container's limits, after which language runtimes size themselves
    "/sys/kernel/mm/transparent_hugepage",  # allocators and the JVM ask
)

PRELOADED: Final = "/etc/ld.so.preload"
"""The dynamic linker looks for it in every program; in a root of its own there is none."""


class LandlockSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[worker.landlock]: what an action may do beside reading its inputs and writing its own directories."""

    system_paths: tuple[str, ...] = (*PROGRAMS, *KERNEL, *ETC, PRELOADED)
    """Files and directories (with all below) that every action may read and execute. Those that this machine lacks are passed
    over. Whoever sets this replaces the default; to add something there is `readable`."""

    readable: tuple[str, ...] = ()
    """More of the same, which must exist: toolchains in /opt, for example."""

    writable: tuple[str, ...] = ()
    """Files and directories that every action may read and change, which must exist. Actions can leave something there for each
    other. "/dev/shm" is for tests with POSIX shared memory or semaphores (Python's multiprocessing)."""

    sockets: Sockets = Sockets.NONE
    """none: no sockets but pairs. unix: Unix sockets too; an action can then reach every service of this machine whose socket
    has a path and lets the worker's user in, the server's own among them. no-tcp: the network as well but for TCP, so
    datagrams pass; needs Landlock 4. all: the network."""

    audit: bool = False
    """Allow undeclared reads and report them, in the log and in the message of the result; writing stays denied. For finding
    out what `readable` must have: each file opened costs some 0.1 ms."""

    def __post_init__(self) -> None:
        for field in ("system_paths", "readable", "writable"):
            for path in getattr(self, field):
                if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
                    raise ValueError(f"{field} has {path!r}, expected absolute paths without '..'")
