"""Which tasks wait in line, and which worker gets which of them."""

from __future__ import annotations

from rexec.scheduler import events as e
from rexec.scheduler.deadlines import Due
from rexec.scheduler.leases import grant
from rexec.scheduler.reason import reason_of
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Task


def enqueue(state: QueueState, task: Task, now: float) -> None:
    """The task waits for a worker; for a while for none of those that it has failed on."""
    if task.excluded:
        task.exclusion_ends_at = now + state.settings.exclusion_seconds
        state.deadlines.add(task.exclusion_ends_at, Due.EXCLUSION_ENDS, task.task_id)
    state.fleet.enqueue(task)
    state.waiting.joined(task)
    state.accounts.waits(task, now)
    state.queued.append(task)
    if not state.fleet.fit(task.candidate.requirement).workers:
        state.deadlines.add(now + state.settings.unserved_seconds, Due.UNSERVED, task.task_id)


def leave(state: QueueState, task: Task) -> None:
    """The task waits no more, if it did."""
    if task.place is not None:
        state.fleet.dequeue(task)
        state.waiting.left(task)
        state.accounts.waits_no_more(task, state.now)
    task.exclusion_ends_at = None


def promote(state: QueueState, task: Task, priority: int) -> None:
    """Someone who joined is more urgent: the task runs sooner if it waits in line."""
    waiting = task.place is not None
    if waiting:
        state.fleet.dequeue(task)
    task.priority = priority
    if waiting:
        state.fleet.enqueue(task)


def assign(state: QueueState) -> None:
    """Give waiting tasks to workers with room.

    Before the event nothing that waited could be given away, so only what has changed is looked at: tasks that began to
    wait look for a worker, workers that got room look for a task.
    """
    fleet = state.fleet
    for task in sorted(state.queued, key=lambda task: (task.priority, task.arrival)):
        if task.place is not None and (worker := fleet.best_worker(task)) is not None:
            leave(state, task)
            grant(state, task, worker)
    for worker in state.roomy:
        while fleet.has_room(worker) and (waiting := fleet.next_task(worker)) is not None:
            leave(state, waiting)
            grant(state, waiting, worker)
    state.queued.clear()
    state.roomy.clear()


def tell_unserved(state: QueueState, task_id: str, now: float) -> None:
    """Have the log told that no worker fits, if that is still so and has not been said lately."""
    task = state.tasks.get(task_id)
    if task is None or task.place is None:
        return
    fit = state.fleet.fit(task.candidate.requirement)
    if fit.workers:
        return
    again_seconds = state.settings.unserved_again_seconds
    if now >= fit.told_at + again_seconds:
        fit.told_at = now
        state.effects.append(e.TasksUnserved(fit.waiting, reason_of(task, state.fleet)))
    state.deadlines.add(fit.told_at + again_seconds, Due.UNSERVED, task_id)
