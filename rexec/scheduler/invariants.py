"""What must be true of the queue after every event. Tests call it after each step; it costs the size of the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from rexec.scheduler.accounts import Tally, restored
from rexec.scheduler.queue import Queue
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Hold, Stage, Task

K = TypeVar("K")


def check(queue: Queue) -> None:
    """Raise AssertionError, naming the record, if the queue contradicts itself."""
    state = queue.state
    _check_tasks(state)
    _check_operations(state)
    _check_leases(state)
    _check_indexes(state)
    _check_accounts(state)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise AssertionError(text)


def _check_tasks(state: QueueState) -> None:
    for task_id, task in state.tasks.items():
        _require(task.stage is not Stage.COMPLETED, f"{task_id} has ended and is still kept")
        states = (task.place is not None, task.lease is not None, task.parked)
        _require(states.count(True) == 1, f"{task_id} must wait, run or be parked, and is {states}")
        _require(not task.parked or task.waiters == 0, f"{task_id} is parked though someone waits")
        _require(bool(task.operations), f"{task_id} runs for nobody")
        _require(
            (task.waiters > 0) == (task.abandon_at is None), f"{task_id} is abandoned at {task.abandon_at} wrongly"
        )
        if task.place is not None:
            _require(task.stage is Stage.QUEUED, f"{task_id} waits in stage {task.stage.name}")
            _require(bool(task.excluded) == (task.exclusion_ends_at is not None), f"{task_id} avoids workers for ever")
        if task.lease is not None:
            _require(task.lease.hold is not Hold.REVOKED, f"{task_id} counts on a revoked lease")
            _require(state.leases.get(task.lease.lease_id) is task.lease, f"{task_id} has a lease that is not kept")
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
        counting[lease.task.task_id] += lease.task.lease is lease
        _require(lease.worker.leases.get(lease_id) is lease, f"{lease_id} is unknown to its worker")
        _require(lease.epoch <= lease.task.epoch, f"{lease_id} is from the future")
        if lease.hold is Hold.LIVE:
            _require(lease.task.lease is lease, f"{lease_id} is live and its task does not know")
            _require(lease.worker.worker_id in state.fleet.workers, f"{lease_id} is live on a worker that is gone")
    _require(all(count <= 1 for count in counting.values()), f"tasks with several leases: {counting}")
    for worker in state.fleet.workers.values():
        settling = sum(lease.hold is Hold.SETTLING for lease in worker.leases.values())
        _require(
            settling == worker.settling, f"{worker.name} settles {settling} leases, {worker.settling} were counted"
        )
        _require(worker.credit >= 0, f"{worker.name} was given more leases than it took")
        _require(worker.connected == (worker.lost_at is None), f"{worker.name} is away and will never be given up")
        _require(all(state.leases.get(lease_id) is lease for lease_id, lease in worker.leases.items()),
                 f"{worker.name} has leases that are not kept")  # fmt: skip


def _check_indexes(state: QueueState) -> None:
    fleet = state.fleet
    waiting: set[Task] = set()
    for fit in fleet.fits.values():
        fitting = {worker_id for worker_id, worker in fleet.workers.items() if worker.offer.fits(fit.requirement)}
        _require(set(fit.workers) == fitting, f"the workers of {fit.requirement} are not those that fit")
        _require(
            fit.slots == sum(w.slots for w in fit.workers.values()), f"the slots of {fit.requirement} are miscounted"
        )
        for excluded, line in fit.lines.items():
            tasks = list(line.tasks())
            _require(
                len(tasks) == len(line) > 0,
                f"a line of {fit.requirement} has {len(tasks)} tasks and counts {len(line)}",
            )
            waiting.update(tasks)
            for worker in fit.workers.values():
                idle = fleet.has_room(worker) and worker.name not in excluded
                _require(not idle, f"{worker.name} has room while {tasks[0].task_id} waits")
        for worker in fit.workers.values():
            found = fit.best(frozenset(other.name for other in fit.workers.values() if other is not worker))
            _require((found is worker) == fleet.has_room(worker), f"{worker.name} is filed wrongly")
    _require(
        waiting == {task for task in state.tasks.values() if task.place is not None}, "the lines are not the waiting"
    )


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
        found = (tally.queued, tally.executing, tally.slots, tally.unknown)
        expected = (right.queued, right.executing, right.slots, right.unknown)
        _require(found == expected, f"{key} has {found} queued, executing, slots, unknown; expected {expected}")
        wrong = abs(tally.expected_left(now) - right.expected_left(now))
        _require(wrong < 1e-3, f"{key} expects {tally.expected_left(now)} slot-seconds, and it should be {wrong} other")
