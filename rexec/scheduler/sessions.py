"""Workers come, go, and say how much they take. A session that is over leaves its tasks to others."""

from __future__ import annotations

from collections.abc import Sequence

from rexec.scheduler import events as e
from rexec.scheduler.attempts import retry
from rexec.scheduler.deadlines import Due
from rexec.scheduler.leases import drop
from rexec.scheduler.quarantine import blame, inherit
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import HeldLease, Hold, Worker


def attached(state: QueueState, event: e.WorkerAttached, now: float) -> None:
    """A worker's stream is open: a new session, or one that comes back to its leases. Raises AlreadyExists if its name is
    another one's; then nothing has changed."""
    fleet = state.fleet
    worker = fleet.workers.get(event.worker_id)
    namesake = fleet.by_name.get(event.name)
    if namesake is not None and namesake is not worker and namesake.connected:
        state.contested.take_over(event.worker_id, namesake, state.settings.contested_seconds, now)
    state.any_attached = True
    state.know(event.offer.names)
    if namesake is not None and namesake is not worker:
        _give_up(state, namesake, "replaced by a new session of the same name", now)
    if worker is not None and (worker.name, worker.offer, worker.slots) != (event.name, event.offer, event.slots):
        _give_up(state, worker, "came back as another worker", now)
        worker = None
    if worker is None:
        worker = Worker(event.worker_id, event.name, event.slots, event.offer, idle_since=now)
        inherit(state, worker)
        fleet.add(worker)
    worker.connected, worker.lost_at = True, None
    worker.credit, worker.sent = 0, 0
    resumed, unknown = _reconcile(state, worker, event.held, now)
    fleet.update(worker)
    state.effects.append(e.WorkerWelcomed(worker.worker_id, resumed, unknown))


def _reconcile(
    state: QueueState, worker: Worker, held: Sequence[HeldLease], now: float
) -> tuple[tuple[HeldLease, ...], tuple[HeldLease, ...]]:
    """Compare what a worker says that it holds with what it was given."""
    resumed: list[HeldLease] = []
    unknown: list[HeldLease] = []
    for claim in dict.fromkeys(held):
        lease = worker.leases.get(claim.lease_id)
        goes_on = lease is not None and lease.epoch == claim.epoch and lease.hold is not Hold.REVOKED
        if lease is not None and goes_on:
            lease.answered = True
        (resumed if goes_on else unknown).append(claim)
    kept = {claim.lease_id for claim in resumed}
    for lease_id in kept:
        worker.leases[lease_id].is_restored = False
    for lease in list(worker.leases.values()):
        if lease.hold is Hold.REVOKED:
            drop(state, lease)  # told by `unknown`, or it has been let go of already
        elif lease.hold is Hold.LIVE and lease.lease_id not in kept:
            retry(state, lease, "never got the lease", now, counted=False, avoid=False)
    return tuple(resumed), tuple(unknown)


def detached(state: QueueState, worker_id: str, now: float) -> None:
    """A worker's stream broke: its leases are kept for it for a while, unless it had drained."""
    worker = state.fleet.workers.get(worker_id)
    if worker is None or not worker.connected:
        return
    worker.connected, worker.credit = False, 0
    state.fleet.update(worker)
    if worker.draining and not worker.leases:
        _give_up(state, worker, "drained", now)
        return
    worker.lost_at = now + state.settings.grace_seconds
    state.deadlines.add(worker.lost_at, Due.WORKER_LOST, worker_id)


def lost(state: QueueState, worker_id: str, when: float, now: float) -> None:
    """The grace that ends at `when` is over; means nothing if the worker came back meanwhile."""
    worker = state.fleet.workers.get(worker_id)
    if worker is not None and worker.lost_at == when:
        _give_up(state, worker, f"no stream for {state.settings.grace_seconds:g} s", now)


def ended(state: QueueState, worker_id: str, now: float) -> None:
    """The machine of a worker has ended, so its grace is over now. Means nothing if the worker is connected: then it has not."""
    worker = state.fleet.workers.get(worker_id)
    if worker is not None and not worker.connected:
        _give_up(state, worker, "its machine has ended", now)


def _give_up(state: QueueState, worker: Worker, reason: str, now: float) -> None:
    """The session is over; what it ran must run elsewhere. Leases whose result is being checked are not touched."""
    state.fleet.remove(worker)
    worker.connected, worker.credit = False, 0
    live = [lease for lease in worker.leases.values() if lease.hold is Hold.LIVE]
    for lease in list(worker.leases.values()):
        if lease.hold is Hold.REVOKED:
            drop(state, lease)
    failed = [lease for lease in live if lease.started and not lease.is_restored]
    if failed and not worker.draining:
        blame(state, failed, f"worker lost: {reason}", now)
    for lease in live:
        # A worker may well have ended together with the scheduler, which is not the action's doing nor the worker's.
        own = not lease.is_restored
        retry(state, lease, f"worker lost: {reason}", now, counted=lease.started and own, avoid=own)
    state.effects.append(e.WorkerGone(worker.worker_id, worker.name, reason, len(live)))


def credit(state: QueueState, event: e.Credit) -> None:
    """The worker takes so many more leases, less those that were under way when it counted."""
    worker = state.fleet.workers.get(event.worker_id)
    if worker is None or not worker.connected:
        return
    under_way = 0 if event.received is None else max(0, worker.sent - event.received)
    worker.credit = max(0, event.leases - under_way)
    state.touch(worker)


def draining(state: QueueState, event: e.Draining) -> None:
    """The worker takes no more leases; those that it has run to their end. Of several orders to leave the earliest counts."""
    worker = state.fleet.workers.get(event.worker_id)
    if worker is not None:
        worker.draining = True
        worker.drain_reason = event.reason or worker.drain_reason
        if event.until is not None:
            worker.drain_until = event.until if worker.drain_until is None else min(event.until, worker.drain_until)
        state.fleet.update(worker)
