"""The local workers of `rexec serve`: a worker process beside the server, started again when it dies.

A process of its own and not a task of the server: what an action does to its worker (memory, file descriptors, a signal
to everyone) must not reach the clients' streams, and staging files must not take turns with answering calls.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

log = structlog.get_logger()

RESTART_SECONDS = 0.2
"""The pause before a dead worker is started again; doubled for each death in a row, up to MAX_RESTART_SECONDS."""
MAX_RESTART_SECONDS = 10.0
SETTLED_SECONDS = 30.0
"""A worker that lived for so long did not die of its start."""
LEAVE_SECONDS = 15.0
"""How long a worker may take to kill its actions (10 s for one stuck in the kernel) and hand them back. One that is killed
itself cannot do that, and its actions would run on without anyone."""


def worker_command(server: str, slots: int, work_dir: Path, config: Path | None, name: str = "") -> list[str]:
    """The command line of a local worker. `python -m rexec`, because the console script may not be on PATH.

    Without a `name` it gets one that stays the same from process to process: then the scheduler knows at once, by the new
    session of that name, that the old process and what it ran are gone.
    """
    command = [sys.executable, "-m", "rexec", "worker", "--server", server, "--slots", str(slots)]
    command += ["--work-dir", str(work_dir), "--parent-pid", str(os.getpid())]
    command += ["--name", name or f"{socket.gethostname()}-local"]
    return command + (["--config", str(config.absolute())] if config is not None else [])


class LocalWorker:
    """Keeps one worker process running until `stop`."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._starting = asyncio.Lock()
        """Held while a process is being started, so that `stop` cannot miss it."""

    async def run(self) -> None:
        """Start the process and start it again whenever it ends; returns after `stop`."""
        loop = asyncio.get_running_loop()
        pause = RESTART_SECONDS
        while not self._stopping.is_set():
            started = loop.time()
            async with self._starting:
                # A session of its own: Ctrl-C at the terminal goes to the server, which then drains its worker.
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
                )
            log.debug("local worker started", pid=self._process.pid)
            code = await self._process.wait()
            if self._stopping.is_set():
                return
            pause = RESTART_SECONDS if loop.time() - started > SETTLED_SECONDS else pause
            log.warning("local worker ended and is started again", exit=_meaning(code), in_seconds=pause)
            try:
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            except TimeoutError:
                pause = min(pause * 2, MAX_RESTART_SECONDS)

    async def stop(self, grace_seconds: float) -> None:
        """Let the worker drain (SIGTERM); after `grace_seconds` have it end its actions (SIGTERM again) and, if it does not
        do that, kill it."""
        self._stopping.set()
        async with self._starting:
            process = self._process
        if process is None or process.returncode is not None:
            return
        for patience_seconds in (grace_seconds, LEAVE_SECONDS):
            process.terminate()
            try:
                async with asyncio.timeout(patience_seconds):
                    await process.wait()
            except TimeoutError:
                log.warning("local worker is still there", pid=process.pid, after_seconds=patience_seconds)
            else:
                return
        log.warning("local worker did not end in time and is killed", pid=process.pid)
        process.kill()
        await process.wait()


def _meaning(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def socket_path(state_path: Path) -> Path:
    """Where the server listens for its local worker: below the state directory, or in /tmp if that path is too long.

    The address of a Unix socket holds 107 bytes (unix(7), sun_path).
    """
    path = state_path / "rexec.sock"
    if len(os.fsencode(path)) <= 100:
        return path
    return Path("/tmp") / f"rexec-{os.getuid()}-{os.getpid()}.sock"  # removed at the end of the server
