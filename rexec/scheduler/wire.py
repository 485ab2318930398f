"""The scheduler's values as messages of rexec/scheduler/v1/record.proto, and back.

The journal keeps these messages, and frontends that are processes of their own send and receive them. What comes back was
written by another process, perhaps of another version: whatever is not a value that the scheduler could have made raises
MalformedRequest, which names the field.
"""

from __future__ import annotations

import math
from typing import Final, TypeVar, cast

from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from cas.digest import Digest, function_for
from cas.errors import Code, Internal, MalformedRequest, StatusError, from_status
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import record_pb2
from rexec.scheduler.platform import Requirement
from rexec.scheduler.scheduler import Inlining, OperationState, Run
from rexec.scheduler.task import Candidate, Demand, Ending, Outcome, Owner, Stage

AnyMessage = TypeVar("AnyMessage", bound=Message)

_LAST_SECOND: Final = 253_402_300_799
"""The end of the year 9999: the last one of google.protobuf.Timestamp."""

_MAX_DURATION_SECONDS: Final = 315_576_000_000
"""10,000 years: the longest google.protobuf.Duration."""


class Received(StatusError):
    """A failure that another process met with and whose status has no class of its own here."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


def parsed(kind: type[AnyMessage], data: bytes) -> AnyMessage:
    """The message that `data` encodes. Raises MalformedRequest."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise MalformedRequest(f"{len(data)} bytes are not an encoded {kind.DESCRIPTOR.name}") from None


# Failures


def read_error(status: status_pb2.Status) -> StatusError:
    """The failure that a google.rpc.Status tells of: of a class that has its code, with the same text and details.

    Raises MalformedRequest for a status that is OK or whose code does not exist.
    """
    if not Code.OK < status.code <= max(Code):
        raise MalformedRequest(f"status code {status.code}, expected that of a failure")
    code = Code(status.code)
    failure: StatusError
    if code is Code.INTERNAL and status.message == str(Internal()):
        failure = Internal()
    elif (failure := from_status(code, status.message)).code is not code:
        failure = Received(code, status.message)
    failure.received_details = tuple(status.details)
    return failure


# How a task ends


def write_outcome(outcome: Outcome) -> record_pb2.Outcome:
    """Its response, if it has one, is an ExecuteResponse."""
    if outcome.error is not None:
        return record_pb2.Outcome(error=outcome.error.to_proto())
    return record_pb2.Outcome(response=cast(re_pb2.ExecuteResponse, outcome.response))


def read_outcome(message: record_pb2.Outcome) -> Outcome:
    """Raises MalformedRequest if nothing has ended."""
    match message.WhichOneof("end"):
        case "error":
            return Outcome(error=read_error(message.error))
        case "response":
            return outcome_of(message.response)
        case _:
            raise MalformedRequest("an outcome without an end")


def outcome_of(response: re_pb2.ExecuteResponse) -> Outcome:
    """The outcome of a task that ended with this response."""
    if response.status.code != Code.OK:
        ending = Ending.CANCELLED if response.status.code == Code.CANCELLED else Ending.FAILED
    elif response.cached_result:
        ending = Ending.CACHED
    else:
        ending = Ending.SUCCEEDED if response.result.exit_code == 0 else Ending.FAILED
    return Outcome(response=response, size_bytes=response.ByteSize(), ending=ending)


# What a client wants


def write_inlining(inlining: Inlining) -> record_pb2.Inlining:
    """The files are in the order of their paths."""
    return record_pb2.Inlining(stdout=inlining.stdout, stderr=inlining.stderr, files=sorted(inlining.files))


def read_inlining(message: record_pb2.Inlining) -> Inlining:
    """Any message stands for something."""
    return Inlining(message.stdout, message.stderr, frozenset(message.files))


def write_owner(owner: Owner) -> record_pb2.Owner:
    """As it is."""
    return record_pb2.Owner(tenant=owner.tenant, user=owner.user, invocation=owner.invocation)


def read_owner(message: record_pb2.Owner) -> Owner:
    """As it is."""
    return Owner(message.tenant, message.user, message.invocation)


def write_candidate(candidate: Candidate) -> record_pb2.Candidate:
    """With its run, if it has one: the candidate of a completed operation has none."""
    digest, demand = candidate.action_digest, candidate.demand
    message = record_pb2.Candidate(
        instance_name=candidate.instance_name,
        digest_function=digest.function.value,
        action_digest=digest.to_proto(),
        owner=write_owner(candidate.owner),
        demand=record_pb2.Demand(
            slots=demand.slots, cpu_millis=demand.cpu_millis, memory_bytes=demand.memory_bytes
        ),
        action_class=candidate.action_class,
        action_key=candidate.action_key,
        affinity=candidate.affinity,
        priority=candidate.priority,
        do_not_cache=candidate.do_not_cache,
    )  # fmt: skip
    for name, value in sorted(candidate.requirement.pairs):
        message.required.add(name=name, value=value)
    message.timeout.seconds, message.timeout.nanos = _split(candidate.timeout_seconds)
    if candidate.payload is not None:
        run = cast(Run, candidate.payload)
        message.run.action.CopyFrom(run.action)
        message.run.command.CopyFrom(run.command)
        message.run.request_metadata.CopyFrom(run.request_metadata)
        queued = message.run.queued_timestamp
        queued.seconds, queued.nanos = _split(run.queued_at)
    return message


def read_candidate(message: record_pb2.Candidate) -> Candidate:
    """Raises MalformedRequest for what cannot be run anywhere. Without a run, the payload is None."""
    demand = Demand(message.demand.slots, message.demand.cpu_millis, message.demand.memory_bytes)
    if demand.slots < 1 or demand.cpu_millis < 0 or demand.memory_bytes < 0:
        raise MalformedRequest(f"demand {demand}, expected 1 slot or more and nothing negative")
    pairs = frozenset((required.name, required.value) for required in message.required)
    return Candidate(
        instance_name=message.instance_name,
        action_digest=_digest(message.action_digest, message.digest_function),
        requirement=Requirement(message.instance_name, pairs),
        priority=message.priority,
        do_not_cache=message.do_not_cache,
        timeout_seconds=_seconds(message.timeout),
        owner=read_owner(message.owner),
        demand=demand,
        action_class=message.action_class,
        action_key=message.action_key,
        affinity=tuple(message.affinity),
        payload=_run(message.run) if message.HasField("run") else None,
    )


def _run(message: record_pb2.Run) -> Run:
    queued_at = _time(message.queued_timestamp)
    return Run(message.action, message.command, message.request_metadata, queued_at)


# An operation at one moment

_STAGES: Final = frozenset(int(stage) for stage in Stage)


def write_state(state: OperationState) -> record_pb2.OperationState:
    """The messages in it are copied."""
    return record_pb2.OperationState(
        name=state.name,
        instance_name=state.instance_name,
        digest_function=state.action_digest.function.value,
        action_digest=state.action_digest.to_proto(),
        stage=cast(re_pb2.ExecutionStage.Value, int(state.stage)),
        response=state.response,
        inlining=write_inlining(state.inlining),
        reason=state.reason,
        metadata=state.metadata,
        owner=write_owner(state.owner),
    )


def read_state(message: record_pb2.OperationState) -> OperationState:
    """Raises MalformedRequest for a stage that no operation has, and for one that is complete without a response."""
    if message.stage not in _STAGES:
        raise MalformedRequest(f"operation {message.name[:300]!r} in stage {message.stage}, which does not exist")
    stage = Stage(message.stage)
    if (stage is Stage.COMPLETED) != message.HasField("response"):
        raise MalformedRequest(
            f"operation {message.name[:300]!r} in stage {stage.name}, but its response says otherwise"
        )
    return OperationState(
        name=message.name,
        instance_name=message.instance_name,
        action_digest=_digest(message.action_digest, message.digest_function),
        stage=stage,
        response=message.response if message.HasField("response") else None,
        inlining=read_inlining(message.inlining),
        reason=message.reason,
        metadata=message.metadata if message.HasField("metadata") else None,
        owner=read_owner(message.owner),
    )


# Parts


def _digest(message: re_pb2.Digest, function_value: int) -> Digest:
    function = function_for(function_value)
    if function is None:
        raise MalformedRequest(f"no digest function is named for {message.hash[:200]!r}")
    return Digest.from_proto(message, function)


def _split(seconds: float) -> tuple[int, int]:
    """Seconds and nanoseconds. Not by way of one number of nanoseconds, which is more than a float holds."""
    whole = math.floor(seconds)
    nanos = round((seconds - whole) * 1e9)
    return (whole, nanos) if nanos < 1_000_000_000 else (whole + 1, 0)


def _seconds(message: duration_pb2.Duration) -> float:
    seconds = message.seconds + message.nanos / 1e9
    if not 0 <= seconds <= _MAX_DURATION_SECONDS:
        raise MalformedRequest(f"timeout of {seconds:g} s, expected 0 to {_MAX_DURATION_SECONDS}")
    return seconds


def _time(message: timestamp_pb2.Timestamp) -> float:
    seconds = message.seconds + message.nanos / 1e9
    if not 0 <= seconds <= _LAST_SECOND:
        raise MalformedRequest(f"queued at {seconds:g} s since 1970, expected 0 to {_LAST_SECOND}")
    return seconds
