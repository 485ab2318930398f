"""The answers of the Status service, from a queue in this process.

Everything is read on the event loop that owns the queue. What is long is read in steps between which others get their turn:
records may end meanwhile, and are then shown as ended. An overview is kept for a second, because whoever watches asks often.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final, Protocol, TypeVar

from protos.rexec.scheduler.v1 import status_pb2
from rexec.scheduler.clock import Clock
from rexec.scheduler.found_operations import LIVE, found_operation, place_of
from rexec.scheduler.found_workers import found_worker, serves, state_of
from rexec.scheduler.overview import Names, overview_of
from rexec.scheduler.state import QueueState
from rexec.scheduler.status import MAX_PAGE_BYTES, after, names_of, page_of, states_of, token_of, wanted_of
from rexec.scheduler.task import Operation, Stage, Task, Worker
from rexec.scheduler.vitals import Vitals
from rexec.scheduler.waiting import Group

FRESH_SECONDS: Final = 1.0
MAX_KEPT: Final = 16
"""Overviews kept, one for each set of instances."""

STEP: Final = 1000
"""Records that are looked at before others get their turn: about a millisecond."""

RENDERED: Final = 25
"""Records that are written out before others get their turn."""

T = TypeVar("T")


class Looked(Protocol):
    """What is looked at."""

    @property
    def state(self) -> QueueState: ...

    def reason(self, task: Task) -> str: ...


class QueueStatus:
    """A StatusSource. `queue` gives the queue, which is made when the scheduler starts."""

    def __init__(self, queue: Callable[[], Looked], vitals: Vitals, clock: Clock, software_version: str = "") -> None:
        self._queue = queue
        self._vitals = vitals
        self._clock = clock
        self._version = software_version
        self._started_at: float | None = None
        self._kept: dict[Names, tuple[float, status_pb2.Overview]] = {}
        self._ranks: dict[Group, dict[str, int]] = {}
        self._ranked_at = float("-inf")

    def started(self) -> None:
        """The scheduler is at work from now on."""
        self._started_at = self._clock.monotonic()

    async def overview(self, request: status_pb2.GetOverviewRequest) -> status_pb2.Overview:
        names, now = names_of(request), self._clock.monotonic()
        at, overview = self._kept.pop(names, (now - FRESH_SECONDS, status_pb2.Overview()))
        if at + FRESH_SECONDS <= now:
            queue = self._queue()
            at, overview = now, overview_of(queue.state, names, now, queue.reason)
            overview.software_version = self._version
            overview.uptime_seconds = now - (now if self._started_at is None else self._started_at)
        while len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[names] = at, overview
        return overview

    async def operations(self, request: status_pb2.FindOperationsRequest) -> status_pb2.FindOperationsResponse:
        wanted, limit = wanted_of(request), page_of(request)
        queue = self._queue()
        state = queue.state
        if wanted.stages <= LIVE:
            # All of one, or only the other: completed operations may be many more than the live ones.
            candidates = [operation for task in state.tasks.values() for operation in task.operations.values()]
        else:
            candidates = list(state.operations.values())
        found: list[Operation] = []
        for some in _steps(candidates, STEP):
            found += [operation for operation in some if wanted.wants(operation)]
            await asyncio.sleep(0)
        found.sort(key=place_of)
        answer = status_pb2.FindOperationsResponse()
        size_bytes = 0
        for some in _steps(found[:limit], RENDERED):
            for operation in some:
                shown = self._shown(operation)
                size_bytes += shown.ByteSize()
                if answer.operations and size_bytes > MAX_PAGE_BYTES:
                    break
                answer.operations.append(shown)
            await asyncio.sleep(0)
        if len(answer.operations) < len(found):
            answer.next_page_token = token_of(place_of(found[len(answer.operations) - 1]))
        return answer

    def _shown(self, operation: Operation) -> status_pb2.FoundOperation:
        queue, task = self._queue(), operation.task
        reason = queue.reason(task) if operation.stage is Stage.QUEUED else ""
        ahead = None if task.place is None else self._rank(task)
        return found_operation(operation, queue.state, self._clock.monotonic(), reason, ahead)

    def _rank(self, task: Task) -> int | None:
        """How many of its group come before the task. A second old at most."""
        now = self._clock.monotonic()
        group = self._queue().state.waiting.of(task)
        if self._ranked_at + FRESH_SECONDS <= now:
            self._ranks.clear()
            self._ranked_at = now
        ranks = self._ranks.get(group)
        if ranks is None:
            in_order = sorted(group.tasks.values(), key=_order)
            ranks = self._ranks[group] = {other.task_id: rank for rank, other in enumerate(in_order)}
        return ranks.get(task.task_id)

    async def workers(self, request: status_pb2.FindWorkersRequest) -> status_pb2.FindWorkersResponse:
        names, states, limit = names_of(request), states_of(request), page_of(request)
        last = after(request.page_token)
        found = sorted(
            (
                worker
                for worker in self._queue().state.fleet.workers.values()
                if state_of(worker) in states and serves(worker, names) and _place(worker) > last
            ),
            key=_place,
        )
        answer = status_pb2.FindWorkersResponse()
        size_bytes = 0
        for some in _steps(found[:limit], RENDERED):
            for worker in some:
                now = self._clock.monotonic()
                shown = found_worker(worker, self._vitals.of(worker.worker_id), names, now)
                size_bytes += shown.ByteSize()
                if answer.workers and size_bytes > MAX_PAGE_BYTES:
                    break
                answer.workers.append(shown)
            await asyncio.sleep(0)
        if len(answer.workers) < len(found):
            answer.next_page_token = token_of(_place(found[len(answer.workers) - 1]))
        return answer


def _order(task: Task) -> tuple[int, ...]:
    """When the task's turn comes among those of its invocation."""
    return task.place.order if task.place is not None else ()


def _place(worker: Worker) -> tuple[str, str]:
    return worker.name, worker.worker_id


def _steps(records: Sequence[T], size: int) -> Iterator[list[T]]:
    left = iter(records)
    while some := list(islice(left, size)):
        yield some
