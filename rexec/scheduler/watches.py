"""What can be seen of operations: their states, their changes, and what they print while they run.

Nothing is shown before it is durable. A stream whose operation has changed shows what it showed last until the journal has the
change too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from heapq import nsmallest
from typing import cast

from cas.errors import OperationNotFound, SchedulerStops
from rexec.scheduler import events as e
from rexec.scheduler.clock import Clock
from rexec.scheduler.live_logs import LiveLogs, Place, Running
from rexec.scheduler.log_name import Output
from rexec.scheduler.queue import Queue
from rexec.scheduler.scheduler import Inlining, LogRest, OperationState
from rexec.scheduler.task import Operation, Stage
from rexec.scheduler.telling import metadata_of, response_of
from rexec.scheduler.way_out import WayOut


class Watches:
    """Everyone who waits for an operation of one queue, which the one that makes this changes by `apply`."""

    def __init__(
        self, queue: Queue, way_out: WayOut, clock: Clock, logs: LiveLogs, apply: Callable[[e.Event], None]
    ) -> None:  # fmt: skip
        self._queue = queue
        self._way_out = way_out
        self._clock = clock
        self._logs = logs
        self._apply = apply
        self._waiters: dict[str, set[asyncio.Event]] = {}
        """By operation name."""
        self._closed = False

    def __len__(self) -> int:
        return sum(len(events) for events in self._waiters.values())

    def close(self) -> None:
        """End them all with UNAVAILABLE."""
        self._closed = True
        for events in self._waiters.values():
            for event in events:
                event.set()

    def changed(self, name: str) -> None:
        """Tell who waits for the operation that it has changed."""
        for event in self._waiters.get(name, ()):
            event.set()

    async def watch(self, name: str, keepalive_seconds: float) -> AsyncGenerator[OperationState, None]:
        """As `Scheduler.watch` says."""
        operation = self.operation(name)
        self._apply(e.WaiterJoined(name))
        latest: OperationState | None = None
        said_at = self._clock.monotonic()
        try:
            with self._told_of(name) as changed:
                while True:
                    changed.clear()  # before the state is read: what happens from here on is not lost
                    if self._closed:
                        raise SchedulerStops()
                    now = self._clock.monotonic()
                    if self._way_out.covers(name):
                        latest = self._state_of(operation)
                        said_at = now
                        yield latest
                        if latest.done:
                            return
                    else:
                        self._way_out.after(changed.set)
                        if latest is not None and now >= said_at + keepalive_seconds:
                            said_at = now
                            yield latest
                    timer = self._clock.call_at(said_at + keepalive_seconds, changed.set)
                    try:
                        await changed.wait()
                    finally:
                        timer.cancel()
        finally:
            self._apply(e.WaiterLeft(name))

    async def log(self, name: str, output: Output, offset: int) -> AsyncGenerator[bytes | LogRest, None]:
        """As `Scheduler.log` says."""
        look = partial(self._place_of_log, self.operation(name))
        with self._told_of(name) as changed:
            async with aclosing(self._logs.read(look, changed, output, offset)) as parts:
                async for part in parts:
                    if isinstance(part, LogRest):
                        await self._way_out.durable(name)
                    yield part

    def _place_of_log(self, operation: Operation) -> Place:
        if self._closed:
            raise SchedulerStops()
        task = operation.task
        if operation.outcome is not None:
            ended_with = task.epoch if task.result_epoch is None else task.result_epoch
            return Place(ended_with, ended=self._state_of(operation))
        if task.stage is not Stage.EXECUTING or task.lease is None:
            return Place(task.epoch)
        return Place(task.lease.epoch, Running(task.lease.worker.worker_id, task.lease.lease_id, task.lease.epoch))

    @contextmanager
    def _told_of(self, name: str) -> Iterator[asyncio.Event]:
        """An event that is set at every change of the operation, and at the end."""
        changed = asyncio.Event()
        self._waiters.setdefault(name, set()).add(changed)
        try:
            yield changed
        finally:
            waiting = self._waiters[name]
            waiting.discard(changed)
            if not waiting:
                del self._waiters[name]

    async def state(self, name: str) -> OperationState:
        """As `Scheduler.state` says."""
        operation = self.operation(name)
        while not self._way_out.covers(name):
            await self._way_out.durable(name, rather_fail=True)
        return self._state_of(operation)

    async def page(
        self, instance_name: str, stages: frozenset[Stage], after: str, limit: int
    ) -> Sequence[OperationState]:
        """As `Scheduler.page` says."""
        wanted = (
            name
            for name, operation in self._queue.operations.items()
            if name > after
            and operation.task.candidate.instance_name == instance_name
            and operation.stage in stages
        )  # fmt: skip
        # Not sorted: there may be tens of thousands, and a client asks for page after page.
        found = [self._queue.operations[name] for name in nsmallest(limit, wanted)]
        states = [self._state_of(operation) for operation in found]
        for state in states:
            await self._way_out.durable(state.name, rather_fail=True)
        return states

    def operation(self, name: str) -> Operation:
        """Raises OperationNotFound."""
        operation = self._queue.operations.get(name)
        if operation is None:
            raise OperationNotFound(f"no operation {name[:300]!r}")
        return operation

    def _state_of(self, operation: Operation) -> OperationState:
        task = operation.task
        outcome = operation.outcome
        reason = self._queue.reason(task) if outcome is None else ""
        return OperationState(
            name=operation.name,
            instance_name=task.candidate.instance_name,
            action_digest=task.candidate.action_digest,
            stage=operation.stage,
            response=response_of(outcome) if outcome is not None else None,
            inlining=cast(Inlining, operation.view),
            reason=reason,
            metadata=metadata_of(task, reason) if outcome is None else None,
            owner=operation.owner,
        )
