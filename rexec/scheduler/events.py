"""What goes into the queue and what comes out: events and effects, as values.

The shell turns wire messages, closed streams and timers into events, and effects into messages and wake-ups. An effect
names what has happened already; carrying it out cannot fail as far as the rules are concerned.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cas.digest import Digest
from rexec.scheduler.platform import Offer
from rexec.scheduler.task import Candidate, Failure, Held, HeldLease, Outcome, Usage

# Events


@dataclass(frozen=True, slots=True)
class Submit:
    """A client asks for a run. `task_id` is used if it joins no task in flight."""

    operation_name: str
    task_id: str
    candidate: Candidate
    view: object = None


@dataclass(frozen=True, slots=True)
class Record:
    """An operation that is complete when it is born: its result came from the action cache."""

    operation_name: str
    task_id: str
    candidate: Candidate
    outcome: Outcome
    view: object = None


@dataclass(frozen=True, slots=True)
class WaiterJoined:
    """A stream waits for the operation."""

    operation_name: str


@dataclass(frozen=True, slots=True)
class WaiterLeft:
    """A stream that waited is gone."""

    operation_name: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Someone asked for the operation to stop."""

    operation_name: str


@dataclass(frozen=True, slots=True)
class Forget:
    """A client will not ask for the completed operation again."""

    operation_name: str


@dataclass(frozen=True, slots=True)
class WorkerAttached:
    """A worker's stream is open. `worker_id` is its session: the same one again is a reconnect."""

    worker_id: str
    name: str
    slots: int
    offer: Offer
    held: Held = ()


@dataclass(frozen=True, slots=True)
class WorkerDetached:
    """A worker's stream broke; its grace starts."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Credit:
    """How many more leases a worker takes; `received` is how many it had seen when it counted, None if it does not say."""

    worker_id: str
    leases: int
    received: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """A worker is at work on a lease; `running` once the command itself runs or has run, `delivering` once it has."""

    worker_id: str
    lease_id: str
    epoch: int
    running: bool
    detail: object = None
    delivering: bool = False


@dataclass(frozen=True, slots=True)
class Reported:
    """A worker has reported the end of a lease, and the result is about to be checked: its slot is free."""

    worker_id: str
    lease_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A report has been checked and, where it is worth it, written to the action cache."""

    worker_id: str
    lease_id: str
    epoch: int
    failure: Failure
    outcome: Outcome = field(default_factory=Outcome)
    """For a failure: how the task ends if this was its last attempt; empty for the usual end, that workers were lost."""
    evidence: str = ""
    """For a failure: what happened, for a person."""
    usage: Usage | None = None
    """What the run took, if anything can be learned from it."""
    blames_worker: bool = True
    """For an infrastructure failure: whether the worker may be at fault, or somebody else certainly is."""


@dataclass(frozen=True, slots=True)
class Draining:
    """A worker takes no more leases."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: whatever is due happens."""


Event = (
    Submit | Record | WaiterJoined | WaiterLeft | Cancel | Forget | WorkerAttached | WorkerDetached | Credit | Progress
    | Reported | Finished | Draining | Tick
)  # fmt: skip

# Effects


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    """Send the task to the worker."""

    worker_id: str
    task_id: str
    lease_id: str
    epoch: int
    attempt: int
    """From 1; back-pressure does not count."""
    hedge: bool = False
    """A second run, beside one that takes long."""


@dataclass(frozen=True, slots=True)
class LeaseRevoked:
    """Tell the worker to stop the lease."""

    worker_id: str
    lease_id: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class LeaseAcknowledged:
    """Tell the worker to forget the lease."""

    worker_id: str
    lease_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class WorkerWelcomed:
    """Tell the worker which of the leases it holds go on."""

    worker_id: str
    resumed: tuple[HeldLease, ...]
    unknown: tuple[HeldLease, ...]


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """The session is over: it was replaced, drained, or did not come back in time."""

    worker_id: str
    name: str
    reason: str
    lost_leases: int


@dataclass(frozen=True, slots=True)
class OperationChanged:
    """The operation's stage is another one; tell who waits."""

    operation_name: str


@dataclass(frozen=True, slots=True)
class TaskRetried:
    """A lease ended without a result and the task waits again."""

    task_id: str
    worker_name: str
    reason: str
    counted: bool
    """Whether it used up an attempt."""


@dataclass(frozen=True, slots=True)
class TaskCompleted:
    """No one need wait any more."""

    task_id: str
    queued_at: float
    outcome: Outcome
    action_digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class OperationForgotten:
    """The operation's name means nothing from now on."""

    operation_name: str


@dataclass(frozen=True, slots=True)
class TasksUnserved:
    """Tasks wait that no attached worker can run: for the log, because clients show no reason."""

    waiting: int
    reason: str


@dataclass(frozen=True, slots=True)
class TasksWaitLong:
    """Tasks wait for long although workers fit: for the log."""

    waiting: int
    oldest_seconds: float
    reason: str
    """Of the one that waits longest."""


@dataclass(frozen=True, slots=True)
class TaskHedged:
    """A task that runs for unusually long got a second lease, on idle capacity."""

    task_id: str
    worker_name: str
    """Of the second run."""
    slow_worker_name: str
    running_seconds: float
    """How long the first run has taken so far."""


@dataclass(frozen=True, slots=True)
class HedgeEnded:
    """One of two runs of a task is left, or none."""

    task_id: str
    won: bool
    """Whether the second run gave the result."""


@dataclass(frozen=True, slots=True)
class WorkerQuarantined:
    """A worker gets no actions for a while. Said once, not for each trial that it fails."""

    worker_name: str
    seconds: float
    """Until it gets an action on trial."""
    evidence: tuple[str, ...]
    """The failures that led to it."""


@dataclass(frozen=True, slots=True)
class WorkerTrusted:
    """A worker that was quarantined has done well on trial."""

    worker_name: str


Effect = (
    LeaseGranted | LeaseRevoked | LeaseAcknowledged | WorkerWelcomed | WorkerGone | OperationChanged | TaskRetried
    | TaskCompleted | OperationForgotten | TasksUnserved | TasksWaitLong | TaskHedged | HedgeEnded
    | WorkerQuarantined | WorkerTrusted
)  # fmt: skip
