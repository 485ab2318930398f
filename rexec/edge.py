"""What every process that answers calls has: its ports, who may call, health, reflection and metrics.

What can be wrong with the configuration is looked for first, so that a start that fails leaves nothing behind. Whoever depends
on a part is stopped before it: streams that wait are ended with UNAVAILABLE by the parts that keep them, then the ports
close, and no call has to be cut off.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.descriptor import ServiceDescriptor

from cas.file_lock import DirectoryUnusable
from protos.grpc.health.v1 import health_pb2
from protos.grpc.reflection.v1 import reflection_pb2
from protos.grpc.reflection.v1alpha import reflection_pb2 as reflection_alpha_pb2
from rexec import local
from rexec.address import host_and_port
from rexec.auth.authentication import Authentication
from rexec.auth.credentials import AuthUnusable
from rexec.config import Config, ServerSettings
from rexec.health import Health
from rexec.http_port import Figures, shown
from rexec.ports import CannotListen, require_free
from rexec.reflection import Reflection, ReflectionAlpha
from rexec.rpc import RpcServer
from rexec.state_directory import claimed
from rexec.telemetry import Telemetry
from rexec.tls import server_credentials

if TYPE_CHECKING:
    import grpc


class CannotServe(Exception):
    """The process cannot start; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Running:
    """A process that answers."""

    addresses: tuple[str, ...]
    """Where it is reached, "HOST:PORT"; as configured, with the real port where 0 was asked for."""
    socket: Path | None
    """Where its own user's processes reach it; None without a state directory."""
    health: Health
    services: tuple[ServiceDescriptor, ...]
    ends: asyncio.Future[str] | None = None
    """Set, with the reason, when the process must not go on; None if that cannot be."""
    metrics_port: int = 0
    """Where its HTTP port is; 0 without one."""


class Edge:
    """The ports of one process, and what there is to say about it. Services are added to `server`."""

    def __init__(self, config: Config, with_state: bool, with_ports: bool = True) -> None:
        """Raises AuthUnusable and OSError."""
        self._config = config
        self._with_state = with_state
        self._with_ports = with_ports
        self.metrics_port = 0
        """Of the HTTP port; 0 without one."""
        self.telemetry = Telemetry()
        self.authentication = Authentication(config.auth)
        self._credentials: grpc.ServerCredentials | None = server_credentials(config.server.tls)
        self.server = RpcServer(
            authenticate=self.authentication.identify,
            observer=self.telemetry,
            max_calls=config.server.max_calls,
            share_port=config.server.share_port,
        )
        self._health: Health | None = None
        """Set once calls are answered."""
        self.trouble: Callable[[], str] = str
        """Why the process is of no use although it answers calls; "" if it is."""

    def unready(self) -> str:
        """Why it takes no work, in words; "" if it does."""
        if self._health is None:
            return "the server is starting"
        return "the server is draining" if self._health.is_draining else self.trouble()

    @asynccontextmanager
    async def answering(self, *parts: AbstractAsyncContextManager[object]) -> AsyncIterator[Running]:
        """Answer calls meanwhile. `parts` keep streams that wait: entered before the first call, left before the ports close.

        Raises CannotServe.
        """
        health = self._add_diagnostics()
        socket = local.socket_path(self._config.state_path) if self._with_state else None
        async with AsyncExitStack() as stack:
            addresses = self._listen(socket)
            if socket is not None:
                stack.callback(local.remove, socket, self._config.state_path)
            stack.push_async_callback(self.server.stop, self._config.server.stop_seconds)
            for part in parts:
                await stack.enter_async_context(part)
            stack.callback(health.close)
            await self.server.start()
            self._health = health
            yield Running(addresses, socket, health, tuple(self.server.services), metrics_port=self.metrics_port)

    def _add_diagnostics(self) -> Health:
        """Add health, which probes ask without credentials, and reflection, which is answered like any other call."""
        server = self.server
        health = Health([service.full_name for service in server.services])
        server.add(health_pb2, "Health", health, open_to_all=True)
        own = [file.DESCRIPTOR.services_by_name["ServerReflection"] for file in (reflection_pb2, reflection_alpha_pb2)]
        reflection = Reflection([*server.services, *own])
        server.add(reflection_pb2, "ServerReflection", reflection)
        server.add(reflection_alpha_pb2, "ServerReflection", ReflectionAlpha(reflection))
        return health

    def _listen(self, socket: Path | None) -> tuple[str, ...]:
        addresses = []
        try:
            for address in self._config.server.listen if self._with_ports else ():
                host, _ = host_and_port(address)
                addresses.append(f"{host}:{self.server.listen(address, self._credentials)}")
            if socket is not None:
                local.make_place(socket, self._config.state_path)
                # The state directory is locked by now, so whoever left a socket there is gone.
                socket.unlink(missing_ok=True)
                # Made with its mode: who connects needs no credentials, and might before the mode is changed.
                mask = os.umask(0o177)
                try:
                    self.server.listen(f"unix:{socket}")
                finally:
                    os.umask(mask)
        except OSError as error:
            raise CannotServe(str(error)) from error
        return tuple(addresses)


@asynccontextmanager
async def opened_edge(config: Config, with_state: bool = True, with_ports: bool = True) -> AsyncIterator[Edge]:
    """An edge on which nothing answers yet but the HTTP port; `with_state` says whether the process has the state directory
    to itself, `with_ports` whether it listens elsewhere than on its Unix socket. Raises CannotServe."""
    async with AsyncExitStack() as stack:
        try:
            if with_ports:
                _require_ports(config.server)
            edge = Edge(config, with_state, with_ports)
            if with_state:
                stack.enter_context(claimed(config.state_path))
            if config.server.metrics_listen:
                # Before and after all that answers calls: it says why they are not answered.
                figures = Figures(edge.telemetry.registry, edge.telemetry.state, edge.unready)
                edge.metrics_port = stack.enter_context(shown(config.server.metrics_listen, figures))
            await stack.enter_async_context(edge.authentication.running())
        except (AuthUnusable, CannotListen, DirectoryUnusable, OSError) as error:
            raise CannotServe(str(error)) from error
        yield edge


def _require_ports(settings: ServerSettings) -> None:
    """Raises CannotListen if a port is not to be had; they are taken when the stores are open."""
    for address in settings.listen:
        require_free(address, "--listen, or [server] listen", settings.share_port)
    if settings.metrics_listen:
        require_free(settings.metrics_listen, "--metrics-listen, or [server] metrics_listen")
