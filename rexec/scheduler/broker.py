"""The asynchronous shell around the queue: it owns the clock, the timer and the journal.

It decides nothing. Every call becomes an event (rexec/scheduler/events.py), and every effect a message in a worker's outbox or
the wake-up of a stream (rexec/scheduler/delivery.py), which leaves when the journal has what it follows from
(rexec/scheduler/group_commit.py). All of it runs on one event loop and between two `await`s, so there are no locks. One timer
is set for the queue's next deadline; nothing polls.

A worker's report is settled before the queue hears of it: outputs checked, action cache written. Only then is the task
completed, so that a client that sees completion finds the result.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Self
from uuid import uuid4

import structlog

from cas.errors import MalformedRequest, OperationNotFound, SchedulerStops, StatusError
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec import __version__
from rexec.scheduler import events as e
from rexec.scheduler.autoscaling import Autoscaling
from rexec.scheduler.changes import Changes
from rexec.scheduler.clock import Clock, SystemClock, Timer
from rexec.scheduler.delivery import Delivery
from rexec.scheduler.drains import Drained, Drains
from rexec.scheduler.group_commit import GroupCommit
from rexec.scheduler.journal import Journal
from rexec.scheduler.log_name import Output
from rexec.scheduler.need import MAX_MEMORY_BYTES
from rexec.scheduler.observer import Observer, Snapshot, Unobserved
from rexec.scheduler.outbox import Outbox
from rexec.scheduler.queue import Queue
from rexec.scheduler.recovery import restore
from rexec.scheduler.rows import Batch
from rexec.scheduler.scheduler import Inlining, LogRest, OperationState, operation_name
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.settling import Settled, Settler
from rexec.scheduler.snapshot import snapshot_of
from rexec.scheduler.status_source import QueueStatus
from rexec.scheduler.task import Candidate, Failure, Hold, Outcome, Stage, Worker
from rexec.scheduler.usage import usage_of
from rexec.scheduler.vitals import Vitals
from rexec.scheduler.watches import Watches
from rexec.scheduler.wire import outcome_of

log = structlog.get_logger()


class Broker:
    """The scheduler of one process: `Scheduler` for the services, and the workers' side."""

    def __init__(
        self,
        settings: SchedulerSettings,
        settler: Settler,
        *,
        clock: Clock | None = None,
        observer: Observer | None = None,
        new_id: Callable[[], str] = lambda: str(uuid4()),
        journal: Journal | None = None,
    ) -> None:
        """With a `journal`, which this process has taken over (rexec/scheduler/leadership.py), nothing is forgotten."""
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self._settler = settler
        self._new_id = new_id
        self._journal = journal
        self._changes: Changes | None = None
        self._timer: Timer | None = None
        self._timer_at: float | None = None
        self._closed = False
        self._tasks = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()
        self.vitals = Vitals()
        self.status = QueueStatus(lambda: self._queue, self.vitals, self.clock, __version__)
        self._delivery = Delivery(settings, self.clock, observer or Unobserved(), self.vitals)
        self.logs = self._delivery.logs
        self._drains = Drains(lambda: self._queue.state, self.clock, self._apply, self._delivery.send)
        self.autoscaling = Autoscaling(lambda: self._queue.state, self.clock, self.drain, self.ended)
        self.lost: asyncio.Future[str] | None = None
        """Set, with the reason, when this process must not go on: another one leads, or the queue's state cannot be trusted. By
        then all streams are told to come back. None until the broker is entered."""

    async def __aenter__(self) -> Self:
        now = self.clock.monotonic()
        self._queue = Queue(self.settings, now)
        self.lost = asyncio.get_running_loop().create_future()
        if self._journal is not None:
            # So many records at once and none of them garbage: looking for some would take a third of the start.
            gc.disable()
            try:
                self._restore(self._journal, now)
            finally:
                gc.enable()
        self._way_out = self._delivery.way_out
        self._watches = Watches(self._queue, self._way_out, self.clock, self.logs, self._apply)
        self.status.started()
        await self._tasks.__aenter__()
        self._set_timer()
        return self

    def _restore(self, journal: Journal, now: float) -> None:
        """Go on where the last process stopped. Raises JournalUnusable."""
        rows = journal.load()
        restored = restore(self._queue.state, rows, journal.generation, now, self.clock.wall())
        for text in restored.unreadable:
            log.error("left out of the journal, for it cannot be read", row=text)
        numbers = restored.numbers.items()
        self._changes = Changes(self._queue.state, numbers, self.clock.monotonic, self.clock.wall)
        lease_seconds = self.settings.leadership_seconds
        self._delivery.way_out = way_out = GroupCommit(
            journal,
            self._changes,
            renew_seconds=lease_seconds / 4,
            trust_seconds=lease_seconds / 2,
            observer=self._delivery.observer,
        )
        unread = Batch(
            ended_tasks=restored.unread_tasks,
            forgotten_operations=restored.unread_operations,
            gone_workers=restored.unread_workers,
        )
        way_out.also(unread)
        way_out.lost.add_done_callback(lambda lost: self._lose(lost.result()))
        if rows.operations or rows.workers:
            live = len(self._queue.tasks)
            log.info(
                "goes on where the last scheduler stopped",
                actions=live,
                with_workers=restored.resumable_leases,
                completed=len(self._queue.operations)
                - sum(len(task.operations) for task in self._queue.tasks.values()),
                workers=len(self._queue.fleet.workers),
                generation=journal.generation,
            )

    async def __aexit__(self, *_: object) -> None:
        """End every stream with UNAVAILABLE: clients and workers come back to whoever is next, who finds all written down."""
        self._end_streams()
        for task in self._running:
            task.cancel()
        # Not told of the block's own failure: it would come out inside an ExceptionGroup.
        await self._tasks.__aexit__(None, None, None)
        await self._way_out.close()

    def _lose(self, reason: str) -> None:
        """This process must not go on."""
        assert self.lost is not None
        if not self.lost.done():
            self.lost.set_result(reason)
            self._end_streams()

    def _end_streams(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if len(self._watches):
            log.info("clients that wait are told to come back", streams=len(self._watches))
        self._delivery.close(SchedulerStops())
        self._watches.close()
        self.autoscaling.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`, which lets no exception out, until it ends or the broker stops. Raises Unavailable if it has."""
        if self._closed:
            work.close()
            raise SchedulerStops()
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    # For services

    async def submit(self, candidate: Candidate, inlining: Inlining, name: str = "") -> str:
        """As `Scheduler.submit` says. Raises also StoreFull or Unavailable if it cannot be written down."""
        name = name or operation_name(candidate.instance_name, self._new_id())
        if name not in self._queue.operations:
            self._way_out.require()
            self._apply(e.Submit(name, self._new_id(), candidate, inlining))
        try:
            await self._way_out.durable(name, rather_fail=True)
        except StatusError:
            # Its client is told that it does not run, and so it must not.
            with suppress(OperationNotFound):
                self._apply(e.Cancel(name))
                self._apply(e.Forget(name))
            raise
        return name

    async def record(
        self, candidate: Candidate, inlining: Inlining, response: re_pb2.ExecuteResponse, name: str = ""
    ) -> str:
        name = name or operation_name(candidate.instance_name, self._new_id())
        if name not in self._queue.operations:
            outcome = outcome_of(response)
            self._apply(e.Record(name, self._new_id(), candidate, outcome, inlining))
        return name

    def watch(self, name: str, keepalive_seconds: float) -> AsyncGenerator[OperationState, None]:
        return self._watches.watch(name, keepalive_seconds)

    def log(self, name: str, output: Output, offset: int) -> AsyncGenerator[bytes | LogRest, None]:
        return self._watches.log(name, output, offset)

    async def state(self, name: str) -> OperationState:
        return await self._watches.state(name)

    async def page(
        self, instance_name: str, stages: frozenset[Stage], after: str, limit: int
    ) -> Sequence[OperationState]:
        return await self._watches.page(instance_name, stages, after, limit)

    async def cancel(self, name: str) -> None:
        self._apply(e.Cancel(name))
        await self._way_out.durable(name, rather_fail=True)

    async def forget(self, name: str) -> None:
        self._apply(e.Forget(name))
        await self._way_out.durable(name, rather_fail=True)

    # For workers

    def attach(self, attached: e.WorkerAttached, outbox: Outbox) -> None:
        """A worker's stream is open; what it is told goes into `outbox`, Welcome first. Raises Unavailable."""
        if self._closed:
            raise SchedulerStops()
        self._delivery.attaching = outbox
        self._apply(attached)
        self._drains.attached(attached.worker_id)

    def detach(self, outbox: Outbox) -> None:
        """The stream of this outbox is gone. Means nothing if its worker has a newer one or never said who it is."""
        if self._delivery.detached(outbox) and outbox.worker_id is not None:
            self._apply(e.WorkerDetached(outbox.worker_id))

    def hear(self, event: e.Credit | e.Progress) -> None:
        """What a worker says of itself. Raises MalformedRequest if it speaks of another worker's lease."""
        if isinstance(event, e.Progress):
            self._require_own(event.worker_id, event.lease_id)
        self._apply(event)

    def report(self, worker_id: str, report: worker_pb2.Finished) -> None:
        """A worker says that a lease has ended. Raises MalformedRequest if it is another worker's."""
        self._require_own(worker_id, report.lease_id)
        lease = self._queue.held(worker_id, report.lease_id, report.epoch)
        if lease is None or lease.hold is Hold.REVOKED:
            if report.failure == worker_pb2.Finished.NONE:  # else it only says that it has stopped
                why = "over, or was granted anew" if lease is None else "revoked"
                log.info(
                    "result dropped: its lease is " + why, worker=worker_id[:100], lease=report.lease_id[:100],
                    epoch=report.epoch,
                )  # fmt: skip
            self._apply(e.Finished(worker_id, report.lease_id, report.epoch, Failure.REVOKED))
        elif lease.hold is Hold.LIVE:
            self._apply(e.Reported(worker_id, report.lease_id, report.epoch))
            self.spawn(self._settle(lease.task.candidate, report, worker_id, lease.worker.name))
        # else it is being settled: the worker came back and repeats itself.

    def holds_leases(self, worker_id: str) -> bool:
        """Whether the worker has leases that it was given."""
        worker = self._queue.fleet.workers.get(worker_id)
        return worker is not None and bool(worker.leases)

    def drain(self, worker_id: str, grace_seconds: float, reason: str) -> Drained:
        """Have a worker leave when its leases have ended, at the latest after `grace_seconds`."""
        return self._drains.order(worker_id, grace_seconds, reason)

    def ended(self, worker_id: str) -> None:
        """The machine of a worker whose stream is broken has ended."""
        self._apply(e.WorkerEnded(worker_id))

    def leaves(self, worker_id: str, reason: str, grace_seconds: float | None) -> None:
        """A worker says that it leaves, at the latest after `grace_seconds` if it says when."""
        self._drains.announced(worker_id, reason, grace_seconds)

    def workers(self) -> list[Worker]:
        """All of them, by their names."""
        return sorted(self._queue.fleet.workers.values(), key=lambda worker: (worker.name, worker.worker_id))

    def _require_own(self, worker_id: str, lease_id: str) -> None:
        lease = self._queue.leases.get(lease_id)
        if lease is not None and lease.worker.worker_id != worker_id:
            raise MalformedRequest(f"lease {lease_id[:100]!r} belongs to another worker")

    async def _settle(
        self, candidate: Candidate, report: worker_pb2.Finished, worker_id: str, worker_name: str
    ) -> None:
        try:
            settled = await self._settler.settle(candidate, report, worker_name)
        except Exception:
            log.exception("a worker's report could not be settled", worker=worker_name, lease=report.lease_id[:100])
            evidence = "the scheduler failed to settle the report"
            settled = Settled(Failure.INFRASTRUCTURE, Outcome(), evidence, blames_worker=False)
        self._apply(
            e.Finished(
                worker_id, report.lease_id, report.epoch, settled.failure, settled.outcome, settled.evidence,
                usage_of(report), settled.blames_worker, max(0, min(report.exceeded_memory_bytes, MAX_MEMORY_BYTES)),
            )
        )  # fmt: skip

    # Events in, effects out

    def _apply(self, event: e.Event) -> None:
        now = self.clock.monotonic()
        try:
            effects = self._queue.apply(event, now)
        except StatusError:
            raise  # nothing has changed
        except Exception as defect:
            # Half of what follows from the event has happened. What was written down before it is sound, and a new process
            # starts from there; this one must say and write no more.
            log.exception("a defect of the scheduler: it cannot go on", taking=type(event).__name__)
            self._delivery.way_out.give_up(f"{type(defect).__name__} while it took {type(event).__name__}: {defect}")
            self._lose(f"a defect: {type(defect).__name__}: {defect}")
            raise SchedulerStops() from defect
        if self._changes is not None:
            self._changes.note(event, effects)
        for effect in effects:
            self._delivery.carry_out(effect, now, self._queue.tasks.__getitem__, self._watches.changed)
        self._delivery.way_out.changed()
        if self.autoscaling.followed:
            self.autoscaling.stirred(event)
        self._set_timer()

    def _set_timer(self) -> None:
        due = self._queue.next_deadline()
        if due is None or self._closed or (self._timer_at is not None and self._timer_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self.clock.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = self._timer_at = None
        self._apply(e.Tick())

    def snapshot(self) -> Snapshot:
        """The state for metrics. Costs the number of workers and tasks."""
        return snapshot_of(self._queue.state, self.clock.monotonic())
