"""What workers say of their leases. What arrives for another lease than the present one changes nothing."""

from __future__ import annotations

import msgspec

from rexec.scheduler import events as e
from rexec.scheduler.attempts import retry
from rexec.scheduler.completion import end
from rexec.scheduler.enlarging import enlarged
from rexec.scheduler.leases import drop, held
from rexec.scheduler.patience import answered
from rexec.scheduler.quarantine import blame, clear
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Failure, Hold, Lease, Outcome, Stage, Usage


def progress(state: QueueState, event: e.Progress, now: float) -> None:
    """A worker is at work on a lease; one that is not his any more is to be stopped."""
    lease = held(state, event.worker_id, event.lease_id, event.epoch)
    if lease is None:
        stale = e.LeaseRevoked(event.worker_id, event.lease_id, event.epoch, "the lease is not yours any more")
        state.effects.append(stale)
    elif lease.hold is Hold.LIVE:
        lease.detail = event.detail
        answered(state, lease, event, now)
        if event.running:
            lease.started = True
            state.accounts.began(lease, now)
            state.set_stage(lease.task, Stage.EXECUTING)


def reported(state: QueueState, event: e.Reported) -> None:
    """The result is about to be checked: the lease has left its slot."""
    lease = held(state, event.worker_id, event.lease_id, event.epoch)
    if lease is not None and lease.hold is Hold.LIVE:
        lease.hold = Hold.SETTLING
        state.accounts.released(lease, state.now)
        state.fleet.vacate(lease)
        lease.worker.settling += 1
        state.touch(lease.worker)


def finished(state: QueueState, event: e.Finished, now: float) -> None:
    """The result has been checked: the task ends, or is tried again if the failure was not its own."""
    lease = held(state, event.worker_id, event.lease_id, event.epoch)
    state.effects.append(e.LeaseAcknowledged(event.worker_id, event.lease_id, event.epoch))
    if lease is None:
        return
    task = lease.task
    if not task.counts_on(lease):
        drop(state, lease)
    elif event.failure is Failure.NONE and enlarged(state, lease, event.exceeded_memory_bytes):
        retry(state, lease, "it was killed for the memory it took and gets more", now, counted=False, avoid=False)
    elif event.failure is Failure.NONE:
        if event.usage is not None:
            state.statistics.learn(task.candidate, _believed(event.usage, lease, now))
        clear(state, lease.worker)
        if task.hedge is not None:
            state.effects.append(e.HedgeEnded(task.task_id, won=task.hedge is lease))
        task.result_epoch = lease.epoch
        drop(state, lease)
        end(state, task, event.outcome, now)
    else:
        reason = event.evidence or event.failure.value
        last = None if event.outcome == Outcome() else event.outcome
        infrastructure = event.failure is Failure.INFRASTRUCTURE
        if infrastructure and event.blames_worker:
            blame(state, [lease], reason, now)
        retry(state, lease, reason, now, counted=infrastructure, avoid=True, last=last)


def _believed(usage: Usage, lease: Lease, now: float) -> Usage:
    """A command cannot have run for longer than its worker has had the lease, if that is known."""
    held_seconds = now - lease.granted_at
    if lease.inherited or usage.seconds <= held_seconds:
        return usage
    return msgspec.structs.replace(usage, seconds=held_seconds)
