"""Why a task waits, in words for the person who waits for it."""

from __future__ import annotations

from rexec.scheduler.fleet import Fleet
from rexec.scheduler.platform import unmatched
from rexec.scheduler.task import Task


def reason_of(task: Task, fleet: Fleet) -> str:
    """Every task in stage QUEUED has a reason; it is empty once the task runs."""
    if task.parked:
        return "nobody waits for it; it keeps its place for those who come back"
    if task.place is None:
        return "" if task.lease is None or task.lease.started else f"next on worker {task.lease.worker.name}"
    requirement = task.candidate.requirement
    fit = fleet.fit(requirement)
    if not fit.workers:
        return unmatched(requirement, ((worker.offer, 1) for worker in fleet.workers.values()))
    if not fit.has_other(task.excluded):
        if not task.excluded:
            return "every worker that fits is leaving or away"
        return f"waiting for another worker than {', '.join(sorted(task.excluded))}"
    return f"all {fit.slots} slots that fit {requirement} are busy; {fit.waiting} actions wait for them"
