"""The state directory of a server: made if it is not there, and one server's at a time.

The stores in it have locks of their own, but they may lie elsewhere or in memory only. The socket of the local worker lies
here in any case, and a second server would take it away from the first.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cas.blob_directory import DirectoryUnusable


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Have `path` to oneself meanwhile. Raises DirectoryUnusable if another server has it or it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as reason:
        raise DirectoryUnusable(f"state directory {path} cannot be used: {reason}") from reason
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as reason:
        os.close(descriptor)
        raise DirectoryUnusable(f"state directory {path} is in use by another server") from reason
    try:
        yield
    finally:
        os.close(descriptor)
