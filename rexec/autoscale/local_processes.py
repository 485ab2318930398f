"""Workers as processes of this machine: `rexec worker`, each in a work directory of its own.

Work directories have numbers, and a new process gets the lowest that is free: what earlier ones have fetched is there again.
What processes say goes to a file beside it, and on to this process's standard error; a file and no pipe, because a worker must
be able to write its last lines when this process is gone.

A process that this one has not been told to end and that ends with an error soon after its start cannot work here; its last
line says why. All of them end with this process: they are told who their parent is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import structlog

from rexec.autoscale.provider import Machine, Phase, Refused
from rexec.autoscale.settings import PoolSettings

log = structlog.get_logger()

Command = Callable[[PoolSettings, str, Path], Sequence[str]]
"""Makes the command line of a worker: its pool, its name and its work directory."""

AT_ONCE_SECONDS: Final = 30.0
"""A process that fails so soon did not fail for what it was given to do."""
LEAVE_SECONDS: Final = 15.0
"""After the second SIGTERM, which has a worker end its actions: as long as it may take for that before it is killed."""
FORWARD_SECONDS: Final = 1.0
"""How often what workers say is passed on."""
MAX_LOG_BYTES: Final = 1 << 20
"""Of one worker's file; then it begins anew."""
_LINE_BYTES: Final = 4096


@dataclass(slots=True)
class _Running:
    """One process."""

    machine: Machine
    place: int
    process: subprocess.Process
    output: Path
    started_at: float
    passed_on: int = 0
    """Bytes of its output."""
    ending: asyncio.Task[None] | None = None
    """What ends it."""
    waiting: asyncio.Task[None] | None = None
    """What waits for its end."""
    forgotten: bool = field(default=False)
    """It need not be listed when it has ended."""


class LocalProcesses:
    """A Provider (rexec/autoscale/provider.py). Used within one event loop."""

    def __init__(self, folder: Path, command: Command, sink: BinaryIO | None = None) -> None:
        """Work directories are FOLDER/POOL/worker-N. `sink` is given what workers say; default: standard error."""
        self._folder = folder
        self._command = command
        self._sink = sink
        self._processes: dict[str, _Running] = {}
        self._places: dict[str, set[int]] = {}
        """Numbers in use, by pool."""
        self.changed = asyncio.Event()
        self._stopping = False

    @property
    def problem(self) -> str:
        """Nothing ever is: this process knows its children."""
        return ""

    def machines(self) -> Mapping[str, Machine]:
        """See Provider."""
        return {name: running.machine for name, running in self._processes.items()}

    async def start(self, pool: PoolSettings, name: str, image: str = "") -> None:
        """Start a process. Raises Refused if the system has no room for it."""
        if name in self._processes:
            return
        if self._stopping:
            raise Refused("the server is stopping")
        places = self._places.setdefault(pool.name, set())
        place = next(number for number in range(1, len(places) + 2) if number not in places)
        places.add(place)
        work_dir = self._folder / pool.name / f"worker-{place}"
        output = work_dir.with_suffix(".log")
        try:
            process = await self._spawn(self._command(pool, name, work_dir), work_dir, output)
        except OSError as error:
            places.discard(place)
            raise Refused(f"a worker process cannot be started: {error}") from error
        except BaseException:
            places.discard(place)
            raise
        machine = Machine(name, pool.name, time.time(), Phase.RUNNING)
        running = _Running(machine, place, process, output, asyncio.get_running_loop().time())
        self._processes[name] = running
        running.waiting = asyncio.get_running_loop().create_task(self._wait(name, running), name=f"end of {name}")
        log.debug("worker process started", worker=name, pid=process.pid, work_dir=str(work_dir))
        self.changed.set()
        if self._stopping:  # meanwhile
            await self.remove(name, 0.0)

    async def remove(self, name: str, grace_seconds: float) -> None:
        """SIGTERM, after the grace another one, and at last SIGKILL. Returns at once."""
        running = self._processes.get(name)
        if running is None:
            return
        running.forgotten = True
        if running.machine.phase is Phase.ENDED:
            self._forget(name, running)
        elif running.ending is None:
            self._say(name, running, Phase.LEAVING)
            ending = self._end(name, running.process, grace_seconds)
            running.ending = asyncio.get_running_loop().create_task(ending, name=f"ending {name}")

    async def run(self) -> None:
        """Pass on what workers say."""
        while True:
            await asyncio.sleep(FORWARD_SECONDS)
            # Of one that has ended all is told, and its file may be another's by now.
            for running in [each for each in self._processes.values() if each.process.returncode is None]:
                await asyncio.to_thread(self._pass_on, running)

    async def stop(self, grace_seconds: float) -> None:
        """End all of them, and start no more; returns when they are gone."""
        self._stopping = True
        for name, running in list(self._processes.items()):
            if running.ending is not None:
                running.ending.cancel()  # it may have been given an hour
                running.ending = None
            await self.remove(name, grace_seconds)
        waiting = [running.waiting for running in self._processes.values() if running.waiting is not None]
        if waiting:
            await asyncio.wait(waiting)

    async def _spawn(self, command: Sequence[str], work_dir: Path, output: Path) -> subprocess.Process:
        def opened() -> int:
            work_dir.mkdir(parents=True, exist_ok=True)
            return os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)

        descriptor = await asyncio.to_thread(opened)
        try:
            # A session of its own: Ctrl-C at the terminal is for this process, which then ends them in its turn.
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)

    async def _wait(self, name: str, running: _Running) -> None:
        code = await running.process.wait()
        await asyncio.to_thread(self._pass_on, running)
        if running.ending is not None:
            running.ending.cancel()
        self._places[running.machine.pool].discard(running.place)
        if running.forgotten:
            self._forget(name, running)
            return
        lived = asyncio.get_running_loop().time() - running.started_at
        problem = _ending(code)
        if code:
            last = await asyncio.to_thread(last_line, running.output)
            problem = f"its process {problem}: {last}" if last else f"its process {problem}"
        hopeless = code > 0 and lived < AT_ONCE_SECONDS
        running.machine = Machine(
            name=name,
            pool=running.machine.pool,
            created_at=running.machine.created_at,
            phase=Phase.ENDED,
            problem=problem if code else "",
            hopeless=hopeless,
            exit_code=code,
        )
        self.changed.set()

    async def _end(self, name: str, process: subprocess.Process, grace_seconds: float) -> None:
        for patience_seconds in (grace_seconds, LEAVE_SECONDS):
            with suppress(ProcessLookupError):
                process.terminate()
            await asyncio.sleep(patience_seconds)
        log.warning("a worker process did not end in time and is killed", worker=name, pid=process.pid)
        with suppress(ProcessLookupError):
            process.kill()

    def _say(self, name: str, running: _Running, phase: Phase) -> None:
        machine = running.machine
        running.machine = Machine(name, machine.pool, machine.created_at, phase)
        self.changed.set()

    def _forget(self, name: str, running: _Running) -> None:
        if self._processes.get(name) is running:
            del self._processes[name]
        self.changed.set()

    def _pass_on(self, running: _Running) -> None:
        """Give the sink what a worker has said since the last time. In a thread."""
        sink = self._sink or sys.stderr.buffer
        with suppress(OSError), running.output.open("rb+") as file:
            # What is written meanwhile is for the next time: one that never stops must not keep this thread.
            size_bytes = os.fstat(file.fileno()).st_size
            file.seek(running.passed_on)
            while running.passed_on < size_bytes and (data := file.read(1 << 16)):
                running.passed_on += len(data)
                # A reader of ours that is gone, or a disk that is full, must not let the file grow.
                with suppress(OSError, ValueError):
                    sink.write(data)
            with suppress(OSError, ValueError):
                sink.flush()
            if running.passed_on >= MAX_LOG_BYTES:
                # What is said in this moment is lost; it is appended, so the rest comes at the beginning.
                file.truncate(0)
                running.passed_on = 0


def last_line(path: Path) -> str:
    """What a process said last that is not empty; "" if nothing. Blocks."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LINE_BYTES))
            lines = file.read(_LINE_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "").removeprefix("Error: ")


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
