"""The records that the queue keeps: tasks, the operations that wait for them, leases and workers.

They are plain data; only the rules (rexec/scheduler/state.py lists them) and the `Fleet` change them. What the clients and
workers are told travels through as opaque values: the rules never look inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING

import msgspec

from cas.digest import Digest
from cas.errors import StatusError
from rexec.scheduler.need import Need, Use, need_of
from rexec.scheduler.platform import Offer, Requirement

if TYPE_CHECKING:
    from rexec.scheduler.line import Place


class Stage(IntEnum):
    """Where an operation is; the numbers are those of REAPI ExecutionStage.Value."""

    QUEUED = 2
    EXECUTING = 3
    COMPLETED = 4


class Failure(Enum):
    """What the end of a lease says about the worker; the end of the action itself is in the outcome."""

    NONE = "none"
    INFRASTRUCTURE = "infrastructure"
    """The worker's fault: retried elsewhere, one of the task's attempts."""
    BACK_PRESSURE = "back pressure"
    """No room after all: retried elsewhere, counts for nothing."""
    REVOKED = "revoked"
    """Stopped because it was told to; a task that is still wanted is queued again and loses nothing."""


class Hold(Enum):
    """What a lease is to its task."""

    LIVE = "live"
    SETTLING = "settling"
    """The worker has reported; the result is being checked and written. The worker's loss changes nothing any more."""
    REVOKED = "revoked"
    """Of no use to the task, but the worker has not let go of it yet: it still takes up room there."""


class Ending(Enum):
    """How an operation ended, as its owner counts it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """With an exit code other than 0, or not by itself."""
    CACHED = "cached"
    CANCELLED = "cancelled"


class Outcome(msgspec.Struct, frozen=True):
    """How a task ended: either the rules' own failure or whatever the shell made of the worker's report."""

    error: StatusError | None = None
    response: object = None
    size_bytes: int = 0
    """Of the response, for the bound on what is kept."""
    ending: Ending = Ending.SUCCEEDED
    """What the response says, for those who count; an error says it itself."""


class Owner(msgspec.Struct, frozen=True, cache_hash=True):
    """Whose work a task is: the levels between which slots are shared fairly."""

    tenant: str = ""
    user: str = ""
    invocation: str = ""
    """REAPI RequestMetadata.tool_invocation_id."""


class Demand(msgspec.Struct, frozen=True):
    """What an action uses up of its worker while it runs."""

    slots: int = 1
    cpu_millis: int = 0
    """Thousandths of a core; 0 is what its slots stand for."""
    memory_bytes: int = 0
    """0 is what its slots stand for."""


class Usage(msgspec.Struct, frozen=True):
    """What one run of an action took, by its worker's account."""

    seconds: float
    """Of the command alone."""
    peak_memory_bytes: int = 0
    """0: the worker did not say."""


class Candidate(msgspec.Struct, frozen=True):
    """What a client wants to run."""

    instance_name: str
    action_digest: Digest
    requirement: Requirement = Requirement()
    priority: int = 0
    """REAPI ExecutionPolicy.priority: lower runs sooner, negative values are allowed."""
    do_not_cache: bool = False
    """Never shared with an equal action (REAPI Action.do_not_cache)."""
    timeout_seconds: float = 0.0
    owner: Owner = Owner()
    demand: Demand = Demand()
    action_class: str = ""
    """Actions that are much alike, such as all C++ compilations: what is learned of one holds for the next."""
    action_key: str = ""
    """The same step of the same build, whatever its inputs are this time; empty if that is not known."""
    affinity: tuple[str, ...] = ()
    """Names of large parts of the input root: a worker that has seen them has them in its cache."""
    payload: object = None
    """What the worker gets; opaque here."""


@dataclass(slots=True)
class Operation:
    """One client's view of a task."""

    name: str
    task: Task
    view: object = None
    """How this client wants to see the result; opaque here."""
    waiters: int = 0
    outcome: Outcome | None = None
    completed_at: float | None = None
    owner: Owner = field(default_factory=Owner)
    """Who asked for this operation; the task belongs to the one who asked first."""

    @property
    def stage(self) -> Stage:
        """COMPLETED once it has an outcome of its own (a cancelled one among several), else the task's stage."""
        return Stage.COMPLETED if self.outcome is not None else self.task.stage


@dataclass(slots=True, eq=False)
class Task:
    """One run of one action, whoever waits."""

    task_id: str
    candidate: Candidate
    arrival: int
    """The order of arrival; kept when it is queued again, so that a lost worker costs no place in the line."""
    queued_at: float
    priority: int
    """The most urgent of those who joined."""
    stage: Stage = Stage.QUEUED
    operations: dict[str, Operation] = field(default_factory=dict)
    """The live ones."""
    waiters: int = 0
    """How many streams wait for them."""
    lease: Lease | None = None
    """Live or settling; None while it waits and once it has ended."""
    hedge: Lease | None = None
    """A second run beside `lease`, which takes longer than such actions do: whichever ends first counts."""
    hedged: bool = False
    """Whether it ever had one; it gets no other."""
    result_epoch: int | None = None
    """Of the lease whose output is the task's, once it has ended; None if there was none at the end."""
    epoch: int = 0
    """Of the last lease granted; each grant has a higher one."""
    losses: list[str] = field(default_factory=list)
    """The attempts that were used up: worker and reason of each."""
    excluded: frozenset[str] = frozenset()
    """Names of workers that it should not go to again."""
    enlarged: bool = False
    """Whether it was killed for the memory it took and gets more; that is tried once."""
    exclusion_ends_at: float | None = None
    unserved_due: bool = False
    """Whether a deadline is set at which it is told of if no worker fits. One at a time, however often it leaves the line and
    comes back."""
    abandon_at: float | None = None
    """When it is cancelled because no one waits, None while someone does."""
    place: Place | None = None
    """Its place in a line, None unless it waits there."""
    parked: bool = False
    """Out of line because nobody waits for it: it must not take a slot from those that someone waits for."""
    expected_seconds: float | None = None
    """How long it is expected to hold its slots, None if nothing is known. Set when the task is made, and never changed."""
    need: Need = field(init=False)
    """What it takes up of a worker: what it asks for, and once it is queued also what is known of its memory."""

    def __post_init__(self) -> None:
        demand = self.candidate.demand
        self.need = need_of(demand.slots, demand.cpu_millis, demand.memory_bytes)

    def counts_on(self, lease: Lease) -> bool:
        """Whether the result of that lease would be the task's."""
        return lease is self.lease or lease is self.hedge


@dataclass(slots=True, eq=False)
class Lease:
    """A worker's promise to run a task."""

    lease_id: str
    epoch: int
    task: Task
    worker: Worker
    started: bool
    """Given to a free slot or reported as running. One that was only fetched ahead and then lost has cost no attempt."""
    hold: Hold = Hold.LIVE
    inherited: bool = False
    """Granted by an earlier process, which may have known that it had left its slot."""
    granted_at: float = 0.0
    answered: bool = False
    """Whether the worker has said anything of it."""
    due_at: float | None = None
    """Since when its worker has had a slot for it, as far as is known, although the command does not run; None while it has
    none."""
    running_at: float | None = None
    """When the worker first said that the command runs, or has run."""
    hedge_due: bool = False
    """Whether it is known when it will have run for unusually long."""
    delivering_at: float | None = None
    """When the worker first said that the command has ended: outputs are gathered and uploaded."""
    detail: object = None
    """The worker's last word on its progress; opaque here."""
    began_at: float | None = None
    """Since when it takes up its slots; None while it is only fetched ahead."""
    released: bool = False
    """It takes them up no more."""
    price: float = 0.0
    """Of one slot for one second."""
    is_restored: bool = False
    """From before a restart of the scheduler, and its worker has not come back to it so far."""
    use: Use | None = None
    """What it takes up of its worker; None once it takes up nothing."""
    owner: Owner = field(default_factory=Owner)
    """Whose share it takes up: of those who wait for the task, the one whose turn it was."""


class Standing(Enum):
    """How far a worker is trusted with actions."""

    TRUSTED = "trusted"
    QUARANTINED = "quarantined"
    """Too many actions in a row failed there through no fault of their own: it gets none for a while."""
    ON_TRIAL = "on trial"
    """It gets one action, and what becomes of that decides."""


@dataclass(slots=True, eq=False)
class Worker:
    """One session of a worker agent."""

    worker_id: str
    """The session id."""
    name: str
    slots: int
    offer: Offer
    connected: bool = True
    draining: bool = False
    drain_reason: str = ""
    """Why it leaves, for people."""
    drain_until: float | None = None
    """When it is to have left, if it was ordered to leave."""
    credit: int = 0
    """Leases that it still takes."""
    sent: int = 0
    """Leases sent on the present stream."""
    leases: dict[str, Lease] = field(default_factory=dict)
    """By lease id: live, settling and revoked ones that it has not let go of."""
    settling: int = 0
    """How many of the leases are settling."""
    lost_at: float | None = None
    """When its leases are given up, None while it is connected."""
    idle_since: float = 0.0
    """When it attached, or its last lease ended; means nothing while it has any."""
    standing: Standing = Standing.TRUSTED
    standing_reason: str = ""
    """Why it is not trusted, for people."""
    trial: Lease | None = None
    """The one lease that it has got on trial."""
    used_slots: int = 0
    """Of its leases that take up room; a settling one has left its slot."""
    used_cpu_millis: int = 0
    used_memory_bytes: int = 0
    uneven: int = 0
    """How many of these leases take up something else than what one slot stands for."""

    @property
    def may_get_leases(self) -> bool:
        """Whether its standing allows another lease now."""
        return self.standing is Standing.TRUSTED or (self.standing is Standing.ON_TRIAL and self.trial is None)

    @property
    def holding(self) -> int:
        """Leases that take up room: a settling one has left its slot."""
        return len(self.leases) - self.settling

    @property
    def free_slots(self) -> int:
        """Slots without a lease; negative when leases are fetched ahead."""
        return self.slots - self.used_slots


class HeldLease(msgspec.Struct, frozen=True):
    """A lease as a worker names it when it attaches."""

    lease_id: str
    epoch: int


Held = Sequence[HeldLease]
