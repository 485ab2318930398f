"""Carrying out effects: messages to workers, wake-ups of streams, figures and lines in the log.

What other processes can see waits for the journal, in the order in which it came about. A message is made at once, from the
state as it is, and is meant for the stream that the worker has at that moment: if that one is over when the journal is ready,
the worker has come back on another, and was told there what holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import assert_never

import structlog

from cas.errors import StatusError, Unavailable
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler import events as e
from rexec.scheduler import letters
from rexec.scheduler.clock import Clock
from rexec.scheduler.live_logs import LiveLogs
from rexec.scheduler.observer import Observer
from rexec.scheduler.outbox import Outbox
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.stages import stages_of
from rexec.scheduler.task import Task
from rexec.scheduler.telling import result_of, tell_bad_end
from rexec.scheduler.vitals import Vitals
from rexec.scheduler.way_out import AtOnce, WayOut

log = structlog.get_logger()


class Delivery:
    """The way to the workers, and to those who look on."""

    def __init__(self, settings: SchedulerSettings, clock: Clock, observer: Observer, vitals: Vitals) -> None:
        self.way_out: WayOut = AtOnce()
        self.attaching: Outbox | None = None
        """Of the stream whose worker the event at hand is about to welcome."""
        self._settings = settings
        self.observer = observer
        self._vitals = vitals
        self._outboxes: dict[str, Outbox] = {}
        """By worker id."""
        self.logs = LiveLogs(self.send, clock, settings)

    def close(self, failure: StatusError) -> None:
        """End every stream."""
        for outbox in self._outboxes.values():
            outbox.close(failure)

    def detached(self, outbox: Outbox) -> bool:
        """The stream of this outbox is gone. Returns whether it was its worker's latest."""
        if outbox.worker_id is None or self._outboxes.get(outbox.worker_id) is not outbox:
            return False
        del self._outboxes[outbox.worker_id]
        return True

    def send(self, worker_id: str, message: worker_pb2.ToWorker) -> None:
        """To a worker without a stream nothing is sent: when it comes back, Welcome says what holds."""
        outbox = self._outboxes.get(worker_id)
        if outbox is not None:
            self.way_out.after(partial(outbox.put, message))

    def carry_out(
        self, effect: e.Effect, now: float, task_of: Callable[[str], Task], changed: Callable[[str], None]
    ) -> None:  # fmt: skip
        """`task_of` gives a live task by its id; `changed` tells who waits for an operation."""
        match effect:
            case e.LeaseGranted(worker_id, task_id, lease_id, epoch):
                task = task_of(task_id)
                if not effect.hedge:
                    self.observer.lease_granted(now - task.queued_at)
                self.send(worker_id, letters.lease(task_id, lease_id, epoch, task.candidate, effect.memory_bytes))
            case e.LeaseRevoked(worker_id, lease_id, epoch, reason):
                self.send(worker_id, letters.revoke(lease_id, epoch, reason))
            case e.LeaseAcknowledged(worker_id, lease_id, epoch):
                self.send(worker_id, letters.acknowledged(lease_id, epoch))
            case e.WorkerWelcomed(worker_id, resumed, unknown):
                heartbeat_seconds = self._settings.heartbeat_interval_seconds(len(self._outboxes) + 1)
                welcome = letters.welcome(worker_id, resumed, unknown, self._settings, heartbeat_seconds)
                if self.attaching is not None:
                    self.attaching.heartbeat_seconds = heartbeat_seconds
                self._welcome(worker_id, welcome)
            case e.WorkerGone(worker_id, name, reason, lost):
                self._vitals.gone(worker_id)
                log.info("worker gone", worker=name, reason=reason, lost_leases=lost)
                outbox = self._outboxes.pop(worker_id, None)
                if outbox is not None:
                    outbox.close(Unavailable(reason))
            case e.OperationChanged(name):
                self.way_out.after(partial(changed, name))
            case e.TaskRetried(task_id, worker_name, reason, counted):
                self.observer.task_retried(counted)
                log.info("action queued again", task=task_id, worker=worker_name, reason=reason, counted=counted)
            case e.TaskCompleted(task_id, queued_at, outcome, action_digest):
                tell_bad_end(task_id, outcome, action_digest)
                self.observer.execution_finished(result_of(outcome), now - queued_at)
                for stage, seconds in stages_of(outcome):
                    self.observer.stage_ended(stage, seconds)
            case e.TasksUnserved(waiting, reason):
                log.warning("actions wait that no worker can run", actions=waiting, reason=reason)
            case e.TasksWaitLong(waiting, seconds, reason):
                log.warning(
                    "actions wait for long", actions=waiting, oldest_seconds=round(seconds), reason=reason[:500]
                )
            case e.TaskHedged(task_id, worker, slow_worker, seconds):
                self.observer.hedge_started()
                log.info("slow action runs a second time", task=task_id, worker=worker, slow_worker=slow_worker,
                         running_seconds=round(seconds, 1))  # fmt: skip
            case e.HedgeEnded(task_id, won):
                self.observer.hedge_ended(won)
                log.info("second run of an action ended", task=task_id, won=won)
            case e.WorkerQuarantined(name, seconds, evidence):
                self.observer.worker_quarantined()
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
        outbox, self.attaching = self.attaching, None
        earlier = self._outboxes.pop(worker_id, None)
        if earlier is not None:
            earlier.close(Unavailable("replaced by a newer stream of the same session"))
        if outbox is not None:
            outbox.worker_id = worker_id
            self._outboxes[worker_id] = outbox
            self.send(worker_id, welcome)
            self.logs.welcomed(worker_id)
