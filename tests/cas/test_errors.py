"""Every failure becomes the google.rpc.Status that clients act on."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from cas import errors
from cas.digest import Digest, DigestFunction
from cas.errors import Code, StatusError, from_status

DIGEST = Digest.of(b"abc")
OTHER = Digest.of(b"something else")

EXPECTED: list[tuple[StatusError, Code, str]] = [
    (errors.MalformedRequest("size -1"), Code.INVALID_ARGUMENT, "size -1"),
    (
        errors.DigestMismatch(DIGEST, OTHER),
        Code.INVALID_ARGUMENT,
        f"blob does not match its digest: expected {DIGEST}, got {OTHER}",
    ),
    (
        errors.DigestMismatch(DIGEST, "4 bytes"),
        Code.INVALID_ARGUMENT,
        f"blob does not match its digest: expected {DIGEST}, got 4 bytes",
    ),
    (errors.OffsetMismatch("offset 3, expected 2"), Code.INVALID_ARGUMENT, "offset 3, expected 2"),
    (errors.QualifiersNotSupported(["a", "b"]), Code.INVALID_ARGUMENT, "qualifiers not supported: 'a', 'b'"),
    (errors.OffsetOutOfRange("offset 4 of 3"), Code.OUT_OF_RANGE, "offset 4 of 3"),
    (errors.NotFound("nothing here"), Code.NOT_FOUND, "nothing here"),
    (errors.BlobNotFound(DIGEST), Code.NOT_FOUND, f"no blob {DIGEST}"),
    (errors.ChunksMissing([DIGEST, OTHER]), Code.NOT_FOUND, f"chunks missing from the store: {DIGEST}, {OTHER}"),
    (
        errors.ChunksMissing([DIGEST] * 20 + [OTHER] * 3),
        Code.NOT_FOUND,
        f"chunks missing from the store: {', '.join([str(DIGEST)] * 20)} and 3 more",
    ),
    (errors.ActionResultNotFound("no result"), Code.NOT_FOUND, "no result"),
    (errors.OperationNotFound("no operation 7"), Code.NOT_FOUND, "no operation 7"),
    (errors.AlreadyExists("there"), Code.ALREADY_EXISTS, "there"),
    (errors.FailedPrecondition("not now"), Code.FAILED_PRECONDITION, "not now"),
    (errors.InputsMissing([DIGEST]), Code.FAILED_PRECONDITION, f"inputs missing from the store: {DIGEST}"),
    (
        errors.InputsMissing([DIGEST, OTHER, DIGEST]),
        Code.FAILED_PRECONDITION,
        f"inputs missing from the store: {DIGEST} and 2 more",
    ),
    (errors.NoWorkerFits("no worker offers os=beos"), Code.FAILED_PRECONDITION, "no worker offers os=beos"),
    (errors.WrongOutputKind("out is a directory"), Code.FAILED_PRECONDITION, "out is a directory"),
    (errors.ResourceExhausted("full"), Code.RESOURCE_EXHAUSTED, "full"),
    (errors.StoreFull("no room for 3 bytes"), Code.RESOURCE_EXHAUSTED, "no room for 3 bytes"),
    (errors.QueueFull("9 operations wait"), Code.RESOURCE_EXHAUSTED, "9 operations wait"),
    (errors.UploadsFull("9 uploads unfinished"), Code.RESOURCE_EXHAUSTED, "9 uploads unfinished"),
    (errors.Unavailable("store unreachable"), Code.UNAVAILABLE, "store unreachable"),
    (errors.WorkerLost("3 workers lost"), Code.UNAVAILABLE, "3 workers lost"),
    (errors.SchedulerStops(), Code.UNAVAILABLE, "the scheduler stops"),
    (errors.ActionTimedOut("took 61 s of 60"), Code.DEADLINE_EXCEEDED, "took 61 s of 60"),
    (errors.Cancelled("cancelled by the client"), Code.CANCELLED, "cancelled by the client"),
    (errors.NotAllowed("may not"), Code.PERMISSION_DENIED, "may not"),
    (errors.NotAuthenticated("who"), Code.UNAUTHENTICATED, "who"),
    (errors.NotSupported("no"), Code.UNIMPLEMENTED, "no"),
    (errors.Internal(), Code.INTERNAL, "the server failed to handle this request; its log says why"),
]

WITH_DETAILS = (
    errors.ChunksMissing,
    errors.InputsMissing,
    errors.QueueFull,
    errors.UploadsFull,
    errors.Unavailable,
    errors.QualifiersNotSupported,
)


def names(failures: list[tuple[StatusError, Code, str]]) -> list[str]:
    return [type(failure).__name__ for failure, _, _ in failures]


def kinds_of(kind: type[StatusError]) -> set[type[StatusError]]:
    """All subclasses that cas/errors.py defines, however deep."""
    found = {subclass for subclass in kind.__subclasses__() if subclass.__module__ == errors.__name__}
    return found.union(*(kinds_of(subclass) for subclass in found))


@pytest.mark.parametrize(("failure", "code", "text"), EXPECTED, ids=names(EXPECTED))
def test_a_failure_has_one_code_and_says_what_happened(failure: StatusError, code: Code, text: str) -> None:
    status = failure.to_proto()

    assert (status.code, status.message) == (code, text)
    assert str(failure) == text


def test_no_failure_is_left_out_here() -> None:
    assert {type(failure) for failure, _, _ in EXPECTED} == kinds_of(StatusError)


WITHOUT_DETAILS = [row for row in EXPECTED if not isinstance(row[0], WITH_DETAILS)]


@pytest.mark.parametrize(("failure", "code", "text"), WITHOUT_DETAILS, ids=names(WITHOUT_DETAILS))
def test_other_failures_carry_no_details(failure: StatusError, code: Code, text: str) -> None:
    assert failure.to_proto() == status_pb2.Status(code=int(code), message=text)


def test_missing_inputs_are_violations_of_type_missing_and_nothing_else() -> None:
    blake3 = Digest.of(b"abc", DigestFunction.BLAKE3)
    (detail,) = errors.InputsMissing([DIGEST, blake3]).to_proto().details
    failure = error_details_pb2.PreconditionFailure()

    assert detail.Unpack(failure)
    assert [(violation.type, violation.subject, violation.description) for violation in failure.violations] == [
        ("MISSING", f"blobs/{DIGEST.hash}/3", ""),
        ("MISSING", f"blobs/blake3/{blake3.hash}/3", ""),
    ]


def test_each_qualifier_that_is_not_supported_is_a_violation() -> None:
    (detail,) = errors.QualifiersNotSupported(["vcs.tag", "x"]).to_proto().details
    request = error_details_pb2.BadRequest()

    assert detail.Unpack(request)
    assert [(violation.field, violation.description) for violation in request.field_violations] == [
        ("qualifiers.name", '"vcs.tag" not supported'),
        ("qualifiers.name", '"x" not supported'),
    ]


def test_missing_chunks_are_named_as_missing_inputs_are_as_far_as_a_header_goes() -> None:
    (detail,) = errors.ChunksMissing([DIGEST] + [OTHER] * 30).to_proto().details

    assert detail == errors.InputsMissing([DIGEST] + [OTHER] * 19).to_proto().details[0]


def test_missing_inputs_may_come_from_an_iterator() -> None:
    failure = errors.InputsMissing(digest for digest in (DIGEST, OTHER))

    assert failure.digests == (DIGEST, OTHER)
    assert failure.to_proto() == errors.InputsMissing([DIGEST, OTHER]).to_proto()


def retry_seconds(failure: StatusError) -> float:
    (detail,) = failure.to_proto().details
    info = error_details_pb2.RetryInfo()
    assert detail.Unpack(info)
    return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)


@pytest.mark.parametrize(
    ("failure", "expected_seconds"),
    [
        (errors.QueueFull("full"), 5.0),
        (errors.QueueFull("full", retry_seconds=0.25), 0.25),
        (errors.UploadsFull("full"), 1.0),
        (errors.UploadsFull("full", retry_seconds=3), 3.0),
        (errors.Unavailable("away"), 1.0),
        (errors.Unavailable("away", retry_seconds=90), 90.0),
        (errors.WorkerLost("lost"), 1.0),
        (errors.WorkerLost("lost", retry_seconds=1.5), 1.5),
    ],
)
def test_what_may_succeed_later_says_when_to_try(failure: StatusError, expected_seconds: float) -> None:
    assert retry_seconds(failure) == expected_seconds


def test_the_failures_say_what_they_are_about() -> None:
    assert errors.BlobNotFound(DIGEST).digest == DIGEST
    assert errors.DigestMismatch(DIGEST, OTHER).claimed == DIGEST


CODES = {
    Code.INVALID_ARGUMENT: errors.MalformedRequest,
    Code.OUT_OF_RANGE: errors.OffsetOutOfRange,
    Code.NOT_FOUND: errors.NotFound,
    Code.ALREADY_EXISTS: errors.AlreadyExists,
    Code.FAILED_PRECONDITION: errors.FailedPrecondition,
    Code.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    Code.UNAVAILABLE: errors.Unavailable,
    Code.DEADLINE_EXCEEDED: errors.ActionTimedOut,
    Code.CANCELLED: errors.Cancelled,
    Code.PERMISSION_DENIED: errors.NotAllowed,
    Code.UNAUTHENTICATED: errors.NotAuthenticated,
    Code.UNIMPLEMENTED: errors.NotSupported,
}


@pytest.mark.parametrize(("code", "kind"), CODES.items())
def test_a_status_received_is_the_failure_with_its_code(code: Code, kind: type[StatusError]) -> None:
    failure = from_status(int(code), "said the other server")

    assert type(failure) is kind
    assert (failure.code, str(failure)) == (code, "said the other server")


@pytest.mark.parametrize("code", sorted(set(Code) - set(CODES)))
def test_a_fault_of_the_other_server_means_that_it_is_unavailable(code: Code) -> None:
    failure = from_status(int(code), "said the other server")

    assert type(failure) is errors.Unavailable
    assert str(failure) == "said the other server"


def test_a_code_that_nobody_knows_is_named_when_there_is_no_text() -> None:
    assert str(from_status(99, "")) == "status 99"


def test_codes_are_those_of_grpc() -> None:
    assert {code.name: int(code) for code in Code} == {code.name: code.value[0] for code in grpc.StatusCode}
