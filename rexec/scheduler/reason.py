"""Why a task waits, in words for the person who waits for it."""

from __future__ import annotations

from rexec.scheduler.category import Category, category_of, limit_of
from rexec.scheduler.fit import Fit
from rexec.scheduler.fleet import Fleet
from rexec.scheduler.need import readable
from rexec.scheduler.platform import unmatched
from rexec.scheduler.pool import Pool
from rexec.scheduler.pools import Prospect, prospect_of
from rexec.scheduler.task import Task

MAX_CHARACTERS = 1000
"""Of a reason: clients and workers choose the names in it, and every client that waits is sent it again and again."""


def reason_of(task: Task, fleet: Fleet) -> str:
    """Every task in stage QUEUED has a reason; it is empty once the task runs."""
    return _reason_of(task, fleet)[:MAX_CHARACTERS]


def _reason_of(task: Task, fleet: Fleet) -> str:
    if task.place is None and not task.parked:
        return "" if task.lease is None or task.lease.started else f"next on worker {task.lease.worker.name}"
    category = category_of(task, fleet)
    if category is Category.PARKED:
        return "nobody waits for it; it keeps its place for those who come back"
    fit = fleet.fit_of(task)
    match category:
        case Category.NO_WORKER | Category.TOO_LARGE:
            generations, text = fit.unserved
            if generations != (fleet.generation, fleet.pools.generation):
                text = _unserved(fit, fleet)
                fit.unserved = (fleet.generation, fleet.pools.generation), text
            return text
        case Category.GROWING:
            pool = fleet.pools.pool_for(fit)
            return "" if pool is None else _growing(pool)
        case Category.LIMIT:
            return limit_of(task, fleet)
        case Category.LEAVING:
            return "every worker that fits is leaving or away"
        case Category.QUARANTINED:
            barred = fit.barred()
            assert barred is not None
            return f"worker {barred.name} is quarantined until its next trial: {barred.standing_reason}"
        case Category.AVOIDING:
            return f"waiting for another worker than {', '.join(sorted(task.excluded))}"
        case Category.GAP if fit.reserved is not None:
            return f"worker {fit.reserved.name} is kept free until {fit.need} fit there; {_crowd(task, fit)}"
        case Category.GAP | Category.BUSY if held_back := _held_back(fleet.pools.pool_for(fit)):
            return f"{held_back}; {_crowd(task, fit)}"
        case Category.GAP:
            return f"no worker that fits {fit.requirement} has {fit.need} free at once; {_crowd(task, fit)}"
        case _:
            return f"all {fit.slots} slots that fit {fit.requirement} are busy; {_crowd(task, fit)}"


def _crowd(task: Task, fit: Fit) -> str:
    """How many more wait for the same: whose turn comes when depends on what ends, so this is the most."""
    others = fit.waiting - 1
    own = max((branch.waiting for branch in task.place.stands), default=1) - 1 if task.place is not None else 0
    if not others:
        return "it is the next one"
    return f"at most {others} actions come before it, {own} of them of the same invocation"


def _growing(pool: Pool) -> str:
    """What goes on in a pool that is to have more workers."""
    if pool.problem:
        return f"pool {pool.name}: {pool.problem}{f' ({pool.starting} starting)' if pool.starting else ''}"
    if pool.target <= pool.ready:
        return f"pool {pool.name} has no worker yet"
    text = f"pool {pool.name} growing {pool.ready} -> {pool.target}"
    if pool.starting:
        text += f", {pool.starting} starting"
    return f"{text}, one takes about {pool.start_seconds:.0f}s" if pool.start_seconds >= 0.5 else text


def _held_back(pool: Pool | None) -> str:
    """Why the pool gets no more workers; empty if nothing is against it, or if there is none."""
    if pool is None:
        return ""
    match prospect_of(pool):
        case Prospect.FULL:
            return f"pool {pool.name} is at its maximum of {pool.max} worker{'' if pool.max == 1 else 's'}"
        case Prospect.STUCK:
            return f"pool {pool.name}: {pool.problem}"
        case Prospect.AWAY:
            return f"pool {pool.name}: the autoscaler is away"
    return ""


def _unserved(fit: Fit, fleet: Fleet) -> str:
    """Why no worker fits, and no pool gets one that does."""
    pool = fleet.pools.pool_for(fit)
    if pool is None:
        text = _unmatched(fit, fleet)
        large = fleet.pools.largest(fit.requirement)
        if large is not None:
            return f"{text}; a worker of pool {large.name} has {_size(large)}, and the action asks for {fit.need}"
        return f"{text}, and no pool has such workers" if len(fleet.pools) else text
    if pool.ready and not pool.away:
        return f"{_unmatched(fit, fleet)}, though pool {pool.name} should have {pool.ready} that do"
    return _held_back(pool)


def _size(pool: Pool) -> str:
    figures = [f"slots={pool.slots}"]
    if pool.offer.cpu_millis:
        figures.append(f"cpu={pool.offer.cpu_millis / 1000:g}")
    if pool.offer.memory_bytes:
        figures.append(f"memory={readable(pool.offer.memory_bytes)}")
    return ", ".join(figures)


def _unmatched(fit: Fit, fleet: Fleet) -> str:
    largest = fleet.largest(fit)
    if not largest:
        return unmatched(fit.requirement, ((worker.offer, 1) for worker in fleet.workers.values()))
    need = fit.need
    slots, cpu_millis, memory_bytes = largest
    lacks = []
    if need.slots > slots:
        lacks.append(f"slots={need.slots} (the most is {slots})")
    if need.cpu_millis > cpu_millis:
        most = f"the most is {cpu_millis / 1000:g}" if cpu_millis else "no worker says how many cores it has"
        lacks.append(f"cpu={need.cpu_millis / 1000:g} ({most})")
    if need.memory_bytes > memory_bytes:
        most = f"the most is {readable(memory_bytes)}" if memory_bytes else "no worker says how much memory it has"
        lacks.append(f"memory={readable(need.memory_bytes)} ({most})")
    return f"no worker that fits {fit.requirement} has {', '.join(lacks) if lacks else f'{need} together'}"
