"""The kinds of reasons why tasks wait: few words, for counting."""

from __future__ import annotations

from enum import StrEnum

from rexec.scheduler.fleet import Fleet
from rexec.scheduler.pools import grows_for
from rexec.scheduler.task import Task


class Category(StrEnum):
    """Why a task that is QUEUED has no worker."""

    BUSY = "busy"
    """All workers that fit have their hands full."""
    NO_WORKER = "no_worker"
    """No worker fits."""
    TOO_LARGE = "too_large"
    """Workers fit but for their size: it asks for more than any of them has when it is empty."""
    GROWING = "growing"
    """A pool that fits is to get more workers."""
    GAP = "gap"
    """It asks for more than one slot, and no worker has so much free at once."""
    LIMIT = "limit"
    """A tenant, user or invocation has as many actions running as it may have."""
    LEAVING = "leaving"
    """The workers that fit are leaving or away."""
    QUARANTINED = "quarantined"
    """Too much has failed on the workers that fit; one of them gets an action on trial soon."""
    AVOIDING = "avoiding"
    """It failed on the workers that fit, and waits for another one for a while."""
    NEXT = "next"
    """A worker has it already and fetches its inputs."""
    PARKED = "parked"
    """Nobody waits for it."""


def category_of(task: Task, fleet: Fleet) -> Category:
    """The category of a task in stage QUEUED. Tasks of one group (rexec/scheduler/waiting.py) have the same, but for those
    that others have joined."""
    if task.parked:
        return Category.PARKED
    if task.place is None:
        return Category.NEXT
    fit = fleet.fit_of(task)
    growing = grows_for(fit, fleet.pools)
    if not fit.workers and not growing:
        return Category.TOO_LARGE if fleet.largest(fit) else Category.NO_WORKER
    if limit_of(task, fleet):
        return Category.LIMIT
    if growing:
        return Category.GROWING
    if not fit.has_other(task.excluded):
        if fit.barred() is not None:
            return Category.QUARANTINED
        return Category.AVOIDING if task.excluded else Category.LEAVING
    return Category.GAP if fit.uneven else Category.BUSY


def limit_of(task: Task, fleet: Fleet) -> str:
    """The limit that keeps a task in line from running, for a person; empty if one of those who wait for it is below his."""
    found = ""
    for branch in task.place.stands if task.place is not None else ():
        found = fleet.shares.running_limit(branch.node.owner)
        if not found:
            return ""
    return found
