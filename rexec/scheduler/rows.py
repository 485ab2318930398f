"""The rows of the journal: what of the queue's state is written down, and in which form.

A row holds what cannot be found out again. Who waits, which workers have room and what is in line where is not in it: clients
and workers come back and say so. Tasks are in two parts, because the large one never changes and the small one often does.

Values are encoded so that a later version may add to them: those that others see as messages of record.proto, the others with
their names (MessagePack). All times are wall time in seconds since 1970: a monotonic clock means nothing to the next process.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec


class LeaseRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A lease that counts for its task."""

    lease_id: str
    epoch: int
    session: str
    """The worker's id."""
    started: bool = False
    charged: tuple[str, str, str] | None = None
    """Tenant, user and invocation whose share it takes up, if they are others than those who asked first."""


class LiveRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What changes of a task."""

    priority: int = 0
    epoch: int = 0
    losses: list[str] = []
    lease: LeaseRecord | None = None
    expected_seconds: float | None = None
    enlarged_memory_bytes: int = 0
    """What it needs since it was killed for the memory it took; 0 if it was not."""


class WorkerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One session of a worker agent: what it takes to know it again."""

    name: str
    slots: int
    pairs: list[tuple[str, str]] = []
    """What it offers."""
    instance_names: list[str] = []
    resources: dict[str, int] = {}
    lost_at: float | None = None
    """When it counts as lost if it does not come back, in seconds since 1970; None while it is connected."""
    drain_until: float | None = None
    """When it is to have left, in seconds since 1970; None if nobody has ordered it to leave."""
    drain_reason: str = ""


TaskRow = tuple[int, str, float, bytes]
"""Number (the task's arrival), task id, when it was queued first, and the encoded Candidate."""

LiveRow = tuple[int, bytes]
"""Number of the task, and an encoded LiveRecord."""

OperationRow = tuple[int, str, int | None, float | None, bytes]
"""Number (of its own), name, the task's number as long as it is live, when it completed, and an encoded OperationState."""

WorkerRow = tuple[str, bytes]
"""Session and an encoded WorkerRecord."""

StatisticsRow = tuple[str, bytes]
"""Name and data; both are the affair of rexec/scheduler/statistics.py."""


@dataclass(slots=True)
class Batch:
    """Rows to be written together. Where a key is there already, its row is replaced."""

    tasks: list[TaskRow] = field(default_factory=list)
    live: list[LiveRow] = field(default_factory=list)
    operations: list[OperationRow] = field(default_factory=list)
    workers: list[WorkerRow] = field(default_factory=list)
    statistics: list[StatisticsRow] = field(default_factory=list)
    ended_tasks: list[int] = field(default_factory=list)
    forgotten_operations: list[int] = field(default_factory=list)
    gone_workers: list[str] = field(default_factory=list)
    forgotten_statistics: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """How many rows are touched."""
        return (
            len(self.tasks)
            + len(self.live)
            + len(self.operations)
            + len(self.workers)
            + len(self.statistics)
            + 2 * len(self.ended_tasks)
            + len(self.forgotten_operations)
            + len(self.gone_workers)
            + len(self.forgotten_statistics)
        )


@dataclass(slots=True)
class Recorded:
    """All rows, as they were found."""

    tasks: list[TaskRow] = field(default_factory=list)
    live: list[LiveRow] = field(default_factory=list)
    operations: list[OperationRow] = field(default_factory=list)
    workers: list[WorkerRow] = field(default_factory=list)
    statistics: list[StatisticsRow] = field(default_factory=list)
    """The longest unchanged first."""
