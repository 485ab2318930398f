"""The rules of the queue: which task runs where, and what becomes of it. Events and the time go in, effects come out.

Nothing here waits, reads a clock, draws a random number or does I/O: the same events at the same times give the same
effects. After every event these hold (`invariants.check` says so in the tests):

- a task is in exactly one of four states: it waits in line, or it is parked because nobody waits for it, or it has one
  lease that counts, or two when it takes unusually long, or it has ended;
- no task waits while a worker that fits has room, unless it has just failed there, or those who want it are at their limits,
  or the worker is kept free for a larger task;
- nobody runs more than his limit allows, and no worker is given more than it can hold;
- an operation ends once, and its stage never goes back from COMPLETED.

A lease ends in one of these ways. The worker reports a result: the task ends. The worker fails or is lost: the task goes
back into line, keeping its place, and avoids that worker's name for a while (if nobody waits for it, it is parked until
someone does); when it has used up its attempts it ends with the names of the workers that it took with it. The task ends
first, because nobody waits for it or someone cancelled it: the lease is revoked and takes up its slot until the worker has
let go. Every grant has a higher epoch, and what arrives for another lease than the present one changes nothing.

The rules themselves are in modules by who speaks and what is decided; rexec/scheduler/state.py lists them.
"""

from __future__ import annotations

from collections.abc import Sequence

from rexec.scheduler import events as e
from rexec.scheduler.attempts import exclusion_ended
from rexec.scheduler.completion import forget, forget_due
from rexec.scheduler.deadlines import Due
from rexec.scheduler.dispatch import assign, tell_unserved
from rexec.scheduler.hedging import hedge, straggles
from rexec.scheduler.leases import held
from rexec.scheduler.long_waits import look
from rexec.scheduler.patience import watched
from rexec.scheduler.quarantine import review
from rexec.scheduler.reason import reason_of
from rexec.scheduler.reports import finished, progress, reported
from rexec.scheduler.sessions import attached, credit, detached, draining, ended, lost
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.state import QueueState
from rexec.scheduler.submission import record, settle, submit
from rexec.scheduler.task import Lease, Task
from rexec.scheduler.waiters import abandoned, cancel, waiter_joined, waiter_left


class Queue:
    """The scheduler's state machine."""

    def __init__(self, settings: SchedulerSettings, now: float) -> None:
        self.state = state = QueueState.new(settings, now)
        # For those who look on: they see what the state holds, and change nothing.
        self.fleet = state.fleet
        self.tasks = state.tasks
        self.operations = state.operations
        self.leases = state.leases

    @property
    def queued_operations(self) -> int:
        """Live operations in stage QUEUED."""
        return self.state.queued_operations

    def apply(self, event: e.Event, now: float) -> Sequence[e.Effect]:
        """Take one event and say what follows from it.

        Raises NoWorkerFits and QueueFull for a Submit, OperationNotFound for an unknown name, AlreadyExists for a worker whose
        name another one has; then nothing has changed.
        """
        state = self.state
        state.effects = []
        state.now = now
        match event:  # in the order of how often they come
            case e.Credit():
                credit(state, event)
            case e.Reported():
                reported(state, event)
            case e.Finished():
                finished(state, event, now)
            case e.Progress():
                progress(state, event, now)
            case e.Submit():
                submit(state, event, now)
            case e.WaiterJoined(name):
                waiter_joined(state, state.operation(name), now)
            case e.WaiterLeft(name):
                waiter_left(state, name, now)
            case e.Record():
                record(state, event, now)
            case e.Cancel(name):
                cancel(state, state.operation(name), now)
            case e.Forget(name):
                forget(state, state.operation(name))
            case e.WorkerAttached():
                attached(state, event, now)
            case e.WorkerDetached(worker_id):
                detached(state, worker_id, now)
            case e.WorkerEnded(worker_id):
                ended(state, worker_id, now)
            case e.Draining():
                draining(state, event)
            case e.Tick():
                self._tick(now)
        assign(state, now)
        if state.stragglers:
            hedge(state, now)
        return state.effects

    def next_deadline(self) -> float | None:
        """When a Tick is due, None if time alone changes nothing."""
        first = self.state.deadlines.first()
        for when in (self.state.retention.first(), self.fleet.reservation_ends()):
            if when is not None and (first is None or when < first):
                first = when
        return first

    def reason(self, task: Task) -> str:
        """Why a task waits, for the person who waits for it; empty once it has a worker."""
        return reason_of(task, self.fleet)

    def held(self, worker_id: str, lease_id: str, epoch: int) -> Lease | None:
        """The lease that a worker speaks of, if it is his."""
        return held(self.state, worker_id, lease_id, epoch)

    def _tick(self, now: float) -> None:
        state = self.state
        for when, kind, name in state.deadlines.pop_due(now):
            match kind:
                case Due.WORKER_LOST:
                    lost(state, name, when, now)
                case Due.TASK_ABANDONED:
                    abandoned(state, name, when, now)
                case Due.EXCLUSION_ENDS:
                    exclusion_ended(state, name, when, now)
                case Due.SETTLED:
                    settle(state, now)
                case Due.UNSERVED:
                    tell_unserved(state, name, now)
                case Due.LONG_WAIT:
                    look(state, name, now)
                case Due.LEASE_WATCHED:
                    watched(state, name, now)
                case Due.STRAGGLES:
                    straggles(state, name, now)
                case Due.QUARANTINE_REVIEWED:
                    review(state, name, now)
        self.fleet.end_reservations(now)
        forget_due(state, now)
