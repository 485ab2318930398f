"""What the queue knows: one object that every rule works on, and nothing else is remembered between two events.

The rules are functions in modules of their own, each of which changes this state and appends effects to it:

    submission.py   a client asks for a run
    waiters.py      clients come, go, and stop what they asked for
    sessions.py     workers come, go, and say how much they take
    reports.py      workers say how their leases go
    patience.py     workers say nothing, or never come to an end
    attempts.py     a lease came to nothing: once more, elsewhere, or no more
    quarantine.py   workers on which everything fails get nothing for a while
    enlarging.py    what took more memory than it was given gets more, once
    completion.py   the end of a task, and for how long it is remembered
    dispatch.py     which task waits, and which worker gets it
    long_waits.py   who waits for long although workers fit is told of
    hedging.py      what takes unusually long is run a second time
    leases.py       a lease is made, taken back, let go of

Each imports only those below it. `Queue` gives them the events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cas.digest import Digest
from cas.errors import OperationNotFound
from rexec.scheduler import events as e
from rexec.scheduler.accounts import Accounts
from rexec.scheduler.contested import ContestedNames
from rexec.scheduler.deadlines import Deadlines
from rexec.scheduler.fleet import Fleet
from rexec.scheduler.need import Need
from rexec.scheduler.platform import Requirement
from rexec.scheduler.record import Record
from rexec.scheduler.retention import Retention
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.statistics import Statistics
from rexec.scheduler.task import Lease, Operation, Stage, Task, Worker
from rexec.scheduler.waiting import LongWaits, Waiting

MAX_KNOWN_NAMES: Final = 10_000
"""Real fleets have some dozens; workers may offer a thousand each time that they come."""


@dataclass(slots=True, eq=False)
class QueueState:
    """Tasks, operations, leases and workers, the indexes over them, and what the event at hand has changed."""

    settings: SchedulerSettings
    settled_at: float
    """Until then, workers may be on their way: what no worker offers yet is not refused."""
    fleet: Fleet
    retention: Retention
    now: float
    """The time of the event at hand."""
    tasks: dict[str, Task] = field(default_factory=dict)
    """Those that have not ended."""
    operations: dict[str, Operation] = field(default_factory=dict)
    """Live ones, and completed ones until they are forgotten."""
    leases: dict[str, Lease] = field(default_factory=dict)
    """All that a worker may still have, revoked ones too."""
    in_flight: dict[tuple[str, Digest], Task] = field(default_factory=dict)
    """Tasks that an equal action may join, by instance name and action digest."""
    kinds: dict[tuple[Requirement, Need], int] = field(default_factory=dict)
    """How many of the tasks ask for the same of a worker."""
    queued_operations: int = 0
    """Live operations in stage QUEUED."""
    accounts: Accounts = field(default_factory=Accounts)
    """Who has had what."""
    waiting: Waiting = field(default_factory=Waiting)
    """The tasks in line, by what makes them wait."""
    long_waits: LongWaits = field(default_factory=LongWaits)
    statistics: Statistics = field(default_factory=Statistics)
    """How long actions run."""
    records: dict[str, Record] = field(default_factory=dict)
    """What went wrong lately on workers, by their names."""
    contested: ContestedNames = field(default_factory=ContestedNames)
    hedges: int = 0
    """Tasks with two leases that count."""
    stragglers: list[Lease] = field(default_factory=list)
    """Leases found in the event at hand to take unusually long."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    known_names: set[str] = field(default_factory=set)
    """Of platform properties: those of the settings, and those that a worker has ever offered, unless that were too many."""
    any_attached: bool = False
    """Whether a worker has ever attached."""
    is_restart: bool = False
    """Whether an earlier process had work or workers: then workers and autoscalers come back one after the other, and of the
    first one nothing follows for the others."""
    unsettled: set[str] = field(default_factory=set)
    """Tasks that ask for unknown properties, accepted because no worker has had the time to attach."""
    arrivals: int = 0
    """Tasks so far: the next one's place in the order of arrival."""
    effects: list[e.Effect] = field(default_factory=list)
    """What the event at hand has brought about."""
    roomy: list[Worker] = field(default_factory=list)
    """Workers that may have got room in the event at hand."""

    @classmethod
    def new(cls, settings: SchedulerSettings, now: float) -> QueueState:
        """The state of a scheduler that starts now."""
        fleet = Fleet(settings)
        configured, told = settings.price, fleet.pools

        def price_of(lease: Lease) -> float:
            offer = lease.worker.offer
            return configured.slot_second(offer) if configured.known else told.slot_second(offer)

        return cls(
            settings,
            settled_at=now + settings.settle_seconds,
            fleet=fleet,
            retention=Retention(
                settings.retain_seconds, settings.max_retained_operations, settings.max_retained_bytes
            ),
            now=now,
            accounts=Accounts(price_of),
            known_names=set(settings.known_properties),
        )  # fmt: skip

    @property
    def has_prices(self) -> bool:
        """Whether anybody has said what slots cost: the configuration, or else the autoscalers."""
        return self.settings.price.known or self.fleet.pools.have_prices

    def next_arrival(self) -> int:
        """The number of a task that arrives now."""
        self.arrivals += 1
        return self.arrivals - 1

    def add(self, task: Task) -> None:
        """A task that has not ended."""
        candidate = task.candidate
        self.tasks[task.task_id] = task
        if not candidate.do_not_cache:
            self.in_flight[candidate.instance_name, candidate.action_digest] = task
        self._count_kind(task, 1)

    def remove(self, task: Task) -> None:
        """The task has ended."""
        candidate = task.candidate
        del self.tasks[task.task_id]
        self.unsettled.discard(task.task_id)
        key = candidate.instance_name, candidate.action_digest
        if self.in_flight.get(key) is task:
            del self.in_flight[key]
        self._count_kind(task, -1)

    def set_need(self, task: Task, need: Need) -> None:
        """The task, which is not in line, takes up something else from now on."""
        self._count_kind(task, -1)
        task.need = need
        self._count_kind(task, 1)

    def _count_kind(self, task: Task, by: int) -> None:
        kind = task.candidate.requirement, task.need
        tasks = self.kinds.pop(kind, 0) + by
        if tasks:
            self.kinds[kind] = tasks

    def know(self, names: frozenset[str]) -> None:
        """A worker offers properties of these names. Once there are too many, those that none offers any more are forgotten."""
        self.known_names |= names
        if len(self.known_names) > MAX_KNOWN_NAMES:
            offered = (worker.offer.names for worker in self.fleet.workers.values())
            self.known_names = set(self.settings.known_properties).union(names, *offered)

    def operation(self, name: str) -> Operation:
        """The operation of that name. Raises OperationNotFound."""
        operation = self.operations.get(name)
        if operation is None:
            raise OperationNotFound(f"no operation {name!r}")
        return operation

    def set_stage(self, task: Task, stage: Stage) -> None:
        """The task is QUEUED or EXECUTING now, and so are its live operations."""
        if task.stage is stage:
            return
        by = (stage is Stage.QUEUED) - (task.stage is Stage.QUEUED)
        task.stage = stage
        for operation in task.operations.values():
            self.count_queued(operation, by)
            self.accounts.moved(operation, stage, self.now)
        self.effects += [e.OperationChanged(name) for name in task.operations]

    def count_queued(self, operation: Operation, by: int) -> None:
        """The live operation is in stage QUEUED from now on (1) or is not any more (-1)."""
        self.queued_operations += by
        self.fleet.shares.queued(operation.owner, by)

    def touch(self, worker: Worker) -> None:
        """The worker's credit or leases have changed: it may have got room."""
        self.fleet.update(worker)
        self.roomy.append(worker)
