"""A lease came to nothing: the task is tried again, elsewhere if it can be, or has used up its attempts."""

from __future__ import annotations

from cas.errors import WorkerLost
from rexec.scheduler import events as e
from rexec.scheduler.completion import end
from rexec.scheduler.dispatch import enqueue, leave
from rexec.scheduler.leases import drop, revoke
from rexec.scheduler.quarantine import blame
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Lease, Outcome, Stage


def retry(
    state: QueueState,
    lease: Lease,
    reason: str,
    now: float,
    *,
    counted: bool,
    avoid: bool,
    last: Outcome | None = None,
) -> None:
    """The worker does not have the lease any more. The task waits again, keeping its place, or ends if this was the last of
    its attempts. One that has a second lease goes on with that, and nothing is held against it.

    `counted` says whether it was an attempt, `avoid` whether the task should not go to the same worker again, `last` how the
    task ends after the last attempt, if not with WorkerLost.
    """
    drop(state, lease)
    _again(state, lease, reason, now, counted=counted, avoid=avoid, last=last)


def take_back(state: QueueState, lease: Lease, reason: str, now: float) -> None:
    """The worker is not to be waited for any longer, though it may have the lease still: that is an attempt, and the worker's
    fault."""
    blame(state, [lease], reason, now)
    revoke(state, lease, reason)
    _again(state, lease, reason, now, counted=True, avoid=True)


def _again(
    state: QueueState,
    lease: Lease,
    reason: str,
    now: float,
    *,
    counted: bool,
    avoid: bool,
    last: Outcome | None = None,
) -> None:
    task, name = lease.task, lease.worker.name
    if avoid:
        task.excluded |= {name}
    if task.lease is not None:
        state.effects.append(e.HedgeEnded(task.task_id, won=False))
        return
    if counted:
        task.losses.append(f"{name} ({reason})")
    if len(task.losses) >= state.settings.max_attempts:
        workers = ", ".join(task.losses)
        lost = Outcome(WorkerLost(f"gave up after {len(task.losses)} attempts: {workers}"))
        end(state, task, lost if last is None else last, now)
        return
    state.set_stage(task, Stage.QUEUED)
    state.effects.append(e.TaskRetried(task.task_id, name, reason, counted))
    if task.waiters:
        enqueue(state, task, now)
    else:
        task.parked = True


def exclusion_ended(state: QueueState, task_id: str, when: float, now: float) -> None:
    """A task has avoided some workers until `when`, which is long enough unless there are others.

    Means nothing if the task runs or has ended, or avoids them anew since.
    """
    task = state.tasks.get(task_id)
    if task is None or task.exclusion_ends_at != when:
        return
    others = state.fleet.fit_of(task).has_other(task.excluded)
    leave(state, task)
    if not others:
        task.excluded = frozenset()
    enqueue(state, task, now)
