"""A lease is made, taken back, or let go of. Every grant has a higher epoch than the last one of its task."""

from __future__ import annotations

from rexec.scheduler import events as e
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Hold, Lease, Owner, Stage, Task, Worker


def held(state: QueueState, worker_id: str, lease_id: str, epoch: int) -> Lease | None:
    """The lease that a worker speaks of, if it is his."""
    lease = state.leases.get(lease_id)
    return lease if lease is not None and lease.epoch == epoch and lease.worker.worker_id == worker_id else None


def grant(state: QueueState, task: Task, worker: Worker, owner: Owner) -> None:
    """Give a task that waits no more to a worker that has room; it is charged to the owner, one of those who wait for it."""
    task.epoch += 1
    lease = Lease(f"{task.task_id}.{task.epoch}", task.epoch, task, worker, started=worker.free_slots >= task.need.slots)
    task.lease = state.leases[lease.lease_id] = worker.leases[lease.lease_id] = lease
    worker.credit -= 1
    worker.sent += 1
    state.fleet.occupy(lease, owner)
    state.fleet.update(worker)
    if lease.started:
        state.accounts.began(lease, state.now)
        state.set_stage(task, Stage.EXECUTING)
    attempt = len(task.losses) + 1
    state.effects.append(e.LeaseGranted(worker.worker_id, task.task_id, lease.lease_id, lease.epoch, attempt))


def drop(state: QueueState, lease: Lease) -> None:
    """The worker does not have the lease any more."""
    worker = lease.worker
    state.accounts.released(lease, state.now)
    state.fleet.vacate(lease)
    del state.leases[lease.lease_id]
    del worker.leases[lease.lease_id]
    worker.settling -= lease.hold is Hold.SETTLING
    if lease.task.lease is lease:
        lease.task.lease = None
    state.touch(worker)


def revoke(state: QueueState, lease: Lease, reason: str) -> None:
    """The task needs the lease no more; the worker keeps it until it says otherwise."""
    lease.task.lease = None
    if lease.hold is Hold.SETTLING:
        return  # its worker is done already; the report that is being checked finds no task
    lease.hold = Hold.REVOKED
    state.effects.append(e.LeaseRevoked(lease.worker.worker_id, lease.lease_id, lease.epoch, reason))
