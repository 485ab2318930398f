"""A lease is made, taken back, or let go of. Every grant has a higher epoch than the last one of its task."""

from __future__ import annotations

from rexec.scheduler import events as e
from rexec.scheduler.deadlines import Due
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Hold, Lease, Owner, Stage, Standing, Task, Worker


def held(state: QueueState, worker_id: str, lease_id: str, epoch: int) -> Lease | None:
    """The lease that a worker speaks of, if it is his."""
    lease = state.leases.get(lease_id)
    return lease if lease is not None and lease.epoch == epoch and lease.worker.worker_id == worker_id else None


def grant(state: QueueState, task: Task, worker: Worker, owner: Owner, *, hedge: bool = False) -> None:
    """Give a task that waits no more to a worker that has room; it is charged to the owner, one of those who wait for it.
    `hedge`: one that runs gets a second lease."""
    task.epoch += 1
    started = worker.free_slots >= task.need.slots
    lease = Lease(f"{task.task_id}.{task.epoch}", task.epoch, task, worker, started)
    state.leases[lease.lease_id] = worker.leases[lease.lease_id] = lease
    if hedge:
        task.hedge, task.hedged = lease, True
        state.hedges += 1
    else:
        task.lease = lease
    if worker.standing is Standing.ON_TRIAL:
        worker.trial = lease
    watch(state, lease)
    worker.credit -= 1
    worker.sent += 1
    state.fleet.occupy(lease, owner)
    state.fleet.update(worker)
    if lease.started:
        state.accounts.began(lease, state.now)
        state.set_stage(task, Stage.EXECUTING)
    attempt = len(task.losses) + 1
    memory_bytes = lease.use.memory_bytes if lease.use is not None and not lease.use.plain else 0
    state.effects.append(
        e.LeaseGranted(worker.worker_id, task.task_id, lease.lease_id, lease.epoch, attempt, hedge, memory_bytes)
    )


def watch(state: QueueState, lease: Lease) -> None:
    """From now on the worker is expected to get on with the lease (rexec/scheduler/patience.py)."""
    lease.granted_at = state.now
    lease.due_at = state.now if lease.started else None
    state.deadlines.add(state.now + state.settings.answer_seconds, Due.LEASE_WATCHED, lease.lease_id)


def drop(state: QueueState, lease: Lease) -> None:
    """The worker does not have the lease any more."""
    worker = lease.worker
    made_room = lease.use is not None or worker.trial is lease  # else its report has done so
    if lease.use is not None:
        state.accounts.released(lease, state.now)
        state.fleet.vacate(lease)
    del state.leases[lease.lease_id]
    del worker.leases[lease.lease_id]
    if not worker.leases:
        worker.idle_since = state.now
    worker.settling -= lease.hold is Hold.SETTLING
    if worker.trial is lease:
        worker.trial = None
    _count_no_more(state, lease)
    if made_room:
        state.touch(worker)


def revoke(state: QueueState, lease: Lease, reason: str) -> None:
    """The task needs the lease no more; the worker keeps it until it says otherwise."""
    _count_no_more(state, lease)
    if lease.hold is Hold.SETTLING:
        return  # its worker is done already; the report that is being checked finds no task
    lease.hold = Hold.REVOKED
    state.effects.append(e.LeaseRevoked(lease.worker.worker_id, lease.lease_id, lease.epoch, reason))


def _count_no_more(state: QueueState, lease: Lease) -> None:
    """The lease is of no use to its task any more; if there are two, the other one is what the task has."""
    task = lease.task
    if not task.counts_on(lease):
        return
    if task.hedge is None:
        task.lease = None
        return
    if task.lease is lease:  # who looks on sees the other run from here on
        task.lease = task.hedge
        state.effects += [e.OperationChanged(name) for name in task.operations]
    task.hedge = None
    state.hedges -= 1
