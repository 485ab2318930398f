"""Workers that leave: what of their work may end first, and what is handed back at once because it would not.

A worker that is told to leave, by an operator or by a signal, has a grace. Its scheduler knows how long actions such as those it
runs took before: one that is expected to need more than the grace is handed back at once, so that another worker can begin with
it, instead of when the grace is over. Of what nothing is known, and of what already runs longer than expected, the best is hoped.

An order to leave is kept until the worker is gone. One whose stream is broken, or that comes back to a scheduler that was
restarted meanwhile, is told again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler import events as e
from rexec.scheduler import letters
from rexec.scheduler.clock import Clock
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import HeldLease, Hold, Lease, Worker

MAX_GRACE_SECONDS: Final = 7 * 86400.0
"""A drain that takes longer is none."""


@dataclass(frozen=True, slots=True)
class Drained:
    """What becomes of a worker's leases."""

    kept: int
    """They may end within the grace."""
    handed_back: int
    """They would not, or their command does not run yet."""


class Drains:
    """Of one queue."""

    def __init__(
        self,
        state: Callable[[], QueueState],
        clock: Clock,
        apply: Callable[[e.Event], None],
        send: Callable[[str, worker_pb2.ToWorker], None],
    ) -> None:
        self._state = state
        self._clock = clock
        self._apply = apply
        self._send = send

    def order(self, worker_id: str, grace_seconds: float, reason: str) -> Drained:
        """Have a worker leave when its leases have ended, at the latest after `grace_seconds`. Nothing for one that is gone."""
        now = self._clock.monotonic()
        worker = self._state().fleet.workers.get(worker_id)
        if worker is None:
            return Drained(0, 0)
        self._apply(e.Draining(worker_id, reason, now + grace_seconds))
        too_long = leases_that_outlast(self._state(), worker, grace_seconds, now)
        self._send(worker_id, letters.drain(grace_seconds, reason, too_long))
        waiting = sum(lease.hold is Hold.LIVE and lease.running_at is None for lease in worker.leases.values())
        return Drained(len(worker.leases) - len(too_long) - waiting, len(too_long) + waiting)

    def announced(self, worker_id: str, reason: str, grace_seconds: float | None) -> None:
        """A worker says that it leaves, at the latest after `grace_seconds`: tell it what would not end by then."""
        now = self._clock.monotonic()
        worker = self._state().fleet.workers.get(worker_id)
        self._apply(e.Draining(worker_id, reason))
        if worker is None or grace_seconds is None:
            return
        until = worker.drain_until
        if until is not None and until <= now + grace_seconds:
            return  # it only repeats an order that it has just got
        too_long = leases_that_outlast(self._state(), worker, grace_seconds, now)
        if too_long:
            self._send(worker_id, letters.drain(grace_seconds, reason, too_long))

    def attached(self, worker_id: str) -> None:
        """A worker is back. If it was ordered to leave, it may not have heard of it."""
        worker = self._state().fleet.workers.get(worker_id)
        if worker is not None and worker.drain_until is not None:
            self.order(worker_id, max(0.0, worker.drain_until - self._clock.monotonic()), worker.drain_reason)


def leases_that_outlast(state: QueueState, worker: Worker, grace_seconds: float, now: float) -> list[HeldLease]:
    """Those of a worker whose command runs, and is expected to run for longer than so many seconds from now."""
    return [
        HeldLease(lease.lease_id, lease.epoch)
        for lease in worker.leases.values()
        if _expected_seconds_left(state, lease, now) > grace_seconds
    ]


def _expected_seconds_left(state: QueueState, lease: Lease, now: float) -> float:
    """0 if that is not known."""
    if lease.hold is not Hold.LIVE or lease.running_at is None or lease.delivering_at is not None:
        return 0.0
    estimate = state.statistics.estimate(lease.task.candidate)
    if not estimate.samples:  # the mean of actions of all kinds says nothing of this one
        return 0.0
    return estimate.expected_seconds - (now - lease.running_at)
