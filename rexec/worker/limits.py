"""What the kernel holds every process of an action to (setrlimit(2)), whatever user it runs as.

The limits are given to the first process just after it was started and are inherited by all that it starts; an execve in between
changes nothing. That is later than its first instruction by some microseconds, which the dynamic linker needs for itself.
Setting them before the execve would need code in the forked child, and with it a start whose cost grows with the agent's memory.

Not among them: RLIMIT_NPROC counts all processes of a user and does not bind root, so processes are counted by the watch over
running actions (rexec/worker/memory_watch.py); RLIMIT_AS would hit what is reserved and never used, as compilers with
sanitizers and Java do with terabytes.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import dataclass

_NONE = resource.RLIM_INFINITY


@dataclass(frozen=True, slots=True)
class ActionLimits:
    """Of each process of an action; 0 leaves what the agent itself has."""

    max_open_files: int = 0
    file_max_bytes: int = 0

    def apply(self, pid: int) -> None:
        """Hold the process to them. Never gives it more than it has; one that has ended needs none."""
        wanted = [(resource.RLIMIT_CORE, 0)]  # a core file would be an output, or fill the disk
        if self.max_open_files:
            wanted.append((resource.RLIMIT_NOFILE, self.max_open_files))
        if self.file_max_bytes:
            wanted.append((resource.RLIMIT_FSIZE, self.file_max_bytes))
        with suppress(ProcessLookupError, PermissionError):  # the latter: a program that changes its user
            for kind, most in wanted:
                _, hard = resource.prlimit(pid, kind)
                bound = most if hard == _NONE else min(most, hard)
                resource.prlimit(pid, kind, (bound, bound))
