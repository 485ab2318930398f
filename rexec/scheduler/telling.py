"""What clients, metrics and the log are told of a task: how far it is, how it ended."""

from __future__ import annotations

from typing import cast

import structlog
from google.protobuf import any_pb2, wrappers_pb2

from cas.digest import Digest
from cas.errors import Code
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.scheduler import Run
from rexec.scheduler.task import Outcome, Task

log = structlog.get_logger()


def metadata_of(task: Task, reason: str) -> re_pb2.ExecutedActionMetadata:
    """What is known of a run that has not ended: its worker, its timestamps, and why it waits."""
    metadata = re_pb2.ExecutedActionMetadata()
    if task.lease is not None:
        if isinstance(task.lease.detail, re_pb2.ExecutedActionMetadata):
            metadata.CopyFrom(task.lease.detail)
        metadata.worker = task.lease.worker.name
    metadata.queued_timestamp.FromNanoseconds(round(cast(Run, task.candidate.payload).queued_at * 1e9))
    if reason:
        # REAPI has no field for it; clients that do not know the type leave it alone.
        packed = any_pb2.Any()
        packed.Pack(wrappers_pb2.StringValue(value=reason))
        metadata.auxiliary_metadata.append(packed)
    return metadata


def response_of(outcome: Outcome) -> re_pb2.ExecuteResponse:
    """The answer: what became of the worker's report, or the rules' own failure."""
    if outcome.error is not None:
        return re_pb2.ExecuteResponse(status=outcome.error.to_proto(), message=str(outcome.error))
    return cast(re_pb2.ExecuteResponse, outcome.response)


def result_of(outcome: Outcome) -> str:
    """The word that metrics count an outcome under."""
    response = response_of(outcome)
    if response.status.code != Code.OK:
        try:
            return Code(response.status.code).name.lower()
        except ValueError:
            return "unknown"
    return "succeeded" if response.result.exit_code == 0 else "failed"


def tell_bad_end(task_id: str, outcome: Outcome, action_digest: Digest | None) -> None:
    """One line for an action that ended without its command having ended by itself; exit codes are the clients' affair, and
    so is what they cancelled."""
    status = response_of(outcome).status
    if status.code not in (Code.OK, Code.CANCELLED):
        code = Code(status.code).name if status.code in set(Code) else str(status.code)
        log.info("action ended badly", task=task_id, action=str(action_digest), code=code, reason=status.message[:500])
