"""A process beside this one, started again when it dies: the local worker of `rexec serve`, and the parts of
`rexec serve --processes`."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog

log = structlog.get_logger()

RESTART_SECONDS = 0.2
"""The pause before a dead process is started again; doubled for each death in a row, up to MAX_RESTART_SECONDS."""
MAX_RESTART_SECONDS = 10.0
SETTLED_SECONDS = 30.0
"""A process that lived for so long did not die of its start."""
LEAVE_SECONDS = 15.0
"""How long a worker may take to kill its actions (10 s for one stuck in the kernel) and hand them back. One that is killed
itself cannot do that, and its actions would run on without anyone."""
SILENT_SECONDS: Final = 60.0
"""A process that has told what it is, and then nothing for so long, hangs: it says every few seconds that it lives
(rexec/part_command.py). Longer than a machine may be too busy to let it."""
LOOP_DEATHS: Final = 4
"""So many deaths in a row are no accident any more, and are told as an error."""


class KeptProcess:
    """Keeps one process running until `stop`, or until it leaves with exit status 0: a worker that was drained.

    A process that is `given` something reads it from its standard input, and tells on its standard output, in one line of
    JSON, what those beside it need to know, as soon as it is of use: `told` has it meanwhile. From then on it says empty ones, to
    show that it lives, and is killed when it does not. Any other is never `told`.
    """

    def __init__(
        self, name: str, command: Sequence[str], given: bytes | None = None, *, silent_seconds: float = SILENT_SECONDS
    ) -> None:
        self.name = name
        self._command = tuple(command)
        self._given = given
        self._silent_seconds = silent_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._starting = asyncio.Lock()
        """Held while a process is being started, so that `stop` cannot miss it."""
        self.told: dict[str, object] | None = None
        """What the process that runs now has told; None while it has not."""
        self.first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """How the first start went: "" once it has told something, else how it ended."""

    async def run(self) -> None:
        """Start the process and start it again whenever it dies; returns after `stop`, when a process that is `given` something
        ends before it has ever told anything, and when another one ends with exit status 0."""
        loop = asyncio.get_running_loop()
        pause, deaths = RESTART_SECONDS, 0
        while not self._stopping.is_set():
            started = loop.time()
            pipe = asyncio.subprocess.DEVNULL if self._given is None else asyncio.subprocess.PIPE
            try:
                async with self._starting:
                    # A session of its own: Ctrl-C at the terminal goes to the server, which then stops it in its turn.
                    self._process = await asyncio.create_subprocess_exec(
                        *self._command,
                        stdin=pipe,
                        stdout=None if self._given is None else pipe,
                        start_new_session=True,
                    )
            except OSError as reason:
                # No memory or no process to be had: that passes, and must not end the others.
                code, ending = None, f"cannot be started: {reason}"
            else:
                log.debug(f"{self.name} started", pid=self._process.pid)
                if self._given is not None:
                    await self._converse(self._process, self._given)
                code = await self._process.wait()
                ending = _meaning(code)
            self.told = None
            if not self.first.done():
                self.first.set_result(ending)
                if self._given is not None:
                    return  # it cannot start, and has said why
            if self._stopping.is_set():
                return
            if code == 0 and self._given is None:
                log.warning(f"{self.name} has left, as it was told to; it comes back when this server is started again")
                return
            if loop.time() - started > SETTLED_SECONDS:
                pause, deaths = RESTART_SECONDS, 0
            deaths += 1
            if deaths < LOOP_DEATHS:
                log.warning(f"{self.name} ended and is started again", exit=ending, in_seconds=pause)
            else:
                log.error(
                    f"{self.name} ends again and again, see what it says above",
                    exit=ending,
                    times=deaths,
                    in_seconds=pause,
                )
            try:
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            except TimeoutError:
                pause = min(pause * 2, MAX_RESTART_SECONDS)

    async def _converse(self, process: asyncio.subprocess.Process, given: bytes) -> None:
        """Give the process its input, and hear what it tells; returns when it has closed its output."""
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(ConnectionError):
            process.stdin.write(given)
            await process.stdin.drain()
        with suppress(OSError):
            process.stdin.close()
        while True:
            try:
                async with asyncio.timeout(None if self.told is None else self._silent_seconds):
                    line = await _line_of(process.stdout)
            except TimeoutError:
                log.error(f"{self.name} hangs and is killed", pid=process.pid, silent_seconds=self._silent_seconds)
                with suppress(ProcessLookupError):
                    process.kill()
                return
            if not line:
                return
            try:
                told = json.loads(line)
            except ValueError:
                told = None
            if not isinstance(told, dict):
                log.info(f"{self.name} says", line=line[:1000].decode(errors="replace").rstrip())
                continue
            if not told:
                continue  # it lives
            self.told = told
            if not self.first.done():
                self.first.set_result("")

    async def stop(self, grace_seconds: float) -> None:
        """Let the process drain (SIGTERM); after `grace_seconds` have it end its actions (SIGTERM again) and, if it does not
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
                log.warning(f"{self.name} is still there", pid=process.pid, after_seconds=patience_seconds)
            else:
                return
        log.warning(f"{self.name} did not end in time and is killed", pid=process.pid)
        process.kill()
        await process.wait()


async def _line_of(output: asyncio.StreamReader) -> bytes:
    """The next line, empty at the end; of one that is longer than the reader's limit (64 KiB) a blank line is left."""
    try:
        return await output.readline()
    except ValueError:
        return b"\n"


def _meaning(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
