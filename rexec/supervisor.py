"""`rexec serve --processes N`: a core and N frontends behind one port, and the local worker, each started again when it dies.

    core        the queue and its journal, the owner of the store; on a Unix socket in the state directory
    frontends   everything that clients call; they read and write the files of the store on disk themselves
    worker      attached to the core

This process answers nothing but the HTTP port, which shows what all of them count. It holds the clients' port without
listening on it, so that another server is refused there although the frontends share it (SO_REUSEPORT).

Stopped are those first on whom others do not depend: the frontends end their calls, the worker hands back what it runs, the
core writes down what is left. A part whose supervisor dies ends by itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import structlog

from rexec.address import host_and_port
from rexec.config import Config
from rexec.edge import CannotServe
from rexec.http_port import Figures, shown
from rexec.joint_figures import JointFigures
from rexec.kept_process import KeptProcess
from rexec.local import socket_path, worker_command
from rexec.ports import CannotListen, require_free

log = structlog.get_logger()

Ready = Callable[[tuple[str, ...]], None]


async def supervise(config: Config, config_file: Path | None, ready: Ready) -> None:
    """Serve with `config.processes` frontends until SIGINT or SIGTERM. Raises CannotServe."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        with ExitStack() as ports:
            addresses = tuple(ports.enter_context(_held(address)) for address in config.server.listen)
            if config.server.metrics_listen:
                require_free(config.server.metrics_listen, "--metrics-listen, or [server] metrics_listen")
            parts = _Parts(config, config_file, addresses)
            if config.server.metrics_listen:
                figures = Figures(parts.figures.registry, tuple, parts.unready)
                ports.enter_context(shown(config.server.metrics_listen, figures))
            async with parts.running(stop):
                if not stop.is_set():
                    ready(addresses)
                    await stop.wait()
                log.info("stopping")
                parts.stopping = True
    except (CannotListen, OSError) as error:
        raise CannotServe(str(error)) from error


class _Parts:
    """The processes."""

    def __init__(self, config: Config, config_file: Path | None, addresses: tuple[str, ...]) -> None:
        self._config = config
        server = socket_path(config.state_path)
        # Each has an HTTP port of its own on this machine, which only this process asks.
        metrics_listen = "127.0.0.1:0" if config.server.metrics_listen else ""
        own = msgspec.structs.replace(config.server, listen=addresses, share_port=True, metrics_listen=metrics_listen)
        for_core = msgspec.structs.replace(config, server=own)
        # The core is called through its socket, which needs no credentials, and is as patient as it takes to start again.
        frontend = msgspec.structs.replace(config.frontend, schedulers=(f"unix:{server}",))
        for_frontends = msgspec.structs.replace(for_core, frontend=frontend)
        own_file = ["--config", str(config_file.absolute())] if config_file is not None else []
        self._core = KeptProcess("core", [*_command("core"), *own_file], msgspec.json.encode(for_core))
        self._frontends = [
            KeptProcess(f"frontend {number}", _command("frontend"), msgspec.json.encode(for_frontends))
            for number in range(1, config.processes + 1)
        ]
        self._worker: KeptProcess | None = None
        if config.local_slots > 0:
            command = worker_command(
                f"unix:{server}", config.local_slots, config.state_path / "worker", config_file, config.worker.name
            )
            self._worker = KeptProcess("local worker", command)
        self.figures = JointFigures([self._core, *self._frontends])
        self.stopping = False

    def unready(self) -> str:
        """Why no calls are taken, in words; "" if they are."""
        if self.stopping:
            return "the server is draining"
        if self._core.told is None:
            return "the core is starting"
        if all(frontend.told is None for frontend in self._frontends):
            return "no frontend has started yet"
        return ""

    @asynccontextmanager
    async def running(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """All of them meanwhile, from when they answer, or `stop` is set. Raises CannotServe if one ends at its start."""
        grace_seconds = self._config.server.stop_seconds
        failure: CannotServe | None = None
        async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
            # Stopped in the reverse order.
            try:
                stack.push_async_callback(self._core.stop, grace_seconds)
                tasks.create_task(self._core.run(), name="core")
                await _first([self._core], stop)
                if self._worker is not None:
                    stack.push_async_callback(self._worker.stop, grace_seconds)
                    tasks.create_task(self._worker.run(), name="local worker")
                stack.push_async_callback(_stop_all, self._frontends, grace_seconds)
                for frontend in self._frontends:
                    tasks.create_task(frontend.run(), name=frontend.name)
                await _first(self._frontends, stop)
                yield
            except CannotServe as error:
                # Raised where no group of tasks wraps it.
                failure = error
        if failure is not None:
            raise failure


async def _first(parts: list[KeptProcess], stop: asyncio.Event) -> None:
    """Wait until each answers, or for `stop`. Raises CannotServe for one that ended; it has said why."""
    stopped: asyncio.Future[bool] = asyncio.ensure_future(stop.wait())
    try:
        for part in parts:
            waited: list[asyncio.Future[Any]] = [part.first, stopped]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                return
            if how := part.first.result():
                raise CannotServe(f"the {part.name} cannot start: {how}, see above")
    finally:
        stopped.cancel()


async def _stop_all(parts: list[KeptProcess], grace_seconds: float) -> None:
    async with asyncio.TaskGroup() as tasks:
        for part in parts:
            tasks.create_task(part.stop(grace_seconds))


def _command(role: str) -> list[str]:
    return [sys.executable, "-m", "rexec", "part", role, "--parent-pid", str(os.getpid())]


@contextmanager
def _held(address: str) -> Iterator[str]:
    """Have the port of "HOST:PORT" for the frontends meanwhile; gives the address with its real port. Raises CannotListen."""
    require_free(address, "--listen, or [server] listen")
    host, port = host_and_port(address)
    with ExitStack() as stack:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, where in found:
            holder = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            if family == socket.AF_INET6:
                holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Without SO_REUSEADDR: a server that asks whether the port is free must be told that it is not.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind((where[0], port, *where[2:]))
            port = holder.getsockname()[1]
        yield f"{host}:{port}"
