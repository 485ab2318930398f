"""A client asks for a run: it joins an equal one in flight, or a task is made, or it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cas.errors import NoWorkerFits, QueueFull
from rexec.scheduler import events as e
from rexec.scheduler.completion import end, retain
from rexec.scheduler.deadlines import Due
from rexec.scheduler.dispatch import enqueue, promote
from rexec.scheduler.platform import Requirement
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Operation, Outcome, Stage, Task
from rexec.scheduler.waiters import watch_abandonment


def submit(state: QueueState, event: e.Submit, now: float) -> None:
    """Make an operation, and a task if there is none to join. Raises NoWorkerFits and QueueFull; then nothing changed."""
    candidate = event.candidate
    key = (candidate.instance_name, candidate.action_digest)
    task = None if candidate.do_not_cache else state.in_flight.get(key)
    waits = task is None or task.stage is Stage.QUEUED
    if waits and state.queued_operations >= state.settings.max_queued_operations:
        raise QueueFull(f"{state.queued_operations} operations are queued already, the most allowed")
    if task is None:
        unknown = _unknown_names(state, candidate.requirement)
        if unknown and (now >= state.settled_at or state.any_attached):
            raise _no_worker_fits(state, unknown)
        task = Task(event.task_id, candidate, state.next_arrival(), now, candidate.priority)
        state.tasks[task.task_id] = task
        if not candidate.do_not_cache:
            state.in_flight[key] = task
        if unknown:
            expect_properties(state, task)
        enqueue(state, task, now)
    elif candidate.priority < task.priority:
        promote(state, task, candidate.priority)
    operation = Operation(event.operation_name, task, event.view, owner=candidate.owner)
    state.operations[operation.name] = task.operations[operation.name] = operation
    state.queued_operations += task.stage is Stage.QUEUED
    state.accounts.joined(operation, now)
    watch_abandonment(state, task, now)


def record(state: QueueState, event: e.Record, now: float) -> None:
    """An operation that is complete when it is born."""
    candidate = replace(event.candidate, payload=None)
    task = Task(event.task_id, candidate, state.next_arrival(), now, 0, Stage.COMPLETED)
    operation = Operation(event.operation_name, task, event.view, 0, event.outcome, now, candidate.owner)
    state.operations[operation.name] = operation
    state.accounts.recorded(operation, event.outcome, now)
    retain(state, operation, now)


def expect_properties(state: QueueState, task: Task) -> None:
    """If the task asks for properties that are unknown so far, look again once workers have had the time to attach."""
    if _unknown_names(state, task.candidate.requirement):
        state.unsettled.add(task.task_id)
        state.deadlines.add(state.settled_at, Due.SETTLED)


def settle(state: QueueState, now: float) -> None:
    """Workers have had the time to attach: what is unknown now is unknown."""
    for task_id in sorted(state.unsettled):
        task = state.tasks[task_id]
        unknown = _unknown_names(state, task.candidate.requirement)
        if unknown:
            end(state, task, Outcome(_no_worker_fits(state, unknown)), now)
    state.unsettled.clear()


def _unknown_names(state: QueueState, requirement: Requirement) -> list[str]:
    return sorted(requirement.names - state.known_names)


def _no_worker_fits(state: QueueState, unknown: Sequence[str]) -> NoWorkerFits:
    known = ", ".join(sorted(state.known_names)) or "none"
    noun = "property" if len(unknown) == 1 else "properties"
    return NoWorkerFits(
        f"unknown platform {noun} {', '.join(unknown)}; known are {known}; offer it with [worker.properties], or list it in"
        " [scheduler] ignored_properties of the server if it means nothing here"
    )
