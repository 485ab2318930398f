"""What goes into the queue and what comes out: events and effects, as values.

The shell turns wire messages, closed streams and timers into events, and effects into messages and wake-ups. An effect
names what has happened already; carrying it out cannot fail as far as the rules are concerned.
"""

from __future__ import annotations

import msgspec

from cas.digest import Digest
from rexec.scheduler.platform import Offer
from rexec.scheduler.task import Candidate, Failure, Held, HeldLease, Outcome, Usage

# Events


class Submit(msgspec.Struct, frozen=True):
    """A client asks for a run. `task_id` is used if it joins no task in flight."""

    operation_name: str
    task_id: str
    candidate: Candidate
    view: object = None


class Record(msgspec.Struct, frozen=True):
    """An operation that is complete when it is born: its result came from the action cache."""

    operation_name: str
    task_id: str
    candidate: Candidate
    outcome: Outcome
    view: object = None


class WaiterJoined(msgspec.Struct, frozen=True):
    """A stream waits for the operation."""

    operation_name: str


class WaiterLeft(msgspec.Struct, frozen=True):
    """A stream that waited is gone."""

    operation_name: str


class Cancel(msgspec.Struct, frozen=True):
    """Someone asked for the operation to stop."""

    operation_name: str


class Forget(msgspec.Struct, frozen=True):
    """A client will not ask for the completed operation again."""

    operation_name: str


class WorkerAttached(msgspec.Struct, frozen=True):
    """A worker's stream is open. `worker_id` is its session: the same one again is a reconnect."""

    worker_id: str
    name: str
    slots: int
    offer: Offer
    held: Held = ()


class WorkerDetached(msgspec.Struct, frozen=True):
    """A worker's stream broke; its grace starts."""

    worker_id: str


class WorkerEnded(msgspec.Struct, frozen=True):
    """The machine of a worker whose stream is broken has ended: it will not come back."""

    worker_id: str


class Credit(msgspec.Struct, frozen=True):
    """How many more leases a worker takes; `received` is how many it had seen when it counted, None if it does not say."""

    worker_id: str
    leases: int
    received: int | None = None


class Progress(msgspec.Struct, frozen=True):
    """A worker is at work on a lease; `running` once the command itself runs or has run, `delivering` once it has."""

    worker_id: str
    lease_id: str
    epoch: int
    running: bool
    detail: object = None
    delivering: bool = False


class Reported(msgspec.Struct, frozen=True):
    """A worker has reported the end of a lease, and the result is about to be checked: its slot is free."""

    worker_id: str
    lease_id: str
    epoch: int


class Finished(msgspec.Struct, frozen=True):
    """A report has been checked and, where it is worth it, written to the action cache."""

    worker_id: str
    lease_id: str
    epoch: int
    failure: Failure
    outcome: Outcome = Outcome()
    """For a failure: how the task ends if this was its last attempt; empty for the usual end, that workers were lost."""
    evidence: str = ""
    """For a failure: what happened, for a person."""
    usage: Usage | None = None
    """What the run took, if anything can be learned from it."""
    blames_worker: bool = True
    """For an infrastructure failure: whether the worker may be at fault, or somebody else certainly is."""
    exceeded_memory_bytes: int = 0
    """For the end of an action that was killed for the memory it took: how much that was when it was killed."""


class Draining(msgspec.Struct, frozen=True):
    """A worker takes no more leases."""

    worker_id: str
    reason: str = ""
    """For people."""
    until: float | None = None
    """When it is to have left, if it was ordered to; None if it leaves of its own accord."""


class Tick(msgspec.Struct, frozen=True):
    """Time has passed: whatever is due happens."""


Event = (
    Submit | Record | WaiterJoined | WaiterLeft | Cancel | Forget | WorkerAttached | WorkerDetached | WorkerEnded | Credit
    | Progress | Reported | Finished | Draining | Tick
)  # fmt: skip

# Effects


class LeaseGranted(msgspec.Struct, frozen=True):
    """Send the task to the worker."""

    worker_id: str
    task_id: str
    lease_id: str
    epoch: int
    attempt: int
    """From 1; back-pressure does not count."""
    hedge: bool = False
    """A second run, beside one that takes long."""
    memory_bytes: int = 0
    """What it may take of the worker's memory, if that is not what its slots stand for there."""


class LeaseRevoked(msgspec.Struct, frozen=True):
    """Tell the worker to stop the lease."""

    worker_id: str
    lease_id: str
    epoch: int
    reason: str


class LeaseAcknowledged(msgspec.Struct, frozen=True):
    """Tell the worker to forget the lease."""

    worker_id: str
    lease_id: str
    epoch: int


class WorkerWelcomed(msgspec.Struct, frozen=True):
    """Tell the worker which of the leases it holds go on."""

    worker_id: str
    resumed: tuple[HeldLease, ...]
    unknown: tuple[HeldLease, ...]


class WorkerGone(msgspec.Struct, frozen=True):
    """The session is over: it was replaced, drained, or did not come back in time."""

    worker_id: str
    name: str
    reason: str
    lost_leases: int


class OperationChanged(msgspec.Struct, frozen=True):
    """The operation's stage is another one; tell who waits."""

    operation_name: str


class TaskRetried(msgspec.Struct, frozen=True):
    """A lease ended without a result and the task waits again."""

    task_id: str
    worker_name: str
    reason: str
    counted: bool
    """Whether it used up an attempt."""


class TaskCompleted(msgspec.Struct, frozen=True):
    """No one need wait any more."""

    task_id: str
    queued_at: float
    outcome: Outcome
    action_digest: Digest | None = None


class OperationForgotten(msgspec.Struct, frozen=True):
    """The operation's name means nothing from now on."""

    operation_name: str


class TasksUnserved(msgspec.Struct, frozen=True):
    """Tasks wait that no attached worker can run: for the log, because clients show no reason."""

    waiting: int
    reason: str


class TasksWaitLong(msgspec.Struct, frozen=True):
    """Tasks wait for long although workers fit: for the log."""

    waiting: int
    oldest_seconds: float
    reason: str
    """Of the one that waits longest."""


class TaskHedged(msgspec.Struct, frozen=True):
    """A task that runs for unusually long got a second lease, on idle capacity."""

    task_id: str
    worker_name: str
    """Of the second run."""
    slow_worker_name: str
    running_seconds: float
    """How long the first run has taken so far."""


class HedgeEnded(msgspec.Struct, frozen=True):
    """One of two runs of a task is left, or none."""

    task_id: str
    won: bool
    """Whether the second run gave the result."""


class WorkerQuarantined(msgspec.Struct, frozen=True):
    """A worker gets no actions for a while. Said once, not for each trial that it fails."""

    worker_name: str
    seconds: float
    """Until it gets an action on trial."""
    evidence: tuple[str, ...]
    """The failures that led to it."""


class WorkerTrusted(msgspec.Struct, frozen=True):
    """A worker that was quarantined has done well on trial."""

    worker_name: str


Effect = (
    LeaseGranted | LeaseRevoked | LeaseAcknowledged | WorkerWelcomed | WorkerGone | OperationChanged | TaskRetried
    | TaskCompleted | OperationForgotten | TasksUnserved | TasksWaitLong | TaskHedged | HedgeEnded
    | WorkerQuarantined | WorkerTrusted
)  # fmt: skip
