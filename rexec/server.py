"""The server: builds every part from the configuration, in the order in which they need each other, and stops them in the
reverse of it.

    stores -> uploads, scheduler -> services -> ports -> local worker

Whoever depends on a part is stopped before it: the local worker hands back its leases while the scheduler still listens,
and the stores are closed last.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog
from google.longrunning import operations_proto_pb2
from google.protobuf.descriptor import ServiceDescriptor

from cas.config import StoreSettings
from cas.file_lock import DirectoryUnusable
from cas.instances import Instance, Instances
from cas.services.action_cache import ActionCacheService
from cas.services.asset import FetchService, PushService
from cas.services.bytestream import ByteStream
from cas.services.capabilities import PRIORITIES, Capabilities
from cas.services.cas import ContentAddressableStorage
from cas.stores import directory_of, open_stores
from cas.uploads import Uploads
from protos.build.bazel.remote.asset.v1 import remote_asset_pb2
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2
from protos.grpc.health.v1 import health_pb2
from protos.grpc.reflection.v1 import reflection_pb2
from protos.grpc.reflection.v1alpha import reflection_pb2 as reflection_alpha_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.address import host_and_port
from rexec.assets import FetchUnusable, open_assets
from rexec.auth.authentication import Authentication
from rexec.auth.credentials import AuthUnusable
from rexec.config import Config, ServerSettings
from rexec.descriptors import max_uploads, raised
from rexec.health import Health
from rexec.http_port import Figures, shown
from rexec.local import LocalWorker, socket_path, worker_command
from rexec.ports import CannotListen, require_free
from rexec.reflection import Reflection, ReflectionAlpha
from rexec.rpc import RpcServer
from rexec.scheduler.admission import Admission
from rexec.scheduler.broker import Broker
from rexec.scheduler.clock import SystemClock
from rexec.scheduler.execution import ExecutionService
from rexec.scheduler.inputs import InputRoots
from rexec.scheduler.log_streams import LogStreams
from rexec.scheduler.operations import OperationsService
from rexec.scheduler.results import Results
from rexec.scheduler.workers import WorkersService
from rexec.state_directory import claimed
from rexec.telemetry import Telemetry
from rexec.tls import server_credentials

if TYPE_CHECKING:
    import grpc

log = structlog.get_logger()

NODE_PROPERTIES = ("mtime", "unix_mode")
"""What workers apply to inputs and report of outputs (REAPI, ExecutionCapabilities.supported_node_properties)."""


class CannotServe(Exception):
    """The server cannot start; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    addresses: tuple[str, ...]
    """Where clients reach it, "HOST:PORT"; as configured, with the real port where 0 was asked for."""
    socket: Path
    """Where its local worker reaches it."""
    health: Health
    services: tuple[ServiceDescriptor, ...]


class _Readiness:
    """Whether the server takes calls, in words."""

    health: Health | None = None
    """Set once calls are answered."""

    def unready(self) -> str:
        """Why it does not; "" if it does."""
        if self.health is None:
            return "the server is starting"
        return "the server is draining" if self.health.is_draining else ""


async def serve(config: Config, config_file: Path | None, ready: Callable[[tuple[str, ...]], None]) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is told the addresses once calls are answered. Raises CannotServe."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running(config) as server, AsyncExitStack() as stack:
        if config.local_slots > 0:
            await stack.enter_async_context(_local_worker(config, config_file, server.socket))
        ready(server.addresses)
        await stop.wait()
        log.info("stopping")
        server.health.drain()


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Running]:
    """A server of this configuration without local workers, until the block ends. Raises CannotServe."""
    telemetry = Telemetry()
    readiness = _Readiness()
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        try:
            # What can be wrong with the configuration is looked for first: a start that fails leaves nothing behind.
            _require_ports(config.server)
            authentication = Authentication(config.auth)
            credentials = server_credentials(config.server.tls)
            stack.enter_context(claimed(config.state_path))
            if config.server.metrics_listen:
                # Before and after all that answers calls: it says why they are not answered.
                figures = Figures(telemetry.registry, telemetry.state, readiness.unready)
                stack.enter_context(shown(config.server.metrics_listen, figures))
            await stack.enter_async_context(authentication.running())
            stores = await stack.enter_async_context(open_stores(_placed(config)))
        except (AuthUnusable, CannotListen, DirectoryUnusable, OSError) as error:
            raise CannotServe(str(error)) from error
        instances = Instances(
            Instance(name, stores.blobs, stores.action_cache) for name in config.server.instance_names
        )
        uploads = await stack.enter_async_context(Uploads(max_uploads=max_uploads(raised())))
        fetch, push = await stack.enter_async_context(_assets(config, instances))
        inputs = InputRoots(config.scheduler, clock)
        broker = Broker(config.scheduler, Results(instances, inputs, clock), clock=clock, observer=telemetry)

        server = RpcServer(
            authenticate=authentication.identify,
            observer=telemetry,
            max_calls=config.server.max_calls,
            share_port=config.server.share_port,
        )
        admission = Admission(config.scheduler, inputs, clock)
        execution = ExecutionService(instances, broker, admission, config.scheduler, observer=telemetry)
        operations = OperationsService(instances, broker, config.scheduler, clock)
        max_blob_bytes = config.store.max_blob_bytes
        server.add(
            re_pb2, "Capabilities", Capabilities(instances, lambda _context: _execution_capabilities(), max_blob_bytes)
        )
        server.add(re_pb2, "ContentAddressableStorage", ContentAddressableStorage(instances, max_blob_bytes))
        server.add(re_pb2, "ActionCache", ActionCacheService(instances))
        server.add(
            bytestream_pb2,
            "ByteStream",
            ByteStream(instances, uploads, max_blob_bytes, others=[LogStreams(instances, broker)]),
        )
        server.add(re_pb2, "Execution", execution)
        server.add(operations_proto_pb2, "Operations", operations)
        server.add(worker_pb2, "Workers", WorkersService(broker))
        server.add(remote_asset_pb2, "Fetch", fetch)
        server.add(remote_asset_pb2, "Push", push)
        health = _add_diagnostics(server)

        socket = socket_path(config.state_path)
        addresses = _listen(server, config, socket, credentials)
        stack.callback(_remove, socket)
        stack.push_async_callback(server.stop, config.server.stop_seconds)
        # Stopped before the ports: that ends the streams that wait, with UNAVAILABLE, and no call has to be cut off.
        await stack.enter_async_context(broker)
        telemetry.watch(broker.snapshot, stores.used_bytes)
        stack.callback(health.close)
        await server.start()
        readiness.health = health
        yield Running(addresses, socket, health, tuple(server.services))


def _require_ports(settings: ServerSettings) -> None:
    """Raises CannotListen if a port is not to be had; they are taken when the stores are open."""
    for address in settings.listen:
        require_free(address, "--listen, or [server] listen", settings.share_port)
    if settings.metrics_listen:
        require_free(settings.metrics_listen, "--metrics-listen, or [server] metrics_listen")


def _add_diagnostics(server: RpcServer) -> Health:
    """Add health, which probes ask without credentials, and reflection, which is answered like any other call."""
    health = Health([service.full_name for service in server.services])
    server.add(health_pb2, "Health", health, open_to_all=True)
    own = [file.DESCRIPTOR.services_by_name["ServerReflection"] for file in (reflection_pb2, reflection_alpha_pb2)]
    reflection = Reflection([*server.services, *own])
    server.add(reflection_pb2, "ServerReflection", reflection)
    server.add(reflection_alpha_pb2, "ServerReflection", ReflectionAlpha(reflection))
    return health


def _placed(config: Config) -> StoreSettings:
    """The store's settings, with its place filled in."""
    if config.store.directory:
        return config.store
    return msgspec.structs.replace(config.store, directory=str(config.state_path))


@asynccontextmanager
async def _assets(config: Config, instances: Instances) -> AsyncIterator[tuple[FetchService, PushService]]:
    """Remote Asset, remembered beside the action results. Raises CannotServe."""
    directory = None if config.store.kind == "memory" else directory_of(_placed(config))
    async with AsyncExitStack() as stack:
        try:
            assets = open_assets(config.assets, instances, directory, config.state_path / "fetch")
            services = await stack.enter_async_context(assets)
        except (DirectoryUnusable, FetchUnusable, OSError) as error:
            raise CannotServe(str(error)) from error
        yield services


def _listen(
    server: RpcServer, config: Config, socket: Path, credentials: grpc.ServerCredentials | None
) -> tuple[str, ...]:
    addresses = []
    try:
        for address in config.server.listen:
            host, _ = host_and_port(address)
            addresses.append(f"{host}:{server.listen(address, credentials)}")
        # The state directory is locked by now, so whoever left a socket there is gone.
        socket.unlink(missing_ok=True)
        server.listen(f"unix:{socket}")
    except OSError as error:
        raise CannotServe(str(error)) from error
    socket.chmod(0o600)
    return tuple(addresses)


def _remove(socket: Path) -> None:
    with suppress(OSError):
        socket.unlink()


def _execution_capabilities() -> re_pb2.ExecutionCapabilities:
    return re_pb2.ExecutionCapabilities(
        exec_enabled=True, execution_priority_capabilities=PRIORITIES, supported_node_properties=NODE_PROPERTIES
    )


@asynccontextmanager
async def _local_worker(config: Config, config_file: Path | None, socket: Path) -> AsyncIterator[None]:
    """The local worker, drained at the end of the block."""
    command = worker_command(
        f"unix:{socket}", config.local_slots, config.state_path / "worker", config_file, config.worker.name
    )
    worker = LocalWorker(command)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run(), name="local worker")
        try:
            yield
        finally:
            await worker.stop(config.server.stop_seconds)
