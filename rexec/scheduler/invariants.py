"""What must be true of the queue after every event. Tests call it after each step; it costs the size of the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from rexec.scheduler.accounts import Tally, restored
from rexec.scheduler.category import limit_of
from rexec.scheduler.fit import Fit
from rexec.scheduler.fleet import Fleet
from rexec.scheduler.line import Branch, Line
from rexec.scheduler.packing import use_on
from rexec.scheduler.queue import Queue
from rexec.scheduler.shares import Level, Node
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Hold, Owner, Stage, Standing, Task

K = TypeVar("K")


def check(queue: Queue) -> None:
    """Raise AssertionError, naming the record, if the queue contradicts itself."""
    state = queue.state
    _check_tasks(state)
    _check_operations(state)
    _check_leases(state)
    _check_indexes(state)
    _check_shares(state)
    _check_room(state)
    _check_accounts(state)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise AssertionError(text)


def _check_tasks(state: QueueState) -> None:
    for task_id, task in state.tasks.items():
        _require(task.stage is not Stage.COMPLETED, f"{task_id} has ended and is still kept")
        states = (task.place is not None, task.lease is not None, task.parked)
        _require(states.count(True) == 1, f"{task_id} must wait, run or be parked, and is {states}")
        waiters = sum(operation.waiters for operation in task.operations.values())
        _require(task.waiters == waiters, f"{waiters} wait for {task_id}, {task.waiters} were counted")
        _require(not task.parked or task.waiters == 0, f"{task_id} is parked though someone waits")
        _require(bool(task.operations), f"{task_id} runs for nobody")
        _require(
            (task.waiters > 0) == (task.abandon_at is None), f"{task_id} is abandoned at {task.abandon_at} wrongly"
        )
        if task.place is not None:
            _require(task.stage is Stage.QUEUED, f"{task_id} waits in stage {task.stage.name}")
            _require(bool(task.excluded) == (task.exclusion_ends_at is not None), f"{task_id} avoids workers for ever")
        for lease in (task.lease, task.hedge):
            if lease is not None:
                _require(lease.hold is not Hold.REVOKED, f"{task_id} counts on a revoked lease")
                _require(state.leases.get(lease.lease_id) is lease, f"{task_id} has a lease that is not kept")
        if task.hedge is not None:
            _require(task.lease is not None, f"{task_id} has a second lease and no first one")
            _require(task.hedged and not task.candidate.do_not_cache, f"{task_id} was not to be hedged")
        if task.hedge is not None and task.lease is not None:
            _require(task.hedge.epoch > task.lease.epoch, f"{task_id} has a second lease that is older than the first")
            _require(
                task.hedge.worker.name != task.lease.worker.name,
                f"{task_id} has both leases on {task.lease.worker.name}",
            )
    kinds = Counter((task.candidate.requirement, task.need) for task in state.tasks.values())
    _require(kinds == state.kinds, f"tasks are of {kinds}, {state.kinds} were counted")
    for key, task in state.in_flight.items():
        _require(state.tasks.get(task.task_id) is task, f"{key} would join a task that has ended")
        _require(not task.candidate.do_not_cache, f"{key} would join a task that is not to be shared")


def _check_operations(state: QueueState) -> None:
    queued = 0
    for name, operation in state.operations.items():
        live = operation.outcome is None
        _require(live == (operation.completed_at is None), f"{name} ended half")
        _require(live == (name in operation.task.operations), f"{name} is in two states")
        _require(not live or operation.task.task_id in state.tasks, f"{name} waits for a task that has ended")
        queued += operation.stage is Stage.QUEUED
    _require(
        queued == state.queued_operations, f"{queued} operations are queued, {state.queued_operations} were counted"
    )


def _check_leases(state: QueueState) -> None:
    counting: Counter[str] = Counter()
    for lease_id, lease in state.leases.items():
        counting[lease.task.task_id] += lease.task.counts_on(lease)
        _require(lease.worker.leases.get(lease_id) is lease, f"{lease_id} is unknown to its worker")
        _require(lease.epoch <= lease.task.epoch, f"{lease_id} is from the future")
        if lease.hold is Hold.LIVE:
            _require(lease.task.counts_on(lease), f"{lease_id} is live and its task does not know")
            _require(lease.task.task_id in state.tasks, f"{lease_id} is live and its task has ended")
            _require(lease.worker.worker_id in state.fleet.workers, f"{lease_id} is live on a worker that is gone")
    for task_id, task in state.tasks.items():
        expected = (task.lease is not None) + (task.hedge is not None)
        _require(counting[task_id] == expected, f"{task_id} counts on {counting[task_id]} leases, expected {expected}")
    hedges = sum(task.hedge is not None for task in state.tasks.values())
    _require(hedges == state.hedges, f"{hedges} tasks have two leases, {state.hedges} were counted")
    _require(not state.stragglers, "stragglers are left over from an event")
    for worker in state.fleet.workers.values():
        settling = sum(lease.hold is Hold.SETTLING for lease in worker.leases.values())
        _require(
            settling == worker.settling, f"{worker.name} settles {settling} leases, {worker.settling} were counted"
        )
        _require(worker.idle_since <= state.now, f"{worker.name} is idle since a time to come")
        _require(worker.credit >= 0, f"{worker.name} was given more leases than it took")
        record = state.records.get(worker.name)
        standing = Standing.TRUSTED if record is None else record.standing
        _require(worker.standing is standing, f"{worker.name} is {worker.standing}, its name is {standing}")
        _require(
            worker.trial is None
            or (worker.standing is Standing.ON_TRIAL and worker.leases.get(worker.trial.lease_id) is worker.trial),
            f"{worker.name} is {worker.standing} and has a lease on trial that it does not have",
        )
        _require(worker.connected == (worker.lost_at is None), f"{worker.name} is away and will never be given up")
        _require(all(state.leases.get(lease_id) is lease for lease_id, lease in worker.leases.items()),
                 f"{worker.name} has leases that are not kept")  # fmt: skip


def _check_indexes(state: QueueState) -> None:
    fleet = state.fleet
    waiting: list[Task] = []
    _require(not (fleet.stirred or fleet.released or state.roomy), "something is left that should have been looked at")
    for key, fit in fleet.fits.items():
        _require(key == (fit.requirement, fit.need), f"{fit} is filed wrongly")
        _require((fit in fleet.active) == bool(fit.lines), f"{fit} is wrongly held to be busy or idle")
        _check_fit(fleet, fit)
        for line in fit.lines.values():
            waiting += _check_line(line)
    _require(len(waiting) == len(set(waiting)), "a task is in two lines")
    _require(
        set(waiting) == {task for task in state.tasks.values() if task.place is not None},
        "the lines are not the waiting",
    )


def _check_fit(fleet: Fleet, fit: Fit) -> None:
    fitting = {
        worker_id
        for worker_id, worker in fleet.workers.items()
        if worker.offer.fits(fit.requirement) and use_on(worker.offer, worker.slots, fit.need) is not None
    }
    _require(set(fit.workers) == fitting, f"the workers of {fit} are not those that fit")
    _require(fit.slots == sum(w.slots for w in fit.workers.values()), f"the slots of {fit} are miscounted")
    for worker_id, worker in fit.workers.items():
        room = fleet.room(worker, fit) if fleet.has_room(worker) else None
        _require(fit.room_of(worker_id) == room, f"{worker.name} has room for {room} of {fit} and is filed wrongly")
        found = fit.best(frozenset(other.name for other in fit.workers.values() if other is not worker))
        _require((found is worker) == (room is not None), f"{worker.name} is not found")
        for excluded, line in fit.lines.items():
            if room is not None and worker.name not in excluded:
                for task in line.members:
                    _require(bool(limit_of(task, fleet)), f"{worker.name} has room while {task.task_id} waits")
    _require(fit.uneven == sum(not use.plain for use in fit.uses.values()), f"the uses of {fit} are miscounted")
    if fit.reserved is not None:
        _require(fleet.reservation(fit.reserved) is fit, f"{fit.reserved.name} is kept free for something else")
        _require(bool(fit.lines), f"{fit.reserved.name} is kept free for nothing")


def _check_line(line: Line) -> list[Task]:
    fit = line.fit
    _require(fit.lines.get(line.excluded) is line and len(line) > 0, f"a line of {fit} is not where it should be")
    for task in line.members:
        _require(task.place is not None and task.place.line is line, f"{task.task_id} stands in another line")
        _require(task.excluded == line.excluded, f"{task.task_id} avoids others than its line")
        owners = {operation.owner for operation in task.operations.values()}
        stands = [branch.node.owner for branch in task.place.stands] if task.place is not None else []
        _require(
            len(stands) == len(owners) and set(stands) == owners, f"{task.task_id} waits for others than it should"
        )
    counted = 0
    branches = [line.root]
    while branches:
        branch = branches.pop()
        for node, child in branch.children.items():
            _require(child.node is node and child in node.branches, f"a branch of {node} is filed wrongly")
            if child.entry is not None:
                _require(child.entry in branch.heap, f"{node} would never be served")
                _require(child.entry[0] <= node.key, f"{node} is served too late")
            else:
                _require(_blocked(child), f"{node} would never be served")
        branches += branch.children.values()
        if branch.node.level is Level.INVOCATION:
            held = sum(entry[2].task.place is entry[2] for entry in branch.tasks)
            _require(held == branch.waiting > 0, f"{branch.node} has {held} tasks and counts {branch.waiting}")
            counted += held
    _require(
        counted == sum(len(task.place.stands) for task in line.members if task.place is not None),
        f"{fit} is miscounted",
    )
    return list(line.members)


def _blocked(branch: Branch) -> bool:
    """Whether no task of the branch may run, by the limits of the branch itself and of those below it."""
    return branch.node.full or (
        branch.node.level is not Level.INVOCATION and all(map(_blocked, branch.children.values()))
    )


def _check_shares(state: QueueState) -> None:
    """What each owner uses is what the leases say, and nobody has got more than his limit."""
    fleet = state.fleet
    running: Counter[tuple[str, ...]] = Counter()
    used: Counter[tuple[str, ...]] = Counter()
    queued: Counter[tuple[str, ...]] = Counter()
    inherited: Counter[tuple[str, ...]] = Counter()
    for lease in state.leases.values():
        _require((lease.use is None) == (lease.hold is Hold.SETTLING), f"{lease.lease_id} takes up room wrongly")
        if lease.use is not None:
            for path in _paths(lease.owner):
                running[path] += 1
                used[path] += lease.use.share_millis
                inherited[path] += lease.inherited
    for operation in state.operations.values():
        if operation.stage is Stage.QUEUED:
            for path in _paths(operation.owner):
                queued[path] += 1
    nodes: list[tuple[tuple[str, ...], Node]] = [((), fleet.shares.root)]
    while nodes:
        path, node = nodes.pop()
        found = (node.running, node.used_millis, node.queued)
        right = (running.pop(path, 0), used.pop(path, 0), queued.pop(path, 0))
        _require(found == right, f"{node} runs, uses and queues {found}, and it should be {right}")
        limit = node.limits.max_running
        # A result that was under check when the last scheduler ended takes up room again until it is reported once more.
        granted = node.running - inherited[path]
        _require(not limit or granted <= limit, f"{node} runs {node.running}, and its limit is {limit}")
        _require(node.parent is None or not node.idle, f"{node} is kept for nothing")
        _require(
            node.parent is None or node.key[0] == node.used_millis / node.limits.weight, f"{node} has a stale share"
        )
        nodes += [((*path, name), child) for name, child in node.children.items()]
    _require(not (+running or +used or +queued), f"owners are not counted: {running} {queued}")


def _paths(owner: Owner) -> list[tuple[str, ...]]:
    names = (owner.tenant, owner.user, owner.invocation)
    return [names[:many] for many in range(4)]


def _check_room(state: QueueState) -> None:
    """No worker has more than it can hold; only leases like all of its own are fetched ahead."""
    for worker in state.fleet.workers.values():
        uses = [lease.use for lease in worker.leases.values() if lease.use is not None]
        slots, cpu = sum(use.slots for use in uses), sum(use.cpu_millis for use in uses)
        memory, uneven = sum(use.memory_bytes for use in uses), sum(not use.plain for use in uses)
        found = (worker.used_slots, worker.used_cpu_millis, worker.used_memory_bytes, worker.uneven)
        _require(found == (slots, cpu, memory, uneven), f"{worker.name} is used by {found}, and it should be {uses}")
        if uneven and not any(lease.inherited for lease in worker.leases.values()):
            offer = worker.offer
            _require(slots <= worker.slots, f"{worker.name} has {worker.slots} slots, and {slots} are used")
            _require(cpu <= offer.cpu_millis or not offer.cpu_millis, f"{worker.name} has too few cores for {uses}")
            _require(memory <= offer.memory_bytes or not offer.memory_bytes, f"{worker.name} has too little memory")


def _check_accounts(state: QueueState) -> None:
    grouped = [task for group in state.waiting for task in group.tasks.values()]
    _require(len(grouped) == len(set(grouped)), "a task is in two groups of waiting tasks")
    _require(
        set(grouped) == {task for task in state.tasks.values() if task.place is not None}, "groups are not the waiting"
    )
    counted = restored(state.operations.values(), grouped, state.leases.values(), state.now)
    _require(not state.accounts.active.keys() & state.accounts.idle.keys(), "an invocation is active and idle")
    _require(not any(tally.idle for tally in state.accounts.active.values()), "an idle invocation counts as active")
    _check_tallies(state.accounts.active, counted.active, state.now)
    _check_tallies(state.accounts.idle, {}, state.now)
    _check_tallies(state.accounts.tenants, counted.tenants, state.now)


def _check_tallies(table: Mapping[K, Tally], recounted: Mapping[K, Tally], now: float) -> None:
    _require(recounted.keys() <= table.keys(), "someone at work is not counted")
    for key, tally in table.items():
        right = recounted.get(key, Tally(now, now))
        found = (tally.queued, tally.executing, tally.slots, tally.unknown_waiting, tally.unknown_running)
        expected = (right.queued, right.executing, right.slots, right.unknown_waiting, right.unknown_running)
        _require(found == expected, f"{key} has {found} queued, executing, slots, unknown; expected {expected}")
        for known, recounted_known in (
            (tally.expected_waiting, right.expected_waiting),
            (tally.expected_running, right.expected_running),
        ):
            _require(abs(known - recounted_known) < 1e-3, f"{key} expects {known} slot-seconds, not {recounted_known}")
