"""The state directory of a server: made if it is not there, and one server's at a time.

The stores in it have locks of their own, but they may lie elsewhere or in memory only. The socket of the local worker lies
here in any case, and a second server would take it away from the first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cas.file_lock import DirectoryUnusable, lock_file

OPTION = "--state-dir, or state_dir"


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Have `path` to oneself meanwhile. Raises DirectoryUnusable if another server has it or it cannot be made."""
    try:
        # Sources, results and the local worker's socket are the user's alone, whatever his umask is.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = lock_file(path / "server.lock")
    except BlockingIOError as reason:
        raise DirectoryUnusable(f"state directory {path} is in use by another server ({OPTION})") from reason
    except OSError as reason:
        raise DirectoryUnusable(f"state directory {path} cannot be used: {_said(reason)} ({OPTION})") from reason
    try:
        yield
    finally:
        os.close(descriptor)


def _said(reason: OSError) -> str:
    """What the system says, and of which path."""
    return f"{(reason.strerror or str(reason)).lower()}: {reason.filename}" if reason.filename else str(reason)
