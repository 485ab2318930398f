"""What a worker's report comes to, and who finds that out."""

from __future__ import annotations

from typing import Protocol

import msgspec

from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.task import Candidate, Failure, Outcome


class Settled(msgspec.Struct, frozen=True):
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
