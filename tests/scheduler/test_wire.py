"""What leaves the scheduler comes back as it was, and what nobody could have sent does not come in."""

from __future__ import annotations

from contextlib import suppress

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from cas.digest import Digest
from cas.errors import (
    Cancelled,
    Code,
    FailedPrecondition,
    InputsMissing,
    Internal,
    MalformedRequest,
    NotFound,
    OperationNotFound,
    QueueFull,
    ResourceExhausted,
    StatusError,
    Unavailable,
    WorkerLost,
)
from cas.hashing import DigestFunction
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import record_pb2
from rexec.scheduler import wire
from rexec.scheduler.platform import Requirement
from rexec.scheduler.scheduler import Inlining, OperationState, Run
from rexec.scheduler.task import Candidate, Demand, Ending, Outcome, Owner, Stage

RUN = Run(
    re_pb2.Action(do_not_cache=True),
    re_pb2.Command(arguments=["cc", "-c", "a.c"], output_paths=["a.o"]),
    re_pb2.RequestMetadata(tool_invocation_id="build 1"),
    1_700_000_000.25,
)

WHOLE = Candidate(
    instance_name="main",
    action_digest=Digest.of(b"action", DigestFunction.BLAKE3),
    requirement=Requirement("main", frozenset({("OSFamily", "linux"), ("Pool", "a"), ("Pool", "b")})),
    priority=-7,
    do_not_cache=True,
    timeout_seconds=12.5,
    owner=Owner("team", "ann", "build 1"),
    demand=Demand(2, 1500, 1 << 33),
    action_class="cc",
    action_key="//a:b",
    affinity=("toolchain", "headers"),
    payload=RUN,
)

names = st.text(max_size=20)
candidates = st.builds(
    Candidate,
    instance_name=st.just("main"),
    action_digest=st.builds(Digest.of, st.binary(max_size=20), st.sampled_from(DigestFunction)),
    requirement=st.builds(Requirement, st.just("main"), st.frozensets(st.tuples(names, names), max_size=5)),
    priority=st.integers(-(2**31), 2**31 - 1),
    do_not_cache=st.booleans(),
    timeout_seconds=st.integers(0, 10**9).map(lambda eighths: eighths / 8),
    owner=st.builds(Owner, names, names, names),
    demand=st.builds(Demand, st.integers(1, 2**31 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1)),
    action_class=names,
    action_key=names,
    affinity=st.lists(names, max_size=4).map(tuple),
    payload=st.sampled_from([None, RUN]),
)


@given(candidates)
def test_a_candidate_comes_back_as_it_was(candidate: Candidate) -> None:
    encoded = wire.write_candidate(candidate).SerializeToString()
    assert wire.read_candidate(wire.parsed(record_pb2.Candidate, encoded)) == candidate


@given(st.builds(Inlining, st.booleans(), st.booleans(), st.frozensets(names, max_size=5)))
def test_what_a_client_wants_inline_comes_back_as_it_was(inlining: Inlining) -> None:
    assert wire.read_inlining(wire.write_inlining(inlining)) == inlining


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (InputsMissing([Digest.of(b"a"), Digest.of(b"b")]), FailedPrecondition),
        (QueueFull("too many", 7.0), ResourceExhausted),
        (OperationNotFound("no operation"), NotFound),
        (WorkerLost("w1, w2"), Unavailable),
        (Cancelled("stop"), Cancelled),
        (Internal(), Internal),
        (wire.Received(Code.ABORTED, "half done"), wire.Received),
        (wire.Received(Code.INTERNAL, "someone else's words"), wire.Received),
        (wire.Received(Code.UNKNOWN, ""), wire.Received),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, StatusError) else "",
)
def test_a_failure_keeps_its_code_text_and_details(failure: StatusError, kind: type[StatusError]) -> None:
    outcome = wire.read_outcome(wire.write_outcome(Outcome(error=failure)))
    assert outcome.error is not None
    assert isinstance(outcome.error, kind)
    assert outcome.error.to_proto() == failure.to_proto()


@given(st.sampled_from([code for code in Code if code]), st.text(max_size=30), st.lists(names, max_size=3))
def test_any_status_of_a_failure_comes_back_as_it_was(code: Code, text: str, subjects: list[str]) -> None:
    detail = any_pb2.Any()
    violations = [error_details_pb2.PreconditionFailure.Violation(type="MISSING", subject=name) for name in subjects]
    detail.Pack(error_details_pb2.PreconditionFailure(violations=violations))
    status = status_pb2.Status(code=int(code), message=text, details=[detail])
    assert wire.read_error(status).to_proto() == status


@pytest.mark.parametrize("code", [-1, 0, 17, 2**31 - 1])
def test_what_is_not_a_failure_is_refused(code: int) -> None:
    with pytest.raises(MalformedRequest, match=str(code)):
        wire.read_error(status_pb2.Status(code=code))


def test_a_response_comes_back_with_its_size() -> None:
    response = re_pb2.ExecuteResponse(message="hello", result=re_pb2.ActionResult(exit_code=3))
    outcome = wire.read_outcome(wire.write_outcome(Outcome(response=response)))
    assert outcome == Outcome(response=response, size_bytes=response.ByteSize(), ending=Ending.FAILED)


def test_an_outcome_without_an_end_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="without an end"):
        wire.read_outcome(record_pb2.Outcome())


@pytest.mark.parametrize(
    "state",
    [
        OperationState("main/operations/1", "main", Digest.of(b"a"), Stage.QUEUED, reason="3 ahead of you"),
        OperationState(
            "operations/2", "", Digest.of(b"b", DigestFunction.BLAKE3), Stage.EXECUTING,
            metadata=re_pb2.ExecutedActionMetadata(worker="w1"), owner=Owner("t", "u", "i"),
        ),
        OperationState(
            "operations/3", "", Digest.of(b"c"), Stage.COMPLETED, re_pb2.ExecuteResponse(cached_result=True),
            Inlining(stdout=True, files=frozenset({"a", "b"})),
        ),
    ],
    ids=lambda state: state.stage.name,
)  # fmt: skip
def test_the_state_of_an_operation_comes_back_as_it_was(state: OperationState) -> None:
    assert wire.read_state(wire.write_state(state)) == state


def _state(**changes: object) -> record_pb2.OperationState:
    whole = OperationState("operations/1", "", Digest.of(b"a"), Stage.QUEUED)
    message = wire.write_state(whole)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"stage": 0}, "stage 0"), ({"stage": 1}, "stage 1"), ({"stage": 77}, "stage 77"),
     ({"stage": 4}, "response"), ({"digest_function": 0}, "digest function"), ({"digest_function": 99}, "99")],
)  # fmt: skip
def test_a_state_that_cannot_be_is_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(MalformedRequest, match=text):
        wire.read_state(_state(**changes))


def test_a_response_before_the_end_is_refused() -> None:
    message = _state()
    message.response.SetInParent()
    with pytest.raises(MalformedRequest, match="response"):
        wire.read_state(message)


def _broken(change: str) -> record_pb2.Candidate:
    message = wire.write_candidate(WHOLE)
    match change:
        case "hash":
            message.action_digest.hash = "../../etc/passwd"
        case "size":
            message.action_digest.size_bytes = -1
        case "slots":
            message.demand.slots = 0
        case "memory":
            message.demand.memory_bytes = -5
        case "timeout":
            message.timeout.seconds = -(2**62)
        case "long timeout":
            message.timeout.seconds = 2**62
        case "queued":
            message.run.queued_timestamp.seconds = 2**62
    return message


@pytest.mark.parametrize("change", ["hash", "size", "slots", "memory", "timeout", "long timeout", "queued"])
def test_a_candidate_that_nobody_could_have_admitted_is_refused(change: str) -> None:
    assert wire.read_candidate(wire.write_candidate(WHOLE)) == WHOLE
    with pytest.raises(MalformedRequest):
        wire.read_candidate(_broken(change))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    readers = [
        (record_pb2.Candidate, wire.read_candidate),
        (record_pb2.Outcome, wire.read_outcome),
        (record_pb2.OperationState, wire.read_state),
    ]
    for kind, read in readers:
        with suppress(MalformedRequest):  # any other exception fails the test
            read(wire.parsed(kind, data))  # type: ignore[operator]
