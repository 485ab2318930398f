"""What a run took, as far as it can be learned from: read off a worker's report (rexec.worker.v1 ResourceUsage, REAPI
ExecutedActionMetadata)."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from cas.errors import Code
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.stages import MAX_STAGE_SECONDS, seconds_of
from rexec.scheduler.task import Usage


def usage_of(report: worker_pb2.Finished) -> Usage | None:
    """None if the report teaches nothing: the command never ran, failed, or its times make no sense.

    A command that timed out counts: it takes at least so long.
    """
    if report.failure != worker_pb2.Finished.NONE or not report.HasField("action_result"):
        return None
    result = report.action_result
    timed_out = report.status.code == Code.DEADLINE_EXCEEDED
    if not timed_out and (report.status.code != Code.OK or result.exit_code != 0):
        return None
    metadata = result.execution_metadata
    if not (metadata.HasField("execution_start_timestamp") and metadata.HasField("execution_completed_timestamp")):
        return None
    seconds = seconds_of(metadata.execution_completed_timestamp) - seconds_of(metadata.execution_start_timestamp)
    if not 0 <= seconds <= MAX_STAGE_SECONDS:
        return None
    peak_memory_bytes = 0
    for packed in metadata.auxiliary_metadata[:8]:  # a worker sends one
        said = worker_pb2.ResourceUsage()
        try:
            if packed.Unpack(said):
                peak_memory_bytes = max(peak_memory_bytes, said.peak_memory_bytes)
        except DecodeError:
            continue
    return Usage(seconds, peak_memory_bytes)
