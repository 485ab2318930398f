"""The kinds of reasons why tasks wait: few words, for counting."""

from __future__ import annotations

from enum import StrEnum

from rexec.scheduler.fleet import Fleet
from rexec.scheduler.task import Task


class Category(StrEnum):
    """Why a task that is QUEUED has no worker."""

    BUSY = "busy"
    """All workers that fit have their hands full."""
    NO_WORKER = "no_worker"
    """No worker fits."""
    LEAVING = "leaving"
    """The workers that fit are leaving or away."""
    AVOIDING = "avoiding"
    """It failed on the workers that fit, and waits for another one for a while."""
    NEXT = "next"
    """A worker has it already and fetches its inputs."""
    PARKED = "parked"
    """Nobody waits for it."""


def category_of(task: Task, fleet: Fleet) -> Category:
    """The category of a task in stage QUEUED. Tasks of one group (rexec/scheduler/waiting.py) have the same."""
    if task.parked:
        return Category.PARKED
    if task.place is None:
        return Category.NEXT
    fit = fleet.fit(task.candidate.requirement)
    if not fit.workers:
        return Category.NO_WORKER
    if not fit.has_other(task.excluded):
        return Category.AVOIDING if task.excluded else Category.LEAVING
    return Category.BUSY
