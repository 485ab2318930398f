"""Stages of a run, from timestamps that a worker has written and may have made up."""

from __future__ import annotations

import math

import pytest

from cas.errors import Unavailable
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.stages import MAX_STAGE_SECONDS, STAGES, stages_of
from rexec.scheduler.task import Outcome

TIMES = (
    "input_fetch_start_timestamp",
    "input_fetch_completed_timestamp",
    "execution_start_timestamp",
    "execution_completed_timestamp",
    "output_upload_start_timestamp",
    "output_upload_completed_timestamp",
)


def outcome(**seconds: float) -> Outcome:
    """Of a run whose worker told these times."""
    response = re_pb2.ExecuteResponse()
    for name, value in seconds.items():
        timestamp = getattr(response.result.execution_metadata, name)
        timestamp.seconds = math.floor(value)
        timestamp.nanos = round((value - math.floor(value)) * 1e9)
    return Outcome(response=response)


def test_each_stage_is_from_one_time_to_the_next() -> None:
    at = 1_700_000_000.0
    times = dict(zip(TIMES, (at, at + 1, at + 1.5, at + 4, at + 4.25, at + 5), strict=True))
    assert dict(stages_of(outcome(**times))) == {
        "fetching": 1.0,
        "waiting_for_slot": 0.5,
        "running": 2.5,
        "collecting": 0.25,
        "uploading": 0.75,
    }
    assert ("queued", *dict(stages_of(outcome(**times)))) == STAGES


def test_a_stage_whose_ends_were_not_both_told_is_left_out() -> None:
    assert dict(stages_of(outcome(input_fetch_start_timestamp=5.0, execution_start_timestamp=7.0))) == {}
    assert list(stages_of(Outcome(error=Unavailable("lost")))) == []


@pytest.mark.parametrize("end", [4.5, 5.0 + MAX_STAGE_SECONDS + 1, -(2.0**62), 2.0**62])
def test_a_stage_of_an_impossible_length_is_not_believed(end: float) -> None:
    assert dict(stages_of(outcome(execution_start_timestamp=5.0, execution_completed_timestamp=end))) == {}


def test_nanoseconds_out_of_bounds_do_no_harm() -> None:
    told = outcome(execution_start_timestamp=5.0, execution_completed_timestamp=6.0)
    assert isinstance(told.response, re_pb2.ExecuteResponse)
    told.response.result.execution_metadata.execution_completed_timestamp.nanos = -(2**31)
    assert dict(stages_of(told)) == {}
