"""The messages to workers, made from the queue's values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.command import ORDINARY
from rexec.scheduler.scheduler import Run
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate, HeldLease


def welcome(
    worker_id: str,
    resumed: Iterable[HeldLease],
    unknown: Iterable[HeldLease],
    settings: SchedulerSettings,
    heartbeat_seconds: float,
) -> worker_pb2.ToWorker:
    """The answer to Hello; the worker is to say so often that it lives."""
    message = worker_pb2.Welcome(
        worker_id=worker_id,
        resumed=[worker_pb2.HeldLease(lease_id=held.lease_id, epoch=held.epoch) for held in resumed],
        unknown=[worker_pb2.HeldLease(lease_id=held.lease_id, epoch=held.epoch) for held in unknown],
    )
    message.heartbeat_interval.FromMilliseconds(round(heartbeat_seconds * 1000))
    message.grace.FromMilliseconds(round(settings.grace_seconds * 1000))
    return worker_pb2.ToWorker(welcome=message)


def lease(task_id: str, lease_id: str, epoch: int, candidate: Candidate, memory_bytes: int = 0) -> worker_pb2.ToWorker:
    """A task to run. The candidate's payload is a `Run`. `memory_bytes` is what it may take of the worker, if that is neither
    what it asks for nor what its slots stand for."""
    run = cast(Run, candidate.payload)
    message = worker_pb2.Lease(
        lease_id=lease_id,
        epoch=epoch,
        task_id=task_id,
        instance_name=candidate.instance_name,
        digest_function=candidate.action_digest.function.value,
        action_digest=candidate.action_digest.to_proto(),
        action=run.action,
        command=run.command,
        request_metadata=run.request_metadata,
    )
    demand = candidate.demand
    if demand != ORDINARY:
        message.demand.slots = demand.slots
        message.demand.cpu_millis = demand.cpu_millis
        message.demand.memory_bytes = demand.memory_bytes
    if memory_bytes:
        message.demand.slots = demand.slots
        message.demand.memory_bytes = memory_bytes
    message.timeout.FromNanoseconds(round(candidate.timeout_seconds * 1e9))
    message.queued_timestamp.FromNanoseconds(round(run.queued_at * 1e9))
    return worker_pb2.ToWorker(lease=message)


def revoke(lease_id: str, epoch: int, reason: str) -> worker_pb2.ToWorker:
    """Stop a lease."""
    return worker_pb2.ToWorker(revoke=worker_pb2.Revoke(lease_id=lease_id, epoch=epoch, reason=reason))


def acknowledged(lease_id: str, epoch: int) -> worker_pb2.ToWorker:
    """Forget a lease."""
    return worker_pb2.ToWorker(acknowledged=worker_pb2.Acknowledged(lease_id=lease_id, epoch=epoch))


def drain(grace_seconds: float, reason: str, hand_back: Iterable[HeldLease] = ()) -> worker_pb2.ToWorker:
    """Leave when the leases have ended, and hand these back at once."""
    message = worker_pb2.Drain(
        reason=reason, hand_back=[worker_pb2.HeldLease(lease_id=held.lease_id, epoch=held.epoch) for held in hand_back]
    )
    message.grace.FromMilliseconds(round(grace_seconds * 1000))
    return worker_pb2.ToWorker(drain=message)
