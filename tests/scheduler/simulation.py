"""A queue with workers that take simulated time: who was served when, without waiting for it."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from cas.digest import Digest
from rexec.scheduler import events as e
from rexec.scheduler import invariants
from rexec.scheduler.platform import Offer, Requirement
from rexec.scheduler.queue import Queue
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate, Demand, Failure, Outcome, Owner


@dataclass(slots=True)
class Run:
    """One action that got a worker."""

    name: str
    owner: Owner
    """Whose share it took up."""
    worker: str
    at: float


@dataclass(slots=True)
class Simulation:
    """Workers take leases at once and end each when its time is over."""

    settings: SchedulerSettings = field(default_factory=SchedulerSettings)
    seconds_of: Callable[[str], float] = lambda _name: 1.0
    """How long the action of a name runs."""
    now: float = 0.0
    runs: list[Run] = field(default_factory=list)
    checks: bool = True
    """Whether the queue is checked after each event, which costs its size."""
    queue: Queue = field(init=False)
    _ends: list[tuple[float, int, e.LeaseGranted]] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)
    _serial: int = 0

    def __post_init__(self) -> None:
        self.queue = Queue(self.settings, self.now)

    def do(self, event: e.Event) -> None:
        for effect in self.queue.apply(event, self.now):
            if isinstance(effect, e.LeaseGranted):
                self._granted(effect)
        if self.checks:
            invariants.check(self.queue)

    def _granted(self, granted: e.LeaseGranted) -> None:
        self._serial += 1
        name = self._names[granted.task_id]
        lease = self.queue.leases[granted.lease_id]
        self.runs.append(Run(name, lease.owner, lease.worker.name, self.now))
        heapq.heappush(self._ends, (self.now + self.seconds_of(name), self._serial, granted))

    def attach(self, name: str, slots: int = 1, *, cpu_millis: int = 0, memory_bytes: int = 0) -> None:
        offer = Offer(frozenset(), frozenset(), cpu_millis, memory_bytes)
        self.do(e.WorkerAttached(name, name, slots, offer))
        self.do(e.Credit(name, slots))

    def submit(
        self,
        name: str,
        owner: Owner | None = None,
        *,
        action: str = "",
        priority: int = 0,
        demand: Demand | None = None,
        affinity: tuple[str, ...] = (),
        action_class: str = "",
    ) -> None:
        candidate = Candidate(
            "", Digest.of((action or name).encode()), Requirement(), priority, owner=owner or Owner(),
            demand=demand or Demand(), affinity=affinity, action_class=action_class,
        )  # fmt: skip
        self._names[name] = name
        self.do(e.Submit(name, name, candidate))
        self.do(e.WaiterJoined(name))

    def run(self, until: float) -> None:
        """Let time pass."""
        while True:
            due = self.queue.next_deadline()
            end = self._ends[0][0] if self._ends else None
            times = [when for when in (due, end) if when is not None and when <= until]
            if not times:
                break
            self.now = max(self.now, min(times))
            if end is not None and end <= self.now:
                self._end(heapq.heappop(self._ends)[2])
            else:
                self.do(e.Tick())
        self.now = until

    def _end(self, granted: e.LeaseGranted) -> None:
        worker = self.queue.fleet.workers[granted.worker_id]
        self.do(e.Reported(granted.worker_id, granted.lease_id, granted.epoch))
        self.do(e.Credit(granted.worker_id, max(0, worker.free_slots)))
        outcome = Outcome(response="done")
        self.do(e.Finished(granted.worker_id, granted.lease_id, granted.epoch, Failure.NONE, outcome))

    def served(self, owner: Owner) -> list[Run]:
        """What an owner got."""
        return [run for run in self.runs if run.owner == owner]
