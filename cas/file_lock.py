"""One process for a directory or a file: a lock file beside it is held (flock) as long as the process lives.

The kernel lets go of it when the process ends, however it ends, so nothing is ever left locked. The lock file itself stays:
whoever removed it could lock a file that nobody else sees.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class DirectoryUnusable(Exception):
    """A directory or file of the server cannot be used: another process has it, or it cannot be made or written. For the
    start only."""


def lock_file(path: str | Path) -> int:
    """Make the file at `path` and hold it. Returns a descriptor; closing it lets go.

    Raises BlockingIOError if another process holds it, OSError if it cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def claim(lock: Path, claimed: str) -> int:
    """Have what `lock` stands for to this process; directories are made. Returns a descriptor; closing it lets go.

    Raises DirectoryUnusable with `claimed`, which names the thing and its path.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock_file(lock)
    except BlockingIOError as reason:
        raise DirectoryUnusable(f"{claimed} is in use by another process") from reason
    except OSError as reason:
        raise DirectoryUnusable(f"{claimed} cannot be used: {reason}") from reason
