"""An action that runs for unusually long is run a second time on idle capacity; the first result counts, the other run stops.

Unusually long is past the 95th percentile of its class, and past what the same step took before, times a factor. The second
run gets a free slot that nobody waits for, on a worker of another name. A task gets one at most, and all together are a small
share of the leases: should everything become slow at once, running everything twice is no help.
"""

from __future__ import annotations

from rexec.scheduler import events as e
from rexec.scheduler.deadlines import Due
from rexec.scheduler.leases import grant
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Hold, Lease, Worker

AGAIN_SECONDS = 1.0
"""After how long a free slot is looked for again, and a tenth of the time that the action has run. Slow actions are few."""


def expect(state: QueueState, lease: Lease, now: float) -> None:
    """The command of a lease runs: look again when it takes unusually long."""
    due = _due(state, lease)
    if due is not None:
        lease.hedge_due = True
        state.deadlines.add(max(now, due), Due.STRAGGLES, lease.lease_id)


def straggles(state: QueueState, lease_id: str, now: float) -> None:
    """The time may have come to run it twice; it is done once everything that waits has had its turn (`hedge`)."""
    lease = state.leases.get(lease_id)
    if lease is None:
        return
    due = _due(state, lease)
    if due is None:
        return
    if due > now:  # such actions have been found to take longer since
        state.deadlines.add(due, Due.STRAGGLES, lease_id)
    else:
        state.stragglers.append(lease)


def hedge(state: QueueState, now: float) -> None:
    """Give second leases to those that have become slow in the event at hand, if there are slots to spare."""
    for lease in state.stragglers:
        if _due(state, lease) is None or lease.running_at is None:
            continue
        running_seconds = now - lease.running_at
        worker = _idle_worker(state, lease) if state.hedges < _most(state) else None
        if worker is None:
            state.deadlines.add(now + AGAIN_SECONDS + 0.1 * running_seconds, Due.STRAGGLES, lease.lease_id)
            continue
        grant(state, lease.task, worker, lease.owner, hedge=True)
        state.effects.append(e.TaskHedged(lease.task.task_id, worker.name, lease.worker.name, running_seconds))
    state.stragglers.clear()


def _due(state: QueueState, lease: Lease) -> float | None:
    """When the lease has run for unusually long, None if it is not to be hedged or that is not known."""
    task, settings = lease.task, state.settings
    if (
        not settings.hedging
        or task.lease is not lease
        or lease.hold is not Hold.LIVE
        or lease.running_at is None
        or lease.delivering_at is not None
        or task.hedged
        or task.candidate.do_not_cache
    ):
        return None
    estimate = state.statistics.estimate(task.candidate)
    if estimate.p95_seconds is None:
        return None
    usual_seconds = max(estimate.p95_seconds, estimate.expected_seconds)
    return lease.running_at + max(settings.hedge_factor * usual_seconds, settings.hedge_min_seconds)


def _most(state: QueueState) -> int:
    return max(1, int(state.settings.hedge_share * len(state.leases)))


def _idle_worker(state: QueueState, lease: Lease) -> Worker | None:
    """One with room that nobody who waits may have: what waits has been given away before. None if the owner is at a limit."""
    task, fleet = lease.task, state.fleet
    if fleet.shares.running_limit(lease.owner):
        return None
    worker = fleet.best_worker(task, task.excluded | {lease.worker.name})
    if worker is None:
        return None
    room = fleet.fit_of(task).room_of(worker.worker_id)
    return worker if room is not None and room > 0 else None  # a lease fetched ahead would only wait again
