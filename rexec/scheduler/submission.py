"""A client asks for a run: it joins an equal one in flight, or a task is made, or it is refused."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cas.errors import NoWorkerFits, QueueFull
from rexec.scheduler import events as e
from rexec.scheduler.completion import end, retain
from rexec.scheduler.deadlines import Due
from rexec.scheduler.dispatch import enqueue, join
from rexec.scheduler.need import need_of
from rexec.scheduler.platform import Requirement
from rexec.scheduler.state import QueueState
from rexec.scheduler.summary import shortened
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
    if waits and (limit := state.fleet.shares.queue_limit(candidate.owner)):
        raise QueueFull(limit)
    if task is None:
        unknown = _unknown_names(state, candidate.requirement)
        if unknown and (now >= state.settled_at or (state.any_attached and not state.is_restart)):
            raise _no_worker_fits(state, unknown)
        _require_pattern(state, candidate.requirement)
        task = Task(event.task_id, candidate, state.next_arrival(), now, candidate.priority)
        expect_use(state, task)
        _require_known_kind(state, task)
        state.add(task)
        if unknown:
            expect_properties(state, task)
    operation = Operation(event.operation_name, task, event.view, owner=candidate.owner)
    state.operations[operation.name] = task.operations[operation.name] = operation
    if task.stage is Stage.QUEUED:
        state.count_queued(operation, 1)
        if task.operations.keys() == {operation.name}:
            enqueue(state, task, now)
        else:
            join(state, task, candidate)
    state.accounts.joined(operation, now)
    task.abandon_at = None  # its client's stream is on its way, however long nobody has waited before
    watch_abandonment(state, task, now)


def record(state: QueueState, event: e.Record, now: float) -> None:
    """An operation that is complete when it is born."""
    candidate = msgspec.structs.replace(event.candidate, payload=None)
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


def expect_use(state: QueueState, task: Task) -> None:
    """Set what is known of how long the task takes, and how much memory."""
    estimate = state.statistics.estimate(task.candidate)
    if estimate.samples:
        task.expected_seconds = estimate.expected_seconds
        demand = task.candidate.demand
        if estimate.peak_memory_bytes > state.fleet.least_share_bytes:
            task.need = need_of(demand.slots, demand.cpu_millis, demand.memory_bytes, estimate.peak_memory_bytes)


def settle(state: QueueState, now: float) -> None:
    """Workers have had the time to attach: what is unknown now is unknown."""
    for task_id in sorted(state.unsettled):
        task = state.tasks[task_id]
        unknown = _unknown_names(state, task.candidate.requirement)
        try:
            if unknown:
                raise _no_worker_fits(state, unknown)
            _require_pattern(state, task.candidate.requirement)
        except NoWorkerFits as refusal:
            end(state, task, Outcome(refusal), now)
    state.unsettled.clear()


def _require_known_kind(state: QueueState, task: Task) -> None:
    """Raises QueueFull if the task asks for what no other one does, and that would be one kind too many."""
    if (task.candidate.requirement, task.need) not in state.kinds and len(state.kinds) >= state.settings.max_kinds:
        raise QueueFull(
            f"actions ask for {len(state.kinds)} different platforms and sizes already, the most allowed"
            " ([scheduler] max_kinds); ask for cpu and memory in fewer sizes"
        )


def _unknown_names(state: QueueState, requirement: Requirement) -> list[str]:
    return sorted(requirement.names - state.known_names - state.fleet.pools.names)


def _require_pattern(state: QueueState, requirement: Requirement) -> None:
    """Raises NoWorkerFits if pools take only some values of a property, not the one that is asked for, and no worker that is
    here offers it either."""
    pools = state.fleet.pools
    for name, value in pools.refused(requirement):
        if not any(worker.offer.has(name, value) for worker in state.fleet.workers.values()):
            asked = shortened(f"{name}={value}")
            raise NoWorkerFits(f"no pool takes {asked}, and no worker offers it; {pools.patterns(name)}")


def _no_worker_fits(state: QueueState, unknown: Sequence[str]) -> NoWorkerFits:
    known = ", ".join(sorted(state.known_names | state.fleet.pools.names)) or "none"
    noun = "property" if len(unknown) == 1 else "properties"
    return NoWorkerFits(
        f"unknown platform {noun} {', '.join(unknown)}; known are {known}; offer it with [worker.properties], or list it in"
        " [scheduler] ignored_properties of the server if it means nothing here"
    )
