"""How long a worker may take over a lease without a result, as long as its connection lives.

- It answers within `answer_seconds`: a worker says that it fetches inputs as soon as it has a lease, even if its slots are
  busy.
- While it has a slot for the lease it begins to run it within `staging_seconds`. A lease that was fetched ahead waits for a
  slot, and that time does not count.
- The command ends by its timeout, which the worker enforces, and `overdue_seconds`.
- Outputs are delivered within `staging_seconds`.

A lease past that is taken back: revoked, held against the worker, and tried elsewhere as one of the task's attempts. It takes
up its slot until the worker lets go of it, since nobody knows what it does there.
"""

from __future__ import annotations

from rexec.scheduler import events as e
from rexec.scheduler.attempts import take_back
from rexec.scheduler.deadlines import Due
from rexec.scheduler.hedging import expect
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Hold, Lease


def watched(state: QueueState, lease_id: str, now: float) -> None:
    """It is time to look at a lease; each has one such deadline at a time."""
    lease = state.leases.get(lease_id)
    if lease is None or lease.hold is not Hold.LIVE:
        return
    settings = state.settings
    if lease.running_at is not None and not lease.hedge_due:
        expect(state, lease, now)  # its class may have become known since it began
    soon = now + max(settings.answer_seconds, now - lease.granted_at)
    if not lease.worker.connected:  # its grace decides
        state.deadlines.add(soon, Due.LEASE_WATCHED, lease_id)
        return
    due, reason = _patience(state, lease, now)
    if due > now:
        state.deadlines.add(min(due, soon), Due.LEASE_WATCHED, lease_id)
    else:
        take_back(state, lease, reason, now)


def _patience(state: QueueState, lease: Lease, now: float) -> tuple[float, str]:
    """Until when the lease may go on as it does, and the reason why no longer."""
    settings = state.settings
    if not lease.answered:
        text = f"no answer for {settings.answer_seconds:g} s to a lease that was sent"
        return lease.granted_at + settings.answer_seconds, text
    if lease.delivering_at is not None:
        text = f"the outputs were not delivered within {settings.staging_seconds:g} s"
        return lease.delivering_at + settings.staging_seconds, text
    if lease.running_at is not None:
        limit = lease.task.candidate.timeout_seconds or settings.max_timeout_seconds
        text = f"said to run {settings.overdue_seconds:g} s longer than its timeout of {limit:g} s"
        return lease.running_at + limit + settings.overdue_seconds, text
    if not _has_slot(lease):
        lease.due_at = None
    elif lease.due_at is None:
        lease.due_at = now
    text = f"not begun within {settings.staging_seconds:g} s"
    return (now if lease.due_at is None else lease.due_at) + settings.staging_seconds, text


def _has_slot(lease: Lease) -> bool:
    """Whether the worker could run it: those that run, or do nobody knows what, leave a slot."""
    worker = lease.worker
    busy = sum(
        other.task.candidate.demand.slots
        for other in worker.leases.values()
        if other is not lease
        and (other.hold is Hold.REVOKED or (other.hold is Hold.LIVE and other.running_at is not None))
    )
    return busy + lease.task.candidate.demand.slots <= worker.slots


def answered(state: QueueState, lease: Lease, event: e.Progress, now: float) -> None:
    """The worker has said how far the lease is."""
    lease.answered = True
    if event.delivering and lease.delivering_at is None:
        lease.delivering_at = now
    if event.running and lease.running_at is None:
        lease.running_at = now
        expect(state, lease, now)
