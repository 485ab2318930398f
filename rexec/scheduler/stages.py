"""How long each stage of a run took, by the worker's own clock (REAPI, ExecutedActionMetadata).

Both ends of a stage come from the same clock, so clocks that differ between machines do not matter. The time in line is not
here: it lies between two machines, and the scheduler knows it itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from google.protobuf import timestamp_pb2

from rexec.scheduler.task import Outcome
from rexec.scheduler.telling import response_of

_STAGES: Final = (
    ("fetching", "input_fetch_start_timestamp", "input_fetch_completed_timestamp"),
    ("waiting_for_slot", "input_fetch_completed_timestamp", "execution_start_timestamp"),
    ("running", "execution_start_timestamp", "execution_completed_timestamp"),
    ("collecting", "execution_completed_timestamp", "output_upload_start_timestamp"),
    ("uploading", "output_upload_start_timestamp", "output_upload_completed_timestamp"),
)

STAGES: Final = ("queued", *(name for name, _, _ in _STAGES))
"""Every stage's name, in order. `fetching` ends when the input root is laid out: the message has one time for both."""

MAX_STAGE_SECONDS: Final = 7 * 86_400
"""A worker that claims more is broken, and one such number would spoil a sum for good."""


def stages_of(outcome: Outcome) -> Iterator[tuple[str, float]]:
    """Name and seconds of every stage whose two ends the worker told, and in this order."""
    if outcome.error is not None:
        return
    metadata = response_of(outcome).result.execution_metadata
    for name, begin, end in _STAGES:
        if metadata.HasField(begin) and metadata.HasField(end):
            seconds = seconds_of(getattr(metadata, end)) - seconds_of(getattr(metadata, begin))
            if 0 <= seconds <= MAX_STAGE_SECONDS:
                yield name, seconds


def seconds_of(timestamp: timestamp_pb2.Timestamp) -> float:
    """Since 1970, whatever a worker has put there."""
    # Not ToNanoseconds or ToDatetime, which raise for what a worker may send.
    seconds: float = timestamp.seconds + timestamp.nanos / 1e9
    return seconds
