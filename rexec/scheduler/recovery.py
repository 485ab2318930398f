"""The queue as the next process finds it: rows of the journal and the time go in, a state comes out.

- A task that had a worker still has it: the worker is away, as if its stream had just broken, and has a grace of its own to
  come back with the same session; one that was away before has what was left of its time, and a moment at least. If it does
  not, the task runs again, which counts for nothing: a worker may well have ended together with the scheduler.
- A task that waited keeps its arrival, and so its place. Nobody waits for it yet, so it is parked until a client or a frontend
  comes back, and given up like any other if none does.
- A result that was being checked is reported again by its worker, because it was never acknowledged.
- A completed operation is kept for the rest of its time, but long enough for a client to come back to it.

Epochs go on above all that can have been granted before, even if the last rows are lost: the number of this process among
those that led (its generation) is in their upper half.

A row that cannot be read is left out, and what hangs on it; the caller is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

from cas.errors import MalformedRequest
from protos.rexec.scheduler.v1 import record_pb2
from rexec.scheduler import wire
from rexec.scheduler.deadlines import Due
from rexec.scheduler.leases import watch
from rexec.scheduler.need import MAX_MEMORY_BYTES, need_of
from rexec.scheduler.platform import Offer
from rexec.scheduler.rows import LeaseRecord, LiveRecord, OperationRow, Recorded, TaskRow, WorkerRecord
from rexec.scheduler.scheduler import OperationState
from rexec.scheduler.state import QueueState
from rexec.scheduler.submission import expect_properties
from rexec.scheduler.task import Candidate, Lease, Operation, Outcome, Owner, Stage, Task, Worker
from rexec.scheduler.waiters import watch_abandonment

COME_BACK_SECONDS: Final = 60.0
"""How long a completed operation can be asked for after a restart at least. It also bounds what a wall clock that jumped can
do: nothing is forgotten at once."""

RECONNECT_SECONDS: Final = 5.0
"""How long a worker that was away before may take to find the new scheduler. Restarts that follow on one another faster than
a grace must not keep the work of a dead worker from the others."""

MAX_AGE_SECONDS: Final = 7 * 86400.0
"""How long a task can have waited, whatever the wall clock says."""

EPOCHS: Final = 1 << 32
"""Grants of one task under one generation."""

_live_decoder = msgspec.msgpack.Decoder(LiveRecord)
_worker_decoder = msgspec.msgpack.Decoder(WorkerRecord)


@dataclass(slots=True)
class Restored:
    """What was made of the rows."""

    numbers: dict[str, int] = field(default_factory=dict)
    """Of the rows of operations, by name."""
    resumable_leases: int = 0
    unreadable: list[str] = field(default_factory=list)
    """A line for each row that was left out."""
    unread_tasks: list[int] = field(default_factory=list)
    """Numbers of rows to be deleted."""
    unread_operations: list[int] = field(default_factory=list)
    unread_workers: list[str] = field(default_factory=list)
    """The sessions."""


def restore(state: QueueState, rows: Recorded, generation: int, now: float, wall: float) -> Restored:
    """Fill an empty state. `now` is the time that events come with, `wall` the same moment in seconds since 1970."""
    restored = Restored()
    state.now = now
    for name, data in rows.statistics:
        try:
            state.statistics.load(name, data)
        except ValueError as reason:
            restored.unreadable.append(f"statistics {name[:100]!r}: {reason}")
    for session, record in rows.workers:
        _restore_worker(state, session, record, now, wall, restored)
    live = dict(rows.live)
    tasks: dict[int, Task] = {}
    for row in sorted(rows.tasks):
        task = _restore_task(state, row, live.get(row[0], b"\x80"), generation, now, wall, restored)
        if task is not None:
            tasks[task.arrival] = task
    _restore_operations(state, rows.operations, tasks, now, wall, restored)
    for task in list(tasks.values()):
        if task.operations:
            watch_abandonment(state, task, now)
        else:
            _remove(state, task, restored)
    highest = max((row[0] for row in rows.tasks), default=-1)
    state.arrivals = max(state.arrivals, highest + 1)
    state.effects, state.roomy = [], []
    state.is_restart = bool(rows.workers or rows.tasks or rows.operations)
    return restored


def _restore_worker(
    state: QueueState, session: str, record: bytes, now: float, wall: float, restored: Restored
) -> None:
    try:
        said = _worker_decoder.decode(record)
        if said.slots < 1 or any(amount < 0 for amount in said.resources.values()):
            raise msgspec.DecodeError(f"{said.slots} slots and resources {said.resources} cannot be")
    except msgspec.DecodeError as reason:
        restored.unreadable.append(f"worker {session[:100]!r}: {reason}")
        restored.unread_workers.append(session)
        return
    offer = Offer(
        frozenset(said.pairs),
        frozenset(said.instance_names),
        said.resources.get("cpu", 0),
        said.resources.get("memory", 0),
    )
    if said.name in state.fleet.by_name:
        restored.unread_workers.append(session)
        restored.unreadable.append(f"worker {session[:100]!r}: there is another one named {said.name[:100]!r}")
        return
    worker = Worker(session, said.name, said.slots, offer, connected=False, idle_since=now)
    grace = state.settings.restart_grace_seconds
    if said.lost_at is not None:
        grace = min(grace, max(RECONNECT_SECONDS, said.lost_at - wall))
    worker.lost_at = now + grace
    if said.drain_until is not None:
        worker.draining, worker.drain_reason = True, said.drain_reason
        worker.drain_until = now + max(0.0, said.drain_until - wall)
    state.know(offer.names)
    state.fleet.add(worker)
    state.deadlines.add(worker.lost_at, Due.WORKER_LOST, session)


def _restore_task(
    state: QueueState, row: TaskRow, record: bytes, generation: int, now: float, wall: float, restored: Restored
) -> Task | None:
    number, task_id, queued_at, encoded = row
    try:
        candidate = wire.read_candidate(wire.parsed(record_pb2.Candidate, encoded))
        said = _live_decoder.decode(record)
        if candidate.payload is None:
            raise MalformedRequest("it has no run")
    except (MalformedRequest, msgspec.DecodeError) as reason:
        restored.unreadable.append(f"task {task_id[:100]!r}: {reason}")
        restored.unread_tasks.append(number)
        return None
    waited = min(max(0.0, wall - queued_at), MAX_AGE_SECONDS)
    task = Task(task_id, candidate, number, now - waited, said.priority)
    task.epoch = max(said.epoch, generation * EPOCHS)
    task.losses = list(said.losses)
    task.expected_seconds = said.expected_seconds
    if said.enlarged_memory_bytes > 0:
        task.enlarged = True
        task.need = need_of(task.need.slots, task.need.cpu_millis, min(said.enlarged_memory_bytes, MAX_MEMORY_BYTES))
    state.add(task)
    worker = state.fleet.workers.get(said.lease.session) if said.lease is not None else None
    if said.lease is not None and worker is not None:
        _restore_lease(state, task, worker, said.lease, now)
        restored.resumable_leases += 1
    else:
        task.parked = True
        expect_properties(state, task)
    return task


def _restore_lease(state: QueueState, task: Task, worker: Worker, said: LeaseRecord, now: float) -> None:
    lease = Lease(said.lease_id, said.epoch, task, worker, said.started)
    lease.is_restored = lease.inherited = True
    task.lease = state.leases[lease.lease_id] = worker.leases[lease.lease_id] = lease
    state.fleet.occupy(lease, task.candidate.owner if said.charged is None else Owner(*said.charged))
    state.fleet.update(worker)
    watch(state, lease)
    if lease.started:
        task.stage = Stage.EXECUTING
        state.accounts.began(lease, now)


def _restore_operations(
    state: QueueState, rows: list[OperationRow], tasks: dict[int, Task], now: float, wall: float, restored: Restored
) -> None:
    completed: list[tuple[float, int, Operation]] = []
    for number, name, task_number, completed_at, encoded in rows:
        try:
            said = wire.read_state(wire.parsed(record_pb2.OperationState, encoded))
            task = _task_of(said, number, task_number, tasks, now)
        except MalformedRequest as reason:
            restored.unreadable.append(f"operation {name[:300]!r}: {reason}")
            restored.unread_operations.append(number)
            continue
        operation = Operation(name, task, said.inlining, owner=said.owner)
        state.operations[name] = operation
        restored.numbers[name] = number
        if said.response is not None:
            operation.outcome = wire.outcome_of(said.response)
            longest = max(0.0, state.settings.retain_seconds - COME_BACK_SECONDS)
            operation.completed_at = now - min(max(0.0, wall - (completed_at or wall)), longest)
            completed.append((operation.completed_at, number, operation))
        else:
            task.operations[name] = operation
            if task.stage is Stage.QUEUED:
                state.count_queued(operation, 1)
            state.accounts.joined(operation, now)
    for when, _number, operation in sorted(completed, key=lambda entry: entry[:2]):
        outcome = operation.outcome or Outcome()
        state.retention.add(operation.name, when, outcome.size_bytes)


def _task_of(said: OperationState, number: int, task_number: int | None, tasks: dict[int, Task], now: float) -> Task:
    """The task of an operation; for a completed one nothing but what it is asked for. Raises MalformedRequest."""
    if said.response is not None:
        candidate = Candidate(said.instance_name, said.action_digest, owner=said.owner)
        return Task(f"completed-{number}", candidate, number, now, 0, Stage.COMPLETED)
    if task_number is None or task_number not in tasks:
        raise MalformedRequest("its task is not there")
    return tasks[task_number]


def _remove(state: QueueState, task: Task, restored: Restored) -> None:
    """A task that is nobody's, because its operations cannot be read."""
    restored.unreadable.append(f"task {task.task_id[:100]!r}: it has no operation")
    restored.unread_tasks.append(task.arrival)
    state.remove(task)
    lease = task.lease
    if lease is not None:
        state.accounts.released(lease, state.now)
        state.fleet.vacate(lease)
        del state.leases[lease.lease_id], lease.worker.leases[lease.lease_id]
        state.fleet.update(lease.worker)
