"""The rules of the queue: which task runs where, and what becomes of it. Events and the time go in, effects come out.

Nothing here waits, reads a clock, draws a random number or does I/O: the same events at the same times give the same
effects. After every event these hold (`invariants.check` says so in the tests):

- a task is in exactly one of four states: it waits in line, or it is parked because nobody waits for it, or it has exactly
  one lease that counts, or it has ended;
- no task waits while a worker that fits has room, unless the task has just failed there;
- an operation ends once, and its stage never goes back from COMPLETED.

A lease ends in one of these ways. The worker reports a result: the task ends. The worker fails or is lost: the task goes
back into line, keeping its place, and avoids that worker's name for a while; when it has used up its attempts it ends with
the names of the workers that it took with it. The task ends first, because nobody waits for it or someone cancelled it: the
lease is revoked and takes up its slot until the worker has let go. Every grant has a higher epoch, and what arrives for
another lease than the present one changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cas.digest import Digest
from cas.errors import Cancelled, NoWorkerFits, OperationNotFound, QueueFull, WorkerLost
from rexec.scheduler import events as e
from rexec.scheduler.deadlines import Deadlines, Due
from rexec.scheduler.fleet import Fleet
from rexec.scheduler.platform import Requirement
from rexec.scheduler.reason import reason_of
from rexec.scheduler.retention import Retention
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Failure, HeldLease, Hold, Lease, Operation, Outcome, Stage, Task, Worker


class Queue:
    """The scheduler's state machine."""

    def __init__(self, settings: SchedulerSettings, now: float) -> None:
        self.fleet = Fleet(settings.max_prefetched_leases)
        self.tasks: dict[str, Task] = {}
        """Those that have not ended."""
        self.operations: dict[str, Operation] = {}
        """Live ones, and completed ones until they are forgotten."""
        self.leases: dict[str, Lease] = {}
        """All that a worker may still have, revoked ones too."""
        self.in_flight: dict[tuple[str, Digest], Task] = {}
        """Tasks that an equal action may join."""
        self.queued_operations = 0
        """Live operations in stage QUEUED."""
        self._retention = Retention(
            settings.retain_seconds, settings.max_retained_operations, settings.max_retained_bytes
        )
        self._settings = settings
        self._deadlines = Deadlines()
        self._known_names = set(settings.known_properties)
        self._unsettled: set[str] = set()
        """Tasks that ask for unknown properties, accepted because no worker has had the time to attach."""
        self._settled_at = now + settings.settle_seconds
        self._any_attached = False
        self._arrivals = 0
        self._effects: list[e.Effect] = []
        self._queued: list[Task] = []
        """Tasks that began to wait in this event."""
        self._roomy: list[Worker] = []
        """Workers that may have got room in this event."""

    def apply(self, event: e.Event, now: float) -> Sequence[e.Effect]:
        """Take one event and say what follows from it.

        Raises NoWorkerFits and QueueFull for a Submit, OperationNotFound for an unknown name; then nothing has changed.
        """
        self._effects = []
        match event:
            case e.Submit():
                self._submit(event, now)
            case e.Record():
                self._record(event, now)
            case e.WaiterJoined(name):
                self._waiter_joined(self._operation(name), now)
            case e.WaiterLeft(name):
                self._waiter_left(name, now)
            case e.Cancel(name):
                self._cancel(self._operation(name), now)
            case e.Forget(name):
                self._forget(self._operation(name))
            case e.WorkerAttached():
                self._attached(event, now)
            case e.WorkerDetached(worker_id):
                self._detached(worker_id, now)
            case e.Credit():
                self._credit(event)
            case e.Progress():
                self._progress(event)
            case e.Reported():
                self._reported(event)
            case e.Finished():
                self._finished(event, now)
            case e.Draining(worker_id):
                self._draining(worker_id)
            case e.Tick():
                self._tick(now)
        self._assign()
        return self._effects

    def next_deadline(self) -> float | None:
        """When a Tick is due, None if time alone changes nothing."""
        deadlines = (self._deadlines.first(), self._retention.first())
        return min((when for when in deadlines if when is not None), default=None)

    def reason(self, task: Task) -> str:
        """Why a task waits, for the person who waits for it; empty once it has a worker."""
        return reason_of(task, self.fleet)

    # Clients

    def _operation(self, name: str) -> Operation:
        operation = self.operations.get(name)
        if operation is None:
            raise OperationNotFound(f"no operation {name!r}")
        return operation

    def _submit(self, event: e.Submit, now: float) -> None:
        candidate = event.candidate
        key = (candidate.instance_name, candidate.action_digest)
        task = None if candidate.do_not_cache else self.in_flight.get(key)
        waits = task is None or task.stage is Stage.QUEUED
        if waits and self.queued_operations >= self._settings.max_queued_operations:
            raise QueueFull(f"{self.queued_operations} operations are queued already, the most allowed")
        if task is None:
            unknown = self._unknown_names(candidate.requirement)
            if unknown and (now >= self._settled_at or self._any_attached):
                raise self._no_worker_fits(unknown)
            task = Task(event.task_id, candidate, self._arrivals, now, candidate.priority)
            self._arrivals += 1
            self.tasks[task.task_id] = task
            if not candidate.do_not_cache:
                self.in_flight[key] = task
            if unknown:
                self._unsettled.add(task.task_id)
                self._deadlines.add(self._settled_at, Due.SETTLED)
            self._enqueue(task, now)
        elif candidate.priority < task.priority:
            waiting = task.place is not None
            if waiting:
                self.fleet.dequeue(task)
            task.priority = candidate.priority
            if waiting:
                self.fleet.enqueue(task)
        operation = Operation(event.operation_name, task, event.view)
        self.operations[operation.name] = task.operations[operation.name] = operation
        self.queued_operations += task.stage is Stage.QUEUED
        self._watch_abandonment(task, now)

    def _record(self, event: e.Record, now: float) -> None:
        task = Task(event.task_id, replace(event.candidate, payload=None), self._arrivals, now, 0, Stage.COMPLETED)
        self._arrivals += 1
        operation = Operation(event.operation_name, task, event.view, 0, event.outcome, now)
        self.operations[operation.name] = operation
        self._retain(operation, now)

    def _unknown_names(self, requirement: Requirement) -> list[str]:
        return sorted(requirement.names - self._known_names)

    def _no_worker_fits(self, unknown: Sequence[str]) -> NoWorkerFits:
        known = ", ".join(sorted(self._known_names)) or "none"
        noun = "property" if len(unknown) == 1 else "properties"
        return NoWorkerFits(
            f"unknown platform {noun} {', '.join(unknown)}; known are {known}; offer it with [worker.properties], or list it in"
            " [scheduler] ignored_properties of the server if it means nothing here"
        )

    def _waiter_joined(self, operation: Operation, now: float) -> None:
        operation.waiters += 1
        if operation.outcome is None:
            operation.task.abandon_at = None
            if operation.task.parked:
                operation.task.parked = False
                self._enqueue(operation.task, now)

    def _waiter_left(self, name: str, now: float) -> None:
        operation = self.operations.get(name)
        if operation is not None and operation.waiters > 0:
            operation.waiters -= 1
            self._watch_abandonment(operation.task, now)
            self._park(operation.task)

    def _watch_abandonment(self, task: Task, now: float) -> None:
        """Start the clock if no one waits for the task."""
        if task.stage is not Stage.COMPLETED and task.waiters == 0 and task.abandon_at is None:
            task.abandon_at = now + self._settings.abandon_seconds
            self._deadlines.add(task.abandon_at, Due.TASK_ABANDONED, task.task_id)

    def _park(self, task: Task) -> None:
        """Take a task out of line if the last one who waited for it has left. It comes back when someone does."""
        if task.place is not None and task.waiters == 0:
            self._leave(task)
            task.parked = True

    def _cancel(self, operation: Operation, now: float) -> None:
        if operation.outcome is not None:
            return
        outcome = Outcome(Cancelled("the operation was cancelled"))
        if len(operation.task.operations) == 1:
            self._end(operation.task, outcome, now)
        else:
            self._complete(operation, outcome, now)
            self._watch_abandonment(operation.task, now)
            self._park(operation.task)

    def _forget(self, operation: Operation) -> None:
        if operation.outcome is None:
            return  # google.longrunning DeleteOperation does not cancel
        del self.operations[operation.name]
        self._effects.append(e.OperationForgotten(operation.name))

    # The end of a task

    def _end(self, task: Task, outcome: Outcome, now: float) -> None:
        """The task has ended, whatever state it was in."""
        self._leave(task)
        task.parked = False
        if task.lease is not None:
            self._revoke(task.lease, str(outcome.error or "the task has ended"))
        for operation in list(task.operations.values()):
            self._complete(operation, outcome, now)
        task.stage = Stage.COMPLETED
        task.abandon_at = None
        del self.tasks[task.task_id]
        self._unsettled.discard(task.task_id)
        key = (task.candidate.instance_name, task.candidate.action_digest)
        if self.in_flight.get(key) is task:
            del self.in_flight[key]
        # Its operations are kept for a while and would keep the whole command in memory.
        task.candidate = replace(task.candidate, payload=None)
        self._effects.append(e.TaskCompleted(task.task_id, task.queued_at, outcome))

    def _complete(self, operation: Operation, outcome: Outcome, now: float) -> None:
        self.queued_operations -= operation.task.stage is Stage.QUEUED
        operation.outcome = outcome
        operation.completed_at = now
        del operation.task.operations[operation.name]
        self._effects.append(e.OperationChanged(operation.name))
        self._retain(operation, now)

    def _retain(self, operation: Operation, now: float) -> None:
        self._retention.add(operation.name, now, operation.outcome.size_bytes if operation.outcome else 0)
        self._forget_due(now)

    def _forget_due(self, now: float) -> None:
        for name in self._retention.pop_due(now):
            if self.operations.pop(name, None) is not None:
                self._effects.append(e.OperationForgotten(name))

    # Waiting and leases

    def _enqueue(self, task: Task, now: float) -> None:
        if task.excluded:
            task.exclusion_ends_at = now + self._settings.exclusion_seconds
            self._deadlines.add(task.exclusion_ends_at, Due.EXCLUSION_ENDS, task.task_id)
        self.fleet.enqueue(task)
        self._queued.append(task)
        if not self.fleet.fit(task.candidate.requirement).workers:
            self._deadlines.add(now + self._settings.unserved_seconds, Due.UNSERVED, task.task_id)

    def _leave(self, task: Task) -> None:
        if task.place is not None:
            self.fleet.dequeue(task)
        task.exclusion_ends_at = None

    def _set_stage(self, task: Task, stage: Stage) -> None:
        if task.stage is stage:
            return
        self.queued_operations += len(task.operations) * ((stage is Stage.QUEUED) - (task.stage is Stage.QUEUED))
        task.stage = stage
        self._effects += [e.OperationChanged(name) for name in task.operations]

    def _assign(self) -> None:
        """Give waiting tasks to workers with room.

        Before the event nothing that waited could be given away, so only what has changed is looked at: tasks that began
        to wait look for a worker, workers that got room look for a task.
        """
        for task in sorted(self._queued, key=lambda task: (task.priority, task.arrival)):
            if task.place is not None and (worker := self.fleet.best_worker(task)) is not None:
                self._grant(task, worker)
        for worker in self._roomy:
            while self.fleet.has_room(worker) and (waiting := self.fleet.next_task(worker)) is not None:
                self._grant(waiting, worker)
        self._queued.clear()
        self._roomy.clear()

    def _grant(self, task: Task, worker: Worker) -> None:
        self._leave(task)
        task.epoch += 1
        lease = Lease(f"{task.task_id}.{task.epoch}", task.epoch, task, worker, started=worker.free_slots > 0)
        task.lease = self.leases[lease.lease_id] = worker.leases[lease.lease_id] = lease
        worker.credit -= 1
        worker.sent += 1
        self.fleet.update(worker)
        if lease.started:
            self._set_stage(task, Stage.EXECUTING)
        attempt = len(task.losses) + 1
        self._effects.append(e.LeaseGranted(worker.worker_id, task.task_id, lease.lease_id, lease.epoch, attempt))

    def _drop(self, lease: Lease) -> None:
        """The worker does not have the lease any more."""
        worker = lease.worker
        del self.leases[lease.lease_id]
        del worker.leases[lease.lease_id]
        worker.settling -= lease.hold is Hold.SETTLING
        if lease.task.lease is lease:
            lease.task.lease = None
        self._touch(worker)

    def _revoke(self, lease: Lease, reason: str) -> None:
        """The task needs the lease no more; the worker keeps it until it says otherwise."""
        lease.task.lease = None
        if lease.hold is Hold.SETTLING:
            return  # its worker is done already; the report that is being checked finds no task
        lease.hold = Hold.REVOKED
        self._effects.append(e.LeaseRevoked(lease.worker.worker_id, lease.lease_id, lease.epoch, reason))

    def _touch(self, worker: Worker) -> None:
        self.fleet.update(worker)
        self._roomy.append(worker)

    def _retry(
        self, lease: Lease, reason: str, now: float, *, counted: bool, avoid: bool, last: Outcome | None = None
    ) -> None:
        """The lease came to nothing; its task waits again, or has used up its attempts and ends with `last`, if given."""
        task, name = lease.task, lease.worker.name
        self._drop(lease)
        if counted:
            task.losses.append(f"{name} ({reason})")
        if len(task.losses) >= self._settings.max_attempts:
            workers = ", ".join(task.losses)
            lost = Outcome(WorkerLost(f"gave up after {len(task.losses)} attempts: {workers}"))
            self._end(task, lost if last is None else last, now)
            return
        if avoid:
            task.excluded |= {name}
        self._set_stage(task, Stage.QUEUED)
        self._effects.append(e.TaskRetried(task.task_id, name, reason, counted))
        self._enqueue(task, now)

    # Workers

    def _attached(self, event: e.WorkerAttached, now: float) -> None:
        self._any_attached = True
        self._known_names |= event.offer.names
        worker = self.fleet.workers.get(event.worker_id)
        namesake = self.fleet.by_name.get(event.name)
        if namesake is not None and namesake is not worker:
            self._give_up(namesake, "replaced by a new session of the same name", now)
        if worker is not None and (worker.name, worker.offer, worker.slots) != (event.name, event.offer, event.slots):
            self._give_up(worker, "came back as another worker", now)
            worker = None
        if worker is None:
            worker = Worker(event.worker_id, event.name, event.slots, event.offer)
            self.fleet.add(worker)
        worker.connected, worker.lost_at = True, None
        worker.credit, worker.sent = 0, 0
        resumed, unknown = self._reconcile(worker, event.held, now)
        self.fleet.update(worker)
        self._effects.append(e.WorkerWelcomed(worker.worker_id, resumed, unknown))

    def _reconcile(
        self, worker: Worker, held: Sequence[HeldLease], now: float
    ) -> tuple[tuple[HeldLease, ...], tuple[HeldLease, ...]]:
        """Compare what a worker says that it holds with what it was given."""
        resumed: list[HeldLease] = []
        unknown: list[HeldLease] = []
        for claim in dict.fromkeys(held):
            lease = worker.leases.get(claim.lease_id)
            goes_on = lease is not None and lease.epoch == claim.epoch and lease.hold is not Hold.REVOKED
            (resumed if goes_on else unknown).append(claim)
        kept = {claim.lease_id for claim in resumed}
        for lease in list(worker.leases.values()):
            if lease.hold is Hold.REVOKED:
                self._drop(lease)  # told by `unknown`, or it has been let go of already
            elif lease.hold is Hold.LIVE and lease.lease_id not in kept:
                self._retry(lease, "never got the lease", now, counted=False, avoid=False)
        return tuple(resumed), tuple(unknown)

    def _detached(self, worker_id: str, now: float) -> None:
        worker = self.fleet.workers.get(worker_id)
        if worker is None or not worker.connected:
            return
        worker.connected, worker.credit = False, 0
        self.fleet.update(worker)
        if worker.draining and not worker.leases:
            self._give_up(worker, "drained", now)
            return
        worker.lost_at = now + self._settings.grace_seconds
        self._deadlines.add(worker.lost_at, Due.WORKER_LOST, worker_id)

    def _give_up(self, worker: Worker, reason: str, now: float) -> None:
        """The session is over; what it ran must run elsewhere. Leases whose result is being checked are not touched."""
        self.fleet.remove(worker)
        worker.connected, worker.credit = False, 0
        live = [lease for lease in worker.leases.values() if lease.hold is Hold.LIVE]
        for lease in list(worker.leases.values()):
            if lease.hold is Hold.REVOKED:
                self._drop(lease)
        for lease in live:
            self._retry(lease, f"worker lost: {reason}", now, counted=lease.started, avoid=True)
        self._effects.append(e.WorkerGone(worker.worker_id, worker.name, reason, len(live)))

    def _credit(self, event: e.Credit) -> None:
        worker = self.fleet.workers.get(event.worker_id)
        if worker is None or not worker.connected:
            return
        under_way = 0 if event.received is None else max(0, worker.sent - event.received)
        worker.credit = max(0, event.leases - under_way)
        self._touch(worker)

    def _draining(self, worker_id: str) -> None:
        worker = self.fleet.workers.get(worker_id)
        if worker is not None:
            worker.draining = True
            self.fleet.update(worker)

    # Leases, as workers see them

    def held(self, worker_id: str, lease_id: str, epoch: int) -> Lease | None:
        """The lease that a worker speaks of, if it is his."""
        lease = self.leases.get(lease_id)
        return lease if lease is not None and lease.epoch == epoch and lease.worker.worker_id == worker_id else None

    def _progress(self, event: e.Progress) -> None:
        lease = self.held(event.worker_id, event.lease_id, event.epoch)
        if lease is None:
            stale = e.LeaseRevoked(event.worker_id, event.lease_id, event.epoch, "the lease is not yours any more")
            self._effects.append(stale)
        elif lease.hold is Hold.LIVE:
            lease.detail = event.detail
            if event.running:
                lease.started = True
                self._set_stage(lease.task, Stage.EXECUTING)

    def _reported(self, event: e.Reported) -> None:
        lease = self.held(event.worker_id, event.lease_id, event.epoch)
        if lease is not None and lease.hold is Hold.LIVE:
            lease.hold = Hold.SETTLING
            lease.worker.settling += 1
            self._touch(lease.worker)

    def _finished(self, event: e.Finished, now: float) -> None:
        lease = self.held(event.worker_id, event.lease_id, event.epoch)
        self._effects.append(e.LeaseAcknowledged(event.worker_id, event.lease_id, event.epoch))
        if lease is None:
            return
        task = lease.task
        if task.lease is not lease:
            self._drop(lease)
        elif event.failure is Failure.NONE:
            self._drop(lease)
            self._end(task, event.outcome, now)
        else:
            reason = event.evidence or event.failure.value
            last = None if event.outcome == Outcome() else event.outcome
            self._retry(lease, reason, now, counted=event.failure is Failure.INFRASTRUCTURE, avoid=True, last=last)

    # Time

    def _tick(self, now: float) -> None:
        for when, kind, name in self._deadlines.pop_due(now):
            match kind:
                case Due.WORKER_LOST:
                    worker = self.fleet.workers.get(name)
                    if worker is not None and worker.lost_at == when:
                        self._give_up(worker, f"no stream for {self._settings.grace_seconds:g} s", now)
                case Due.TASK_ABANDONED:
                    task = self.tasks.get(name)
                    if task is not None and task.abandon_at == when:
                        self._end(task, Outcome(Cancelled("nobody waited for the operation any more")), now)
                case Due.EXCLUSION_ENDS:
                    task = self.tasks.get(name)
                    if task is not None and task.exclusion_ends_at == when:
                        self._reconsider(task, now)
                case Due.SETTLED:
                    self._settle(now)
                case Due.UNSERVED:
                    self._tell_unserved(name, now)
        self._forget_due(now)

    def _tell_unserved(self, task_id: str, now: float) -> None:
        """Have the log told that no worker fits, if that is still so and has not been said lately."""
        task = self.tasks.get(task_id)
        if task is None or task.place is None:
            return
        fit = self.fleet.fit(task.candidate.requirement)
        if fit.workers:
            return
        if now >= fit.told_at + self._settings.unserved_again_seconds:
            fit.told_at = now
            self._effects.append(e.TasksUnserved(fit.waiting, self.reason(task)))
        self._deadlines.add(fit.told_at + self._settings.unserved_again_seconds, Due.UNSERVED, task_id)

    def _reconsider(self, task: Task, now: float) -> None:
        """A task has avoided some workers for long enough, unless there are others."""
        others = self.fleet.fit(task.candidate.requirement).has_other(task.excluded)
        self._leave(task)
        if not others:
            task.excluded = frozenset()
        self._enqueue(task, now)

    def _settle(self, now: float) -> None:
        """Workers have had the time to attach: what is unknown now is unknown."""
        for task_id in sorted(self._unsettled):
            task = self.tasks[task_id]
            unknown = self._unknown_names(task.candidate.requirement)
            if unknown:
                self._end(task, Outcome(self._no_worker_fits(unknown)), now)
        self._unsettled.clear()
