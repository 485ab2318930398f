"""What has changed in the queue since it was written down last, and the rows that say so.

Nothing of this is known to the rules: what an event has changed is told by its effects. Rows are made when they are about to
be written, from the state as it is then: what changed twice is written once, and a task that began and ended in between
leaves nothing but its operation.

An operation whose result came from the action cache is not written down: asking again finds the result again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from rexec.scheduler import events as e
from rexec.scheduler import wire
from rexec.scheduler.rows import Batch, LeaseRecord, LiveRecord, OperationRow, WorkerRecord
from rexec.scheduler.scheduler import Inlining, OperationState
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Hold, Operation, Stage, Task, Worker
from rexec.scheduler.telling import response_of

STATISTICS_SECONDS: Final = 10.0
"""What was learned is written so often, with whatever else is: losing a little of it does no harm."""

_encode = msgspec.msgpack.Encoder().encode


class Changes:
    """Of one queue. Its state must be in the journal when this begins, except for what `note` is told."""

    def __init__(
        self,
        state: QueueState,
        numbers: Iterable[tuple[str, int]],
        monotonic: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`numbers` are the names of the operations that the journal has, with the numbers of their rows; `monotonic` is the
        time that the events come with, `wall` the same in seconds since 1970."""
        self._state = state
        self._monotonic = monotonic
        self._wall = wall
        self._statistics_at = monotonic() + STATISTICS_SECONDS
        self._tasks: set[str] = set()
        self._operations: set[str] = set()
        # Of those that are away it is written when their time ends, or restarts in a row would begin it anew again and again.
        self._workers = {session for session, worker in state.fleet.workers.items() if worker.lost_at is not None}
        self._written_tasks = {task_id: task.arrival for task_id, task in state.tasks.items()}
        self._written_operations = dict(numbers)
        self._next_number = max(self._written_operations.values(), default=0) + 1

    def __bool__(self) -> bool:
        """Whether there is anything to be written."""
        return bool(self._tasks or self._operations or self._workers)

    def names(self) -> frozenset[str]:
        """The operations of which something is to be written."""
        return frozenset(self._operations)

    def concern(self, operation_name: str) -> bool:
        """Whether something of this operation is to be written."""
        return operation_name in self._operations

    def note(self, event: e.Event, effects: Sequence[e.Effect]) -> None:
        """An event has been applied, with these effects."""
        if isinstance(event, e.Submit):
            self._operation(event.operation_name)
        elif isinstance(event, e.WorkerDetached | e.Draining):
            self._workers.add(event.worker_id)
        for effect in effects:
            match effect:
                case e.OperationChanged(name):
                    self._operation(name)
                case e.OperationForgotten(name):
                    if name in self._written_operations or name in self._operations:
                        self._operations.add(name)
                case e.LeaseGranted(_, task_id) | e.TaskRetried(task_id) | e.TaskCompleted(task_id):
                    self._tasks.add(task_id)
                case e.HedgeEnded(task_id):  # the other run may be the one that counts now
                    self._tasks.add(task_id)
                case e.LeaseRevoked(_, lease_id):
                    lease = self._state.leases.get(lease_id)
                    if lease is not None:
                        self._tasks.add(lease.task.task_id)
                case e.WorkerWelcomed(worker_id) | e.WorkerGone(worker_id):
                    self._workers.add(worker_id)
                case _:
                    pass

    def _operation(self, name: str) -> None:
        self._operations.add(name)
        operation = self._state.operations.get(name)
        if operation is not None:
            self._tasks.add(operation.task.task_id)

    def hurry(self) -> None:
        """What is taken next is the last."""
        self._statistics_at = float("-inf")

    def take(self) -> Batch:
        """The rows for all that has changed; from here on nothing has."""
        batch = Batch()
        now = self._monotonic()
        wall_offset_seconds = self._wall() - now
        if now >= self._statistics_at:
            self._statistics_at = now + STATISTICS_SECONDS
            for name, data in self._state.statistics.rows():
                if data is None:
                    batch.forgotten_statistics.append(name)
                else:
                    batch.statistics.append((name, data))
        tasks, self._tasks = self._tasks, set()
        operations, self._operations = self._operations, set()
        workers, self._workers = self._workers, set()
        for task_id in tasks:
            self._cut_task(task_id, batch, wall_offset_seconds)
        for name in operations:
            self._cut_operation(name, batch, wall_offset_seconds)
        for worker_id in workers:
            worker = self._state.fleet.workers.get(worker_id)
            if worker is None:
                batch.gone_workers.append(worker_id)
            else:
                batch.workers.append((worker_id, _encode(_worker_record(worker, wall_offset_seconds))))
        return batch

    def _cut_task(self, task_id: str, batch: Batch, wall_offset_seconds: float) -> None:
        task = self._state.tasks.get(task_id)
        if task is None:
            number = self._written_tasks.pop(task_id, None)
            if number is not None:
                batch.ended_tasks.append(number)
            return
        if task_id not in self._written_tasks:
            self._written_tasks[task_id] = task.arrival
            candidate = wire.write_candidate(task.candidate).SerializeToString()
            batch.tasks.append((task.arrival, task_id, task.queued_at + wall_offset_seconds, candidate))
        batch.live.append((task.arrival, _encode(_live_record(task))))

    def _cut_operation(self, name: str, batch: Batch, wall_offset_seconds: float) -> None:
        operation = self._state.operations.get(name)
        number = self._written_operations.get(name)
        if operation is None:
            if number is not None:
                del self._written_operations[name]
                batch.forgotten_operations.append(number)
        elif number is None or operation.outcome is not None:  # of a live one, nothing changes
            if number is None:
                number = self._written_operations[name] = self._next_number
                self._next_number += 1
            batch.operations.append(_operation_row(number, operation, wall_offset_seconds))


def _live_record(task: Task) -> LiveRecord:
    lease = task.lease
    held = None
    if lease is not None and lease.hold is not Hold.REVOKED:
        who = lease.owner
        charged = None if who == task.candidate.owner else (who.tenant, who.user, who.invocation)
        held = LeaseRecord(lease.lease_id, lease.epoch, lease.worker.worker_id, lease.started, charged)
    enlarged = task.need.memory_bytes if task.enlarged else 0
    return LiveRecord(task.priority, task.epoch, task.losses, held, task.expected_seconds, enlarged)


def _operation_row(number: int, operation: Operation, wall_offset_seconds: float) -> OperationRow:
    candidate, outcome = operation.task.candidate, operation.outcome
    view = operation.view
    state = OperationState(
        name=operation.name,
        instance_name=candidate.instance_name,
        action_digest=candidate.action_digest,
        stage=Stage.QUEUED if outcome is None else Stage.COMPLETED,
        response=None if outcome is None else response_of(outcome),
        inlining=view if isinstance(view, Inlining) else Inlining(),
        owner=operation.owner,
    )
    encoded = wire.write_state(state).SerializeToString()
    if operation.completed_at is None:
        return number, operation.name, operation.task.arrival, None, encoded
    return number, operation.name, None, operation.completed_at + wall_offset_seconds, encoded


def _worker_record(worker: Worker, wall_offset_seconds: float) -> WorkerRecord:
    offer = worker.offer
    resources = {"cpu": offer.cpu_millis, "memory": offer.memory_bytes}
    lost_at = None if worker.lost_at is None else worker.lost_at + wall_offset_seconds
    names = sorted(offer.instance_names)
    record = WorkerRecord(worker.name, worker.slots, sorted(offer.pairs), names, resources, lost_at)
    if worker.drain_until is None:
        return record  # one that leaves of its own accord says so again
    until = worker.drain_until + wall_offset_seconds
    return msgspec.structs.replace(record, drain_until=until, drain_reason=worker.drain_reason)
