"""A queue to be driven by hand: it keeps the time, checks every invariant after every event, and speaks briefly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from cas.digest import Digest
from rexec.scheduler import events as e
from rexec.scheduler import invariants
from rexec.scheduler.platform import Offer, Requirement
from rexec.scheduler.queue import Queue
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate, Demand, Failure, HeldLease, Operation, Outcome, Owner, Standing

Kind = TypeVar("Kind", bound=e.Effect)

LINUX = frozenset({("OSFamily", "linux")})


class Driver:
    """Events in, checked effects out."""

    def __init__(self, settings: SchedulerSettings | None = None) -> None:
        self.settings = settings or SchedulerSettings()
        self.now = 1000.0
        self.queue = Queue(self.settings, self.now)
        self.effects: list[e.Effect] = []
        """All of them so far."""
        self.workers_answer = True
        """Whether workers say at once that they have got a lease, as real ones do."""
        self._names = 0

    def do(self, event: e.Event) -> Sequence[e.Effect]:
        effects = self.queue.apply(event, self.now)
        invariants.check(self.queue)
        self.effects += effects
        for lease in of_kind(effects, e.LeaseGranted):
            worker = self.queue.fleet.workers[lease.worker_id]
            assert worker.standing is not Standing.QUARANTINED
            assert worker.trial is None or worker.trial.lease_id == lease.lease_id
            if self.workers_answer:
                fetching = e.Progress(lease.worker_id, lease.lease_id, lease.epoch, running=False)
                assert self.queue.apply(fetching, self.now) == []
        return effects

    def pass_time(self, seconds: float) -> Sequence[e.Effect]:
        """Let time pass, with a tick at every deadline on the way."""
        end = self.now + seconds
        effects: list[e.Effect] = []
        while (due := self.queue.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            effects += self.do(e.Tick())
        self.now = end
        return effects

    # Clients

    def submit(
        self,
        action: str = "",
        *,
        priority: int = 0,
        pairs: frozenset[tuple[str, str]] = frozenset(),
        instance_name: str = "",
        do_not_cache: bool = False,
        watched: bool = True,
        action_class: str = "",
        timeout_seconds: float = 0.0,
        owner: Owner | None = None,
        demand: Demand | None = None,
        affinity: Sequence[str] = (),
    ) -> str:
        """An operation for the action of that name; without one, for an action of its own."""
        self._names += 1
        name = f"operation-{self._names}"
        candidate = Candidate(
            instance_name,
            Digest.of((action or name).encode()),
            Requirement(instance_name, pairs),
            priority,
            do_not_cache,
            timeout_seconds,
            owner=owner or Owner(),
            demand=demand or Demand(),
            action_class=action_class,
            affinity=tuple(affinity),
        )
        self.do(e.Submit(name, f"task-{self._names}", candidate))
        if watched:
            self.do(e.WaiterJoined(name))
        return name

    def operation(self, name: str) -> Operation:
        return self.queue.operations[name]

    def reason(self, name: str) -> str:
        return self.queue.reason(self.operation(name).task)

    # Workers

    def attach(
        self,
        name: str = "w1",
        *,
        session: str = "",
        slots: int = 1,
        credit: int | None = None,
        pairs: frozenset[tuple[str, str]] = LINUX,
        instances: Sequence[str] = (),
        cpu_millis: int = 0,
        memory_bytes: int = 0,
        held: Sequence[HeldLease] = (),
    ) -> str:
        """A worker with as much credit as it has slots, or as said. Returns its id."""
        worker_id = session or f"{name}-session"
        offer = Offer(pairs, frozenset(instances), cpu_millis, memory_bytes)
        self.do(e.WorkerAttached(worker_id, name, slots, offer, tuple(held)))
        self.credit(worker_id, slots if credit is None else credit)
        return worker_id

    def credit(self, worker_id: str, leases: int, received: int | None = None) -> None:
        self.do(e.Credit(worker_id, leases, received))

    def leases(self, worker_id: str) -> list[HeldLease]:
        """What the worker holds as far as the queue knows, oldest first."""
        worker = self.queue.fleet.workers[worker_id]
        return [HeldLease(lease.lease_id, lease.epoch) for lease in worker.leases.values()]

    def finish(
        self,
        worker_id: str,
        lease: HeldLease | None = None,
        *,
        failure: Failure = Failure.NONE,
        response: object = "result",
        size_bytes: int = 0,
        evidence: str = "",
    ) -> Sequence[e.Effect]:
        """The worker ends a lease, its oldest if none is named."""
        ended = lease or self.leases(worker_id)[0]
        outcome = Outcome(response=response, size_bytes=size_bytes)
        return self.do(e.Finished(worker_id, ended.lease_id, ended.epoch, failure, outcome, evidence))

    def running_on(self, operation: str) -> str:
        """The name of the worker that has the operation's task, "" if none has."""
        lease = self.operation(operation).task.lease
        return lease.worker.name if lease is not None else ""


def of_kind(effects: Sequence[e.Effect], kind: type[Kind]) -> list[Kind]:
    """Those effects that are of a kind."""
    return [effect for effect in effects if isinstance(effect, kind)]
