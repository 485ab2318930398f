"""Clients come, go, and stop what they asked for. A task that nobody waits for takes no slot, and is given up after a while."""

from __future__ import annotations

from cas.errors import Cancelled
from rexec.scheduler.completion import complete, end
from rexec.scheduler.deadlines import Due
from rexec.scheduler.dispatch import enqueue, leave
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Operation, Outcome, Stage, Task


def waiter_joined(state: QueueState, operation: Operation, now: float) -> None:
    """A stream waits for the operation; a parked task comes back into line."""
    operation.waiters += 1
    if operation.outcome is None:
        operation.task.waiters += 1
        operation.task.abandon_at = None
        if operation.task.parked:
            operation.task.parked = False
            enqueue(state, operation.task, now)


def waiter_left(state: QueueState, name: str, now: float) -> None:
    """A stream that waited is gone. The operation may be forgotten already."""
    operation = state.operations.get(name)
    if operation is not None and operation.waiters > 0:
        operation.waiters -= 1
        operation.task.waiters -= operation.outcome is None
        watch_abandonment(state, operation.task, now)
        _park(state, operation.task)


def cancel(state: QueueState, operation: Operation, now: float) -> None:
    """Someone asked for the operation to stop. The task goes on if others wait for it."""
    if operation.outcome is not None:
        return
    outcome = Outcome(Cancelled("the operation was cancelled"))
    if len(operation.task.operations) == 1:
        end(state, operation.task, outcome, now)
    else:
        complete(state, operation, outcome, now)
        watch_abandonment(state, operation.task, now)
        _park(state, operation.task)


def watch_abandonment(state: QueueState, task: Task, now: float) -> None:
    """Start the clock if no one waits for the task."""
    if task.stage is not Stage.COMPLETED and task.waiters == 0 and task.abandon_at is None:
        task.abandon_at = now + state.settings.abandon_seconds
        state.deadlines.add(task.abandon_at, Due.TASK_ABANDONED, task.task_id)


def abandoned(state: QueueState, task_id: str, when: float, now: float) -> None:
    """The time that a task goes on for nobody ends at `when`; means nothing if someone came meanwhile."""
    task = state.tasks.get(task_id)
    if task is not None and task.abandon_at == when:
        end(state, task, Outcome(Cancelled("nobody waited for the operation any more")), now)


def _park(state: QueueState, task: Task) -> None:
    """Take a task out of line if the last one who waited for it has left. It comes back when someone does."""
    if task.place is not None and task.waiters == 0:
        leave(state, task)
        task.parked = True
