"""What the kernel holds every process of an action to (setrlimit(2)), whatever user it runs as.

Limits are inherited. Code in the forked child, to set them there, would mean a start whose cost grows with the agent's memory;
and to set them once the process runs is too late for what it starts at once. So the agent takes on the soft limits itself for the
moment of a start, one start at a time, and gives the new process the hard ones right after. The agent goes on working in that
moment, in other threads; so limits that could be in its own way are only set afterwards.

Not among them: RLIMIT_NPROC counts all processes of a user and does not bind root, so processes are counted by the watch over
running actions (rexec/worker/memory_watch.py); RLIMIT_AS would hit what is reserved and never used, as compilers with
sanitizers and Java do with terabytes.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from rexec.worker.process_table import tree_of

_OWN_OPEN_FILES: Final = 1024
"""More than an agent has open."""


@dataclass(frozen=True, slots=True)
class ActionLimits:
    """Of each process of an action; 0 leaves what the agent itself has."""

    max_open_files: int = 0
    file_max_bytes: int = 0
    own_file_max_bytes: int = 0
    """The largest file that the agent may be writing."""

    @contextmanager
    def taken_on(self) -> Iterator[None]:
        """What this process starts meanwhile has the soft limits. Only for one thread at a time."""
        before = []
        try:
            for kind, most, own in (
                (resource.RLIMIT_NOFILE, self.max_open_files, _OWN_OPEN_FILES),
                (resource.RLIMIT_FSIZE, self.file_max_bytes, self.own_file_max_bytes),
            ):
                if most and most >= own:
                    soft, hard = resource.getrlimit(kind)
                    resource.setrlimit(kind, (_at_most(most, hard), hard))
                    before.append((kind, soft, hard))
            yield
        finally:
            for kind, soft, hard in before:
                resource.setrlimit(kind, (soft, hard))

    def apply(self, pid: int, *, with_descendants: bool = False) -> None:
        """Hold a process to them for good. Never gives it more than it has; one that has ended needs none.

        `with_descendants` is for one that may already have started the command: what that starts later inherits from it.
        """
        held: set[int] = set()
        is_new = True
        # A process that has them already was started by one that has them, and so was all that comes later: an action that starts
        # one process after the other does not keep the agent here.
        while is_new:
            found = set(tree_of(pid) if with_descendants else (pid,)) - held
            had_none = [self._apply(process) for process in found]
            is_new = any(had_none)
            held |= found

    def _apply(self, pid: int) -> bool:
        """Returns whether the process did not have them yet."""
        wanted = [(resource.RLIMIT_CORE, 0)]  # a core file would be an output, or fill the disk
        if self.max_open_files:
            wanted.append((resource.RLIMIT_NOFILE, self.max_open_files))
        if self.file_max_bytes:
            wanted.append((resource.RLIMIT_FSIZE, self.file_max_bytes))
        is_new = False
        with suppress(ProcessLookupError, PermissionError):  # the latter: a program that changes its user
            for kind, most in wanted:
                bound = _at_most(most, resource.prlimit(pid, kind)[1])
                is_new |= resource.prlimit(pid, kind, (bound, bound)) != (bound, bound)
        return is_new


def _at_most(wanted: int, hard: int) -> int:
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


NO_LIMITS: Final = ActionLimits()
"""But for core files, which are never written."""
