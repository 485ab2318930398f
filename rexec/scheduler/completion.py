"""The end of a task and of its operations, and for how long the completed ones are remembered."""

from __future__ import annotations

import msgspec

from rexec.scheduler import events as e
from rexec.scheduler.dispatch import leave
from rexec.scheduler.leases import revoke
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Operation, Outcome, Stage, Task


def end(state: QueueState, task: Task, outcome: Outcome, now: float) -> None:
    """The task has ended, whatever state it was in."""
    leave(state, task)
    task.parked = False
    if task.result_epoch is None and task.lease is not None:
        task.result_epoch = task.lease.epoch
    if task.hedge is not None:
        state.effects.append(e.HedgeEnded(task.task_id, won=False))
    reason = str(outcome.error or "the task has ended")
    for lease in (task.hedge, task.lease):
        if lease is not None:
            revoke(state, lease, reason)
    for operation in list(task.operations.values()):
        complete(state, operation, outcome, now)
    task.stage = Stage.COMPLETED
    task.abandon_at = None
    state.remove(task)
    # Its operations are kept for a while and would keep the whole command in memory.
    task.candidate = msgspec.structs.replace(task.candidate, payload=None)
    state.effects.append(e.TaskCompleted(task.task_id, task.queued_at, outcome, task.candidate.action_digest))


def complete(state: QueueState, operation: Operation, outcome: Outcome, now: float) -> None:
    """The operation has ended; its task may go on for others."""
    task = operation.task
    if task.stage is Stage.QUEUED:
        state.count_queued(operation, -1)
    state.accounts.ended(operation, outcome, now)
    operation.outcome = outcome
    operation.completed_at = now
    del task.operations[operation.name]
    task.waiters -= operation.waiters
    state.fleet.owner_left(task, operation.owner)
    state.effects.append(e.OperationChanged(operation.name))
    retain(state, operation, now)


def retain(state: QueueState, operation: Operation, now: float) -> None:
    """Remember an operation that completed now; older ones may have to go for it."""
    state.retention.add(operation.name, now, operation.outcome.size_bytes if operation.outcome else 0)
    forget_due(state, now)


def forget_due(state: QueueState, now: float) -> None:
    """Forget the completed operations that are too old by now, or too many."""
    for name in state.retention.pop_due(now):
        if state.operations.pop(name, None) is not None:
            state.effects.append(e.OperationForgotten(name))


def forget(state: QueueState, operation: Operation) -> None:
    """A client will not ask for it again. One that is live stays: google.longrunning DeleteOperation does not cancel."""
    if operation.outcome is None:
        return
    del state.operations[operation.name]
    state.effects.append(e.OperationForgotten(operation.name))
