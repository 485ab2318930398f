"""The local workers of `rexec serve`: a worker process beside the server (rexec/kept_process.py), and where it finds it.

A process of its own and not a task of the server: what an action does to its worker (memory, file descriptors, a signal
to everyone) must not reach the clients' streams, and staging files must not take turns with answering calls.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path


def worker_command(server: str, slots: int, work_dir: Path, config: Path | None, name: str = "") -> list[str]:
    """The command line of a local worker. `python -m rexec`, because the console script may not be on PATH.

    Without a `name` it gets one that stays the same from process to process: then the scheduler knows at once, by the new
    session of that name, that the old process and what it ran are gone.
    """
    command = [sys.executable, "-m", "rexec", "worker", "--server", server, "--slots", str(slots)]
    command += ["--work-dir", str(work_dir), "--parent-pid", str(os.getpid())]
    command += ["--name", name or f"{socket.gethostname()}-local"]
    return command + (["--config", str(config.absolute())] if config is not None else [])


def socket_path(state_path: Path) -> Path:
    """Where the server listens for its local worker: in the state directory, or below /tmp if that path is too long.

    The address of a Unix socket holds 107 bytes (unix(7), sun_path). It is the same for every process of that directory.
    """
    path = state_path / "rexec.sock"
    if len(os.fsencode(path)) <= 100:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path("/tmp") / f"rexec-{os.getuid()}-{name}" / path.name


def make_place(socket: Path, state_path: Path) -> None:
    """Make the directory of that socket if it is not the state directory. Raises OSError, also if it could be another user's:
    who has the socket tells the local worker what to run."""
    folder = socket.parent
    if folder == state_path:
        return
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(
            f"{folder}, for the socket of the local worker, is not a directory of this user alone;"
            " remove it, or choose a shorter state_dir"
        )


def remove(socket: Path, state_path: Path) -> None:
    """Remove the socket, and its directory if `make_place` made it."""
    with suppress(OSError):
        socket.unlink(missing_ok=True)  # gRPC removes it as well
        if socket.parent != state_path:
            socket.parent.rmdir()
