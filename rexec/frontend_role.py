"""`rexec frontend`: all services for clients in a process that keeps nothing, as many of them as clients need.

The queue is the scheduler's, and so is the store unless [store] names another server. Workers may attach here; their streams
are passed on.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from google.protobuf.message import Message

from cas.context import RequestContext
from cas.errors import NotAllowed
from cas.instances import Instances
from protos.build.bazel.remote.asset.v1 import remote_asset_pb2
from protos.keda import externalscaler_pb2
from protos.rexec.scheduler.v1 import fleet_pb2, status_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec import __version__
from rexec.config import Config
from rexec.connection import CannotConnect
from rexec.edge import CannotServe, Running, opened_edge
from rexec.keda import RelayedScaler
from rexec.relay import Check, Relayed, RelayedWorkers
from rexec.scheduler.clock import SystemClock
from rexec.scheduler.fleet_service import checked
from rexec.scheduler.inputs import InputRoots
from rexec.scheduler.remote import RemoteScheduler
from rexec.scheduler.status import narrowed
from rexec.scheduler_channel import dial_over
from rexec.services import offer_cache, offer_execution
from rexec.stores import StoreUnusable, open_held, remote_held


@asynccontextmanager
async def running_frontend(config: Config, beside_core: bool = False) -> AsyncIterator[Running]:
    """A frontend of this configuration, until the block ends; one that is beside the core of `rexec serve --processes` uses
    its store on disk directly. Raises CannotServe."""
    clock = SystemClock()
    async with opened_edge(config, with_state=False) as edge, AsyncExitStack() as stack:
        try:
            scheduler = _scheduler(config, clock)
            if (config.store.kind == "remote" and config.store.address) or config.store.kind == "sharded":
                opened = open_held(config)
            elif config.store.kind == "objects" and not beside_core:
                opened = open_held(config, "without")
            elif beside_core and config.store.kind in ("disk", "objects"):
                opened = open_held(config, "guest")
            else:
                opened = remote_held(
                    config, config.frontend.schedulers, config.connection, lambda: scheduler.connection.place
                )
            held = await stack.enter_async_context(opened)
        except (CannotConnect, StoreUnusable, ValueError) as error:
            raise CannotServe(str(error)) from error
        inputs = InputRoots(config.scheduler, clock)
        others = offer_execution(edge, config, held, scheduler, inputs, clock)
        await stack.enter_async_context(offer_cache(edge.server, config, held, executes=True, others=others))
        assets = _may_use_assets(held.instances)
        for service in ("Fetch", "Push"):
            edge.server.add(remote_asset_pb2, service, Relayed(remote_asset_pb2, service, scheduler.connection, assets))
        edge.server.add(status_pb2, "Status", Relayed(status_pb2, "Status", scheduler.connection, _narrow))
        edge.server.add(fleet_pb2, "Fleet", Relayed(fleet_pb2, "Fleet", scheduler.connection, _may_operate))
        edge.server.add(externalscaler_pb2, "ExternalScaler", RelayedScaler(scheduler.connection))
        edge.server.add(worker_pb2, "Workers", RelayedWorkers(scheduler.connection))
        edge.trouble = scheduler.connection.trouble
        yield await stack.enter_async_context(edge.answering(scheduler))


def _scheduler(config: Config, clock: SystemClock) -> RemoteScheduler:
    """Raises CannotConnect and ValueError."""
    settings = config.frontend
    if not settings.schedulers:
        raise ValueError("no scheduler is named (--scheduler, or [frontend] schedulers)")
    return RemoteScheduler(
        [dial_over(server, config.connection) for server in settings.schedulers],
        name=settings.name or f"{socket.gethostname()}-{os.getpid()}",
        version=__version__,
        wait_seconds=settings.wait_seconds,
        keepalive_seconds=config.scheduler.keepalive_seconds,
        clock=clock,
    )


def _narrow(_method: str, request: Message, context: RequestContext) -> None:
    """As StatusService does it."""
    narrowed(request, context.identity)  # type: ignore[type-var]  # one of the three requests of the service


def _may_operate(_method: str, request: Message, context: RequestContext) -> None:
    """As FleetService does it."""
    assert isinstance(request, fleet_pb2.DrainWorkersRequest)
    checked(request, context.identity)


def _may_use_assets(instances: Instances) -> Check:
    """Who may fetch and push, as FetchService and PushService see it."""

    def check(method: str, request: Message, context: RequestContext) -> None:
        if method.startswith("Push") and not context.identity.may_update_action_cache:
            raise NotAllowed("not allowed")
        instances.readable(getattr(request, "instance_name", ""), context.identity)

    return check
