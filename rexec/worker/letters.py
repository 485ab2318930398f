"""The messages to the scheduler, made from what an agent knows."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.action import ActionContext
from rexec.worker.held_leases import HeldLease, HeldLeases
from rexec.worker.machine import offered_properties

MAX_GRACE_SECONDS = 7 * 86400.0
"""A longer grace is told as this."""


def hello(
    context: ActionContext, session_id: str, resources: Mapping[str, int], leases: HeldLeases
) -> worker_pb2.FromWorker:
    """The first one: what the worker offers, and what it holds."""
    settings = context.settings
    try:
        software = version("rexec")
    except PackageNotFoundError:
        software = "unknown"
    said = worker_pb2.Hello(
        worker_name=settings.worker_name,
        session_id=session_id,
        slots=settings.slots,
        properties=[
            re_pb2.Platform.Property(name=name, value=value)
            for name, value in offered_properties(settings.properties, context.isolation.offered)
        ],
        resources=resources,
        software_version=software,
        held=[held.to_proto() for held in leases if not held.is_unwanted],
        instance_names=settings.instance_names,
    )
    return worker_pb2.FromWorker(hello=said)


def draining(reason: str, left_seconds: float) -> worker_pb2.FromWorker:
    """It leaves, within so many seconds."""
    said = worker_pb2.Draining(reason=reason)
    said.grace.FromMilliseconds(round(min(max(0.0, left_seconds), MAX_GRACE_SECONDS) * 1000))
    return worker_pb2.FromWorker(draining=said)


def progress(held: HeldLease) -> worker_pb2.FromWorker:
    """How far a lease is."""
    said = worker_pb2.Progress(
        lease_id=held.key.lease_id, epoch=held.key.epoch, phase=held.phase, partial_metadata=held.metadata
    )
    return worker_pb2.FromWorker(progress=said)


def stopped(lease_id: str, epoch: int, failure: worker_pb2.Finished.Failure, reason: str) -> worker_pb2.Finished:
    """A lease has ended without a result."""
    return worker_pb2.Finished(lease_id=lease_id, epoch=epoch, failure=failure, message=reason)
