"""The asynchronous shell around the queue: it owns the clock, the timer, the streams that wait and the way to the workers.

It decides nothing. Every call becomes an event, and every effect a message in a worker's outbox or the wake-up of a stream.
All of it runs on one event loop and between two `await`s, so there are no locks. One timer is set for the queue's next
deadline; nothing polls.

A worker's report is settled before the queue hears of it: outputs checked, action cache written. Only then is the task
completed, so that a client that sees completion finds the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from typing import Any, Protocol, Self, assert_never, cast
from uuid import uuid4

import structlog

from cas.errors import MalformedRequest, OperationNotFound, SchedulerStops, Unavailable
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec import __version__
from rexec.scheduler import events as e
from rexec.scheduler import letters
from rexec.scheduler.clock import Clock, SystemClock, Timer
from rexec.scheduler.live_logs import LiveLogs, Place, Running
from rexec.scheduler.log_name import Output
from rexec.scheduler.observer import Observer, Snapshot, Unobserved
from rexec.scheduler.outbox import Outbox
from rexec.scheduler.queue import Queue
from rexec.scheduler.scheduler import Inlining, LogRest, OperationState, operation_name
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.snapshot import snapshot_of
from rexec.scheduler.stages import stages_of
from rexec.scheduler.status_source import QueueStatus
from rexec.scheduler.task import Candidate, Failure, Hold, Operation, Outcome, Stage
from rexec.scheduler.telling import metadata_of, response_of, result_of, tell_bad_end
from rexec.scheduler.usage import usage_of
from rexec.scheduler.vitals import Vitals
from rexec.scheduler.wire import outcome_of

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Settled:
    """What a worker's report comes to."""

    failure: Failure
    outcome: Outcome
    evidence: str = ""


class Settler(Protocol):
    """Makes a worker's report fit to be shown to clients."""

    async def settle(self, candidate: Candidate, report: worker_pb2.Finished, worker_name: str) -> Settled:
        """Check what the worker claims and write the action cache. Must end, whatever the report holds."""
        ...


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
    ) -> None:
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self._settler = settler
        self._observer: Observer = observer or Unobserved()
        self._new_id = new_id
        self._outboxes: dict[str, Outbox] = {}
        """By worker id."""
        self._attaching: Outbox | None = None
        self._waiters: dict[str, set[asyncio.Event]] = {}
        """By operation name."""
        self._timer: Timer | None = None
        self._timer_at: float | None = None
        self._closed = False
        self._tasks = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()
        self.vitals = Vitals()
        self.status = QueueStatus(lambda: self._queue, self.vitals, self.clock, __version__)
        self.logs = LiveLogs(self._send, self.clock, settings)

    async def __aenter__(self) -> Self:
        self._queue = Queue(self.settings, self.clock.monotonic())
        self.status.started()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End every stream with UNAVAILABLE: clients and workers come back to whoever is next."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        waiting = sum(len(events) for events in self._waiters.values())
        if waiting:
            log.info("clients that wait are told to come back", streams=waiting)
        for outbox in self._outboxes.values():
            outbox.close(SchedulerStops())
        for events in self._waiters.values():
            for event in events:
                event.set()
        for task in self._running:
            task.cancel()
        # Not told of the block's own failure: it would come out inside an ExceptionGroup.
        await self._tasks.__aexit__(None, None, None)

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
        name = name or operation_name(candidate.instance_name, self._new_id())
        if name not in self._queue.operations:
            self._apply(e.Submit(name, self._new_id(), candidate, inlining))
        return name

    async def record(
        self, candidate: Candidate, inlining: Inlining, response: re_pb2.ExecuteResponse, name: str = ""
    ) -> str:
        name = name or operation_name(candidate.instance_name, self._new_id())
        if name not in self._queue.operations:
            outcome = outcome_of(response)
            self._apply(e.Record(name, self._new_id(), candidate, outcome, inlining))
        return name

    async def watch(self, name: str, keepalive_seconds: float) -> AsyncGenerator[OperationState, None]:
        operation = self._operation(name)
        self._apply(e.WaiterJoined(name))
        try:
            with self._told_of(name) as changed:
                while True:
                    changed.clear()  # before the state is read: what happens from here on is not lost
                    if self._closed:
                        raise SchedulerStops()
                    state = self._state_of(operation)
                    yield state
                    if state.done:
                        return
                    timer = self.clock.call_at(self.clock.monotonic() + keepalive_seconds, changed.set)
                    try:
                        await changed.wait()
                    finally:
                        timer.cancel()
        finally:
            self._apply(e.WaiterLeft(name))

    async def log(self, name: str, output: Output, offset: int) -> AsyncGenerator[bytes | LogRest, None]:
        look = partial(self._place_of_log, self._operation(name))
        with self._told_of(name) as changed:
            async with aclosing(self.logs.read(look, changed, output, offset)) as parts:
                async for part in parts:
                    yield part

    def _place_of_log(self, operation: Operation) -> Place:
        if self._closed:
            raise SchedulerStops()
        task = operation.task
        if operation.outcome is not None:
            return Place(task.epoch, ended=self._state_of(operation))
        if task.stage is not Stage.EXECUTING or task.lease is None:
            return Place(task.epoch)
        return Place(task.epoch, Running(task.lease.worker.worker_id, task.lease.lease_id, task.lease.epoch))

    @contextmanager
    def _told_of(self, name: str) -> Iterator[asyncio.Event]:
        """An event that is set at every change of the operation, and when the broker stops."""
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
        return self._state_of(self._operation(name))

    async def page(
        self, instance_name: str, stages: frozenset[Stage], after: str, limit: int
    ) -> Sequence[OperationState]:
        wanted = (
            name
            for name, operation in self._queue.operations.items()
            if name > after
            and operation.task.candidate.instance_name == instance_name
            and operation.stage in stages
        )  # fmt: skip
        # Not sorted: there may be tens of thousands, and a client asks for page after page.
        return [self._state_of(self._queue.operations[name]) for name in nsmallest(limit, wanted)]

    async def cancel(self, name: str) -> None:
        self._apply(e.Cancel(name))

    async def forget(self, name: str) -> None:
        self._apply(e.Forget(name))

    def _operation(self, name: str) -> Operation:
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
            owner=task.candidate.owner,
        )

    # For workers

    def attach(self, attached: e.WorkerAttached, outbox: Outbox) -> None:
        """A worker's stream is open; what it is told goes into `outbox`, Welcome first. Raises Unavailable."""
        if self._closed:
            raise SchedulerStops()
        self._attaching = outbox
        self._apply(attached)

    def detach(self, outbox: Outbox) -> None:
        """The stream of this outbox is gone. Means nothing if its worker has a newer one or never said who it is."""
        worker_id = outbox.worker_id
        if worker_id is not None and self._outboxes.get(worker_id) is outbox:
            del self._outboxes[worker_id]
            self._apply(e.WorkerDetached(worker_id))

    def hear(self, event: e.Credit | e.Progress | e.Draining) -> None:
        """What a worker says of itself. Raises MalformedRequest if it speaks of another worker's lease."""
        if isinstance(event, e.Progress):
            self._require_own(event.worker_id, event.lease_id)
        self._apply(event)

    def report(self, worker_id: str, report: worker_pb2.Finished) -> None:
        """A worker says that a lease has ended. Raises MalformedRequest if it is another worker's."""
        self._require_own(worker_id, report.lease_id)
        lease = self._queue.held(worker_id, report.lease_id, report.epoch)
        if lease is None or lease.hold is Hold.REVOKED:
            self._apply(e.Finished(worker_id, report.lease_id, report.epoch, Failure.REVOKED))
        elif lease.hold is Hold.LIVE:
            self._apply(e.Reported(worker_id, report.lease_id, report.epoch))
            self.spawn(self._settle(lease.task.candidate, report, worker_id, lease.worker.name))
        # else it is being settled: the worker came back and repeats itself.

    def holds_leases(self, worker_id: str) -> bool:
        """Whether the worker has leases that it was given."""
        worker = self._queue.fleet.workers.get(worker_id)
        return worker is not None and bool(worker.leases)

    def drain(self, worker_id: str, grace_seconds: float, reason: str) -> None:
        """Ask a worker to leave when its leases have ended, at the latest after `grace_seconds`."""
        self._apply(e.Draining(worker_id))
        self._send(worker_id, letters.drain(grace_seconds, reason))

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
            settled = Settled(Failure.INFRASTRUCTURE, Outcome(), "the scheduler failed to settle the report")
        self._apply(
            e.Finished(
                worker_id, report.lease_id, report.epoch, settled.failure, settled.outcome, settled.evidence,
                usage_of(report),
            )
        )  # fmt: skip

    # Events in, effects out

    def _apply(self, event: e.Event) -> None:
        now = self.clock.monotonic()
        for effect in self._queue.apply(event, now):
            self._carry_out(effect, now)
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

    def _carry_out(self, effect: e.Effect, now: float) -> None:
        match effect:
            case e.LeaseGranted(worker_id, task_id, lease_id, epoch):
                task = self._queue.tasks[task_id]
                self._observer.lease_granted(now - task.queued_at)
                self._send(worker_id, letters.lease(task_id, lease_id, epoch, task.candidate))
            case e.LeaseRevoked(worker_id, lease_id, epoch, reason):
                self._send(worker_id, letters.revoke(lease_id, epoch, reason))
            case e.LeaseAcknowledged(worker_id, lease_id, epoch):
                self._send(worker_id, letters.acknowledged(lease_id, epoch))
            case e.WorkerWelcomed(worker_id, resumed, unknown):
                self._welcome(worker_id, letters.welcome(worker_id, resumed, unknown, self.settings))
            case e.WorkerGone(worker_id, name, reason, lost):
                self.vitals.gone(worker_id)
                log.info("worker gone", worker=name, reason=reason, lost_leases=lost)
                outbox = self._outboxes.pop(worker_id, None)
                if outbox is not None:
                    outbox.close(Unavailable(reason))
            case e.OperationChanged(name):
                for changed in self._waiters.get(name, ()):
                    changed.set()
            case e.TaskRetried(task_id, worker_name, reason, counted):
                self._observer.task_retried(counted)
                log.info("action queued again", task=task_id, worker=worker_name, reason=reason, counted=counted)
            case e.TaskCompleted(task_id, queued_at, outcome, action_digest):
                tell_bad_end(task_id, outcome, action_digest)
                self._observer.execution_finished(result_of(outcome), now - queued_at)
                for stage, seconds in stages_of(outcome):
                    self._observer.stage_ended(stage, seconds)
            case e.TasksUnserved(waiting, reason):
                log.warning("actions wait that no worker can run", actions=waiting, reason=reason)
            case e.TaskHedged(task_id, worker, slow_worker, seconds):
                log.info("slow action runs a second time", task=task_id, worker=worker, slow_worker=slow_worker,
                         running_seconds=round(seconds, 1))  # fmt: skip
            case e.HedgeEnded(task_id, won):
                log.info("second run of an action ended", task=task_id, won=won)
            case e.WorkerQuarantined(name, seconds, evidence):
                log.warning("worker quarantined: actions fail there one after the other", worker=name, failures=evidence,
                            next_trial_seconds=seconds)  # fmt: skip
            case e.WorkerTrusted(name):
                log.info("worker trusted again", worker=name)
            case e.OperationForgotten():
                pass
            case _:
                assert_never(effect)

    def _welcome(self, worker_id: str, welcome: worker_pb2.ToWorker) -> None:
        """From here on the worker's messages go over the stream that is being attached."""
        outbox, self._attaching = self._attaching, None
        earlier = self._outboxes.pop(worker_id, None)
        if earlier is not None:
            earlier.close(Unavailable("replaced by a newer stream of the same session"))
        if outbox is not None:
            outbox.worker_id = worker_id
            self._outboxes[worker_id] = outbox
            outbox.put(welcome)
            self.logs.welcomed(worker_id)

    def _send(self, worker_id: str, message: worker_pb2.ToWorker) -> None:
        """To a worker without a stream nothing is sent: when it comes back, Welcome says what holds."""
        outbox = self._outboxes.get(worker_id)
        if outbox is not None:
            outbox.put(message)

    def snapshot(self) -> Snapshot:
        """The state for metrics. Costs the number of workers and tasks."""
        return snapshot_of(self._queue.state, self.clock.monotonic())
