"""What a worker's report comes to, and who finds that out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.task import Candidate, Failure, Outcome


@dataclass(frozen=True, slots=True)
class Settled:
    """What a worker's report comes to."""

    failure: Failure
    outcome: Outcome
    evidence: str = ""
    blames_worker: bool = True
    """Whether an infrastructure failure may be the worker's fault."""


class Settler(Protocol):
    """Makes a worker's report fit to be shown to clients."""

    async def settle(self, candidate: Candidate, report: worker_pb2.Finished, worker_name: str) -> Settled:
        """Check what the worker claims and write the action cache. Must end, whatever the report holds."""
        ...
