"""How the end of a lease is told when it is not simply the action's own: whose fault it was, and the evidence."""

from __future__ import annotations

from cas.digest import Digest
from cas.errors import FailedPrecondition, Unavailable
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.outputs import Outputs, shown
from rexec.worker.runner import Exit
from rexec.worker.streams import CapturedStream

_EVIDENCE_BYTES = 64 << 10
"""How much of the end of each stream is shown beside a failure; it is not uploaded, because there may be no room for it."""


class WorkerFault(Exception):
    """Not the action's fault; it is to be retried on another worker. The text is the evidence."""


class DiskFull(WorkerFault):
    """The worker's disk is full. If it is so on every worker that is tried, no client should try again for ever."""


def fail(finished: worker_pb2.Finished, fault: WorkerFault) -> None:
    """The status is for the clients, should this have been the last attempt."""
    finished.failure = worker_pb2.Finished.INFRASTRUCTURE
    finished.message = str(fault)
    last = FailedPrecondition if isinstance(fault, DiskFull) else Unavailable
    finished.status.CopyFrom(last(str(fault)).to_proto())


def evidence_of(stdout: CapturedStream, stderr: CapturedStream, exit_code: int = 0) -> re_pb2.ActionResult:
    """What a command whose result cannot be kept has printed last."""
    ends = [stream.read_at(max(0, stream.size_bytes - _EVIDENCE_BYTES), _EVIDENCE_BYTES) for stream in (stdout, stderr)]
    return re_pb2.ActionResult(exit_code=exit_code, stdout_raw=ends[0], stderr_raw=ends[1])


def name_of(digest: Digest, result: re_pb2.ActionResult, outputs: object, root: str) -> str:
    """What the blob is to the person who reads the message."""
    if isinstance(outputs, Outputs):
        for path, file in outputs.files.items():
            if file.digest == digest:
                return f"output {shown(path, root)}"
    for name, stream in (("standard output", result.stdout_digest), ("standard error", result.stderr_digest)):
        if stream.hash == digest.hash:
            return f"the {name}"
    return "the list of an output directory"


def message_of(ended: Exit, stdout: CapturedStream, stderr: CapturedStream) -> str:
    """For the user, beside the exit code: ExecuteResponse.message."""
    parts = [ended.message] if ended.message and not ended.timed_out else []
    for stream, name in ((stdout, "stdout"), (stderr, "stderr")):
        if stream.dropped_bytes:
            parts.append(
                f"{name} was cut at {stream.size_bytes} bytes; {stream.dropped_bytes} more were thrown away "
                "([worker] stdout_max_bytes)"
            )
    return "; ".join(parts)
