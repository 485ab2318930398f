"""One operation as `rexec ps` shows it, and which ones are wanted."""

from __future__ import annotations

from dataclasses import dataclass

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import status_pb2
from rexec.scheduler.category import category_of
from rexec.scheduler.state import QueueState
from rexec.scheduler.summary import owner_to_proto, shortened, summary_of
from rexec.scheduler.task import Ending, Operation, Stage
from rexec.scheduler.telling import result_of

Place = tuple[int, str]
"""Arrival of the task and name of the operation: the order in which operations are listed."""

LIVE = frozenset({Stage.QUEUED, Stage.EXECUTING})


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which operations."""

    names: frozenset[str] | None = None
    """Instances; None: all."""
    stages: frozenset[Stage] = LIVE
    tenant: str | None = None
    user: str | None = None
    invocation: str | None = None
    after: Place = (-1, "")
    """Only what comes later in the list."""

    def wants(self, operation: Operation) -> bool:
        """Whether this is one of them."""
        owner = operation.owner
        return (
            operation.stage in self.stages
            and (self.invocation is None or owner.invocation == self.invocation)
            and (self.user is None or owner.user == self.user)
            and (self.tenant is None or owner.tenant == self.tenant)
            and (self.names is None or operation.task.candidate.instance_name in self.names)
            and place_of(operation) > self.after
        )


def place_of(operation: Operation) -> Place:
    """Where the operation is in the list."""
    return operation.task.arrival, operation.name


def found_operation(
    operation: Operation, state: QueueState, now: float, reason: str, ahead: int | None
) -> status_pb2.FoundOperation:
    """The operation. `reason` says why it waits, `ahead` is how many tasks of its kind come before it."""
    task, candidate = operation.task, operation.task.candidate
    found = status_pb2.FoundOperation(
        name=operation.name,
        instance_name=candidate.instance_name,
        owner=owner_to_proto(operation.owner),
        digest_function=candidate.action_digest.function.value,
        action_digest=candidate.action_digest.to_proto(),
        stage=re_pb2.ExecutionStage.Value.Name(operation.stage),
        action_class=shortened(candidate.action_class),
        priority=task.priority,
        age_seconds=now - task.queued_at,
        summary=summary_of(candidate),
        attempts=len(task.losses) + (task.lease is not None),
    )
    if operation.outcome is not None:
        cached = operation.outcome.error is None and operation.outcome.ending is Ending.CACHED
        found.result = "cached" if cached else result_of(operation.outcome)
        return found
    if operation.stage is Stage.QUEUED:
        found.reason = shortened(reason, 1000)
        found.category = category_of(task, state.fleet)
    if task.lease is not None:
        found.worker = task.lease.worker.name
        if task.lease.began_at is not None:
            found.running_seconds = now - task.lease.began_at
    if ahead is not None:
        found.ahead = ahead
    if task.expected_seconds is not None:
        found.expected_seconds = task.expected_seconds
    return found
