"""Which tasks wait in line, and which worker gets which of them."""

from __future__ import annotations

from rexec.scheduler import events as e
from rexec.scheduler.deadlines import Due
from rexec.scheduler.leases import grant
from rexec.scheduler.line import Line
from rexec.scheduler.long_waits import watch
from rexec.scheduler.pools import grows_for
from rexec.scheduler.reason import reason_of
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Candidate, Owner, Task, Worker


def enqueue(state: QueueState, task: Task, now: float) -> None:
    """The task waits for a worker; for a while for none of those that it has failed on."""
    if task.excluded:
        task.exclusion_ends_at = now + state.settings.exclusion_seconds
        state.deadlines.add(task.exclusion_ends_at, Due.EXCLUSION_ENDS, task.task_id)
    state.fleet.enqueue(task)
    state.waiting.joined(task)
    state.accounts.waits(task, now)
    watch(state, task, now)
    if not task.unserved_due and not state.fleet.fit_of(task).workers:
        task.unserved_due = True
        state.deadlines.add(now + state.settings.unserved_seconds, Due.UNSERVED, task.task_id)


def leave(state: QueueState, task: Task) -> None:
    """The task waits no more, if it did."""
    if task.place is not None:
        state.fleet.dequeue(task)
        state.waiting.left(task)
        state.accounts.waits_no_more(task, state.now)
    task.exclusion_ends_at = None


def join(state: QueueState, task: Task, candidate: Candidate) -> None:
    """Someone else wants the same: a task in line stands in his line too, and where it stands it is as urgent as the most
    urgent of all."""
    urgent = candidate.priority < task.priority
    if urgent:
        task.priority = candidate.priority
    if task.place is None:
        return
    if urgent:
        state.fleet.requeue(task)
    else:
        state.fleet.join(task.place, candidate.owner)


def assign(state: QueueState, now: float) -> None:
    """Give waiting tasks to workers with room.

    Before the event nothing that waited could be given away, so only what has changed is looked at: workers that got room
    take what is next in order of all that they can run, then lines into which something came, or whose owners fell below a
    limit, look for a worker.
    """
    fleet = state.fleet
    while state.roomy or fleet.released or fleet.stirred:
        for workers in (state.roomy, fleet.released):
            while workers:
                worker = workers.pop()
                while fleet.active and fleet.has_room(worker) and (turn := fleet.next_task(worker, now)) is not None:
                    _serve(state, *turn, worker)
        contested = len(fleet.active) > 1 or len(fleet.stirred) > 1
        while fleet.stirred:
            line, _fit = fleet.stirred.popitem()
            _serve_line(state, line, contested, now)


def _serve_line(state: QueueState, line: Line, contested: bool, now: float) -> None:
    """Find workers for the tasks of a line. If it is `contested`, a worker takes what is next in order of all lines."""
    fleet = state.fleet
    while line.members and line.fit.roomy:
        turn = fleet.next_in_line(line)
        if turn is None:
            return
        worker = fleet.best_worker(turn[0])
        if worker is None:
            return
        chosen = fleet.next_task(worker, now) if contested else turn
        if chosen is not None:
            _serve(state, *chosen, worker)
        elif line.fit.room_of(worker.worker_id) is not None:
            return  # else the worker is kept free for something larger now, and another one may have room


def _serve(state: QueueState, task: Task, owner: Owner, worker: Worker) -> None:
    fit = state.fleet.fit_of(task)
    leave(state, task)
    grant(state, task, worker, owner)
    if fit.first_since is not None:
        state.fleet.need_met(fit)


def tell_unserved(state: QueueState, task_id: str, now: float) -> None:
    """Have the log told that no worker fits, if that is still so and has not been said lately."""
    task = state.tasks.get(task_id)
    if task is None:
        return
    fit = None if task.place is None else state.fleet.fit_of(task)
    if fit is None or fit.workers:
        task.unserved_due = False
        return
    again_seconds = state.settings.unserved_again_seconds
    pool = state.fleet.pools.pool_for(fit)
    if pool is not None and not pool.problem and grows_for(fit, state.fleet.pools):  # which takes its time
        state.deadlines.add(now + again_seconds, Due.UNSERVED, task_id)
        return
    if now >= fit.told_at + again_seconds:
        fit.told_at = now
        state.effects.append(e.TasksUnserved(fit.waiting, reason_of(task, state.fleet)))
    state.deadlines.add(fit.told_at + again_seconds, Due.UNSERVED, task_id)
