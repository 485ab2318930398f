"""The scheduler of a process: the queue, its journal, and the services that workers and frontends talk to.

`rexec serve` has one beside the services for clients, `rexec scheduler` has one for frontends elsewhere.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from protos.keda import externalscaler_pb2
from protos.rexec.scheduler.v1 import autoscaling_pb2, fleet_pb2, frontends_pb2, status_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.autoscale_telemetry import AutoscaleTelemetry
from rexec.autoscaling import CannotScale, autoscaling
from rexec.autoscaling_source import BrokerSource
from rexec.config import Config
from rexec.edge import CannotServe, Edge, Running
from rexec.keda import ExternalScalerService
from rexec.local_pools import autoscaling_of
from rexec.scheduler.autoscaling_service import AutoscalingService
from rexec.scheduler.broker import Broker
from rexec.scheduler.clock import Clock
from rexec.scheduler.fleet_service import FleetService
from rexec.scheduler.frontends import FrontendsService
from rexec.scheduler.inputs import InputRoots
from rexec.scheduler.journal import Journal
from rexec.scheduler.results import Results
from rexec.scheduler.status import StatusService
from rexec.scheduler.workers import WorkersService
from rexec.stores import Held


class Core:
    """A broker and its services, added to the edge's server."""

    def __init__(
        self, edge: Edge, config: Config, held: Held, inputs: InputRoots, clock: Clock, journal: Journal | None
    ) -> None:  # fmt: skip
        """`journal` is what this process has come to lead with (rexec/leading.py)."""
        self._edge = edge
        self._used_bytes: Callable[[], int] = held.used_bytes
        results = Results(held.instances, inputs, clock)
        self.broker = Broker(config.scheduler, results, clock=clock, observer=edge.telemetry, journal=journal)
        workers = WorkersService(self.broker)
        generation = journal.generation if journal is not None else 0
        self._frontends = FrontendsService(
            held.instances,
            self.broker,
            workers,
            clock,
            name=socket.gethostname(),
            generation=generation,
            observer=edge.telemetry,
        )
        edge.server.add(worker_pb2, "Workers", workers)
        edge.server.add(frontends_pb2, "Frontends", self._frontends)
        edge.server.add(status_pb2, "Status", StatusService(self.broker.status))
        edge.server.add(fleet_pb2, "Fleet", FleetService(self.broker))
        edge.server.add(autoscaling_pb2, "Autoscaling", AutoscalingService(self.broker))
        edge.server.add(externalscaler_pb2, "ExternalScaler", ExternalScalerService(self.broker))

    @asynccontextmanager
    async def pools(self, config: Config, config_file: Path | None, socket: Path) -> AsyncIterator[None]:
        """Keep the pools of workers that are configured meanwhile, if any are. Workers of this machine connect at the Unix
        socket. Raises CannotServe."""
        if not autoscaling_of(config).pools:
            yield
            return
        observer = AutoscaleTelemetry(self._edge.telemetry.registry)
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(
                    autoscaling(
                        config, config_file, f"unix:{socket}", BrokerSource(self.broker), observer, keeps_state=True
                    )
                )
            except CannotScale as error:
                raise CannotServe(str(error)) from error
            yield

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[Running]:
        """Take calls meanwhile; those that wait are told at the end to come back."""
        async with self._edge.answering(self.broker, self._frontends) as running:
            self._edge.telemetry.watch(self.broker.snapshot, self._used_bytes)
            yield replace(running, ends=self.broker.lost)
