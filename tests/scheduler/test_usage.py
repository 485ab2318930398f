"""What a worker's report teaches."""

from __future__ import annotations

import pytest
from google.protobuf import any_pb2, wrappers_pb2
from google.rpc import status_pb2

from cas.errors import Code
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.task import Usage
from rexec.scheduler.usage import usage_of


def report(
    *,
    seconds: float = 2.5,
    peak_memory_bytes: int = 7 << 20,
    exit_code: int = 0,
    code: Code = Code.OK,
    failure: worker_pb2.Finished.Failure = worker_pb2.Finished.NONE,
) -> worker_pb2.Finished:
    result = re_pb2.ActionResult(exit_code=exit_code)
    metadata = result.execution_metadata
    metadata.execution_start_timestamp.FromNanoseconds(1_700_000_000 * 10**9)
    metadata.execution_completed_timestamp.FromNanoseconds(round((1_700_000_000 + seconds) * 1e9))
    metadata.auxiliary_metadata.add().Pack(wrappers_pb2.StringValue(value="something else"))
    metadata.auxiliary_metadata.add().Pack(worker_pb2.ResourceUsage(peak_memory_bytes=peak_memory_bytes))
    return worker_pb2.Finished(action_result=result, status=status_pb2.Status(code=int(code)), failure=failure)


def test_a_run_that_succeeded_says_how_long_it_took_and_how_much_memory() -> None:
    assert usage_of(report()) == Usage(2.5, 7 << 20)


def test_one_that_timed_out_takes_at_least_so_long() -> None:
    assert usage_of(report(code=Code.DEADLINE_EXCEEDED, exit_code=-1)) == Usage(2.5, 7 << 20)


@pytest.mark.parametrize(
    "silent",
    [
        report(exit_code=1),
        report(code=Code.FAILED_PRECONDITION),
        report(failure=worker_pb2.Finished.INFRASTRUCTURE),
        report(failure=worker_pb2.Finished.REVOKED),
        report(seconds=-5),
        report(seconds=30 * 86_400),
        worker_pb2.Finished(),
        worker_pb2.Finished(action_result=re_pb2.ActionResult()),
    ],
)
def test_what_ended_early_or_makes_no_sense_teaches_nothing(silent: worker_pb2.Finished) -> None:
    assert usage_of(silent) is None


def test_broken_metadata_of_a_worker_leaves_the_time() -> None:
    finished = report(peak_memory_bytes=1)
    metadata = finished.action_result.execution_metadata
    del metadata.auxiliary_metadata[:]
    kind = "type.googleapis.com/rexec.worker.v1.ResourceUsage"
    metadata.auxiliary_metadata.append(any_pb2.Any(type_url=kind, value=b"\xff\xff\xff"))
    assert usage_of(finished) == Usage(2.5, 0)
