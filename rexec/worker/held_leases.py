"""The leases that an agent holds: how far each is, and how many more it can take. Decides, and does nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.live_log import LeaseLog

_AFTER_EXIT = frozenset({worker_pb2.Progress.COLLECTING, worker_pb2.Progress.UPLOADING})


class LeaseKey(NamedTuple):
    """One grant of a task: the same lease with a higher epoch is another grant."""

    lease_id: str
    epoch: int


@dataclass(eq=False, slots=True)
class HeldLease:
    """A lease from its arrival until the scheduler has acknowledged its end."""

    key: LeaseKey
    log: LeaseLog
    slots: int = 1
    """How many its command takes."""
    phase: worker_pb2.Progress.Phase = worker_pb2.Progress.PHASE_UNSPECIFIED
    metadata: re_pb2.ExecutedActionMetadata | None = None
    """What is known of the run so far; its owner goes on writing to it."""
    phase_began_at: float = 0.0
    """By the event loop's clock."""
    task: asyncio.Task[None] | None = None
    finished: worker_pb2.Finished | None = None
    """How it ended, once it has."""
    stopping: worker_pb2.Finished.Failure = worker_pb2.Finished.NONE
    """Why it was stopped, if it was: REVOKED or BACK_PRESSURE."""
    reason: str = ""
    is_unwanted: bool = False
    """Nobody waits to hear of it: it is forgotten as soon as it has stopped."""

    @property
    def phase_name(self) -> str:
        """For people: "accepted" before the first phase, "ended" after the last."""
        if self.finished is not None:
            return "ended"
        if self.phase == worker_pb2.Progress.PHASE_UNSPECIFIED:
            return "accepted"
        return worker_pb2.Progress.Phase.Name(self.phase).lower()

    @property
    def needs_slot(self) -> bool:
        """Whether it runs or is still to run."""
        return self.finished is None and self.phase not in _AFTER_EXIT

    def to_proto(self) -> worker_pb2.HeldLease:
        """For Hello."""
        return worker_pb2.HeldLease(lease_id=self.key.lease_id, epoch=self.key.epoch)


@dataclass(slots=True)
class HeldLeases:
    """All of them."""

    slots: int
    prefetch_leases: int
    _leases: dict[LeaseKey, HeldLease] = field(default_factory=dict)

    def add(self, key: LeaseKey, log: LeaseLog, slots: int = 1) -> HeldLease:
        """A new one."""
        held = self._leases[key] = HeldLease(key, log, slots)
        return held

    def get(self, key: LeaseKey) -> HeldLease | None:
        """The one of that name, if it is held."""
        return self._leases.get(key)

    def remove(self, held: HeldLease) -> None:
        """Done with it; again does nothing."""
        self._leases.pop(held.key, None)

    def __iter__(self) -> Iterator[HeldLease]:
        return iter(list(self._leases.values()))

    def __len__(self) -> int:
        return len(self._leases)

    def by_phase(self) -> dict[str, int]:
        """How many are in each phase, by its name; every phase is there."""
        names = [worker_pb2.Progress.Phase.Name(phase).lower() for phase in worker_pb2.Progress.Phase.values() if phase]
        counts = dict.fromkeys(("accepted", *names, "ended"), 0)
        for held in self._leases.values():
            counts[held.phase_name] += 1
        return counts

    def room(self) -> int:
        """How many more leases of one slot can be taken.

        A slot is free as soon as its command has ended. But if outputs cannot be uploaded as fast as they are made, they
        must not pile up: there are never more than twice as many leases as there are places.
        """
        places = self.slots + self.prefetch_leases
        unfinished = sum(1 for held in self._leases.values() if held.finished is None)
        waiting = sum(held.slots for held in self._leases.values() if held.needs_slot)
        return max(0, min(places - waiting, 2 * places - unfinished))
