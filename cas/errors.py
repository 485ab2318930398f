"""The one vocabulary of failure: each exception class is one gRPC status.

    StatusError
    ├── MalformedRequest        INVALID_ARGUMENT
    │   ├── DigestMismatch      INVALID_ARGUMENT, both digests in the text
    │   ├── OffsetMismatch      INVALID_ARGUMENT, a write that does not go on where the last one ended
    │   └── QualifiersNotSupported  INVALID_ARGUMENT, with BadRequest naming each qualifier
    ├── OffsetOutOfRange        OUT_OF_RANGE
    ├── NotFound                NOT_FOUND
    │   ├── BlobNotFound
    │   ├── ChunksMissing       with PreconditionFailure{MISSING} for the first of the missing chunks
    │   ├── ActionResultNotFound
    │   └── OperationNotFound
    ├── AlreadyExists           ALREADY_EXISTS
    ├── FailedPrecondition      FAILED_PRECONDITION
    │   ├── InputsMissing       with PreconditionFailure{MISSING} for every missing blob
    │   ├── NoWorkerFits        names the unmatched platform property
    │   └── WrongOutputKind     an output_file that is a directory, or the reverse
    ├── ResourceExhausted       RESOURCE_EXHAUSTED
    │   ├── StoreFull
    │   ├── QueueFull           with RetryInfo
    │   └── UploadsFull         with RetryInfo
    ├── Unavailable             UNAVAILABLE, with RetryInfo
    │   ├── SchedulerStops
    │   └── WorkerLost
    ├── ActionTimedOut          DEADLINE_EXCEEDED
    ├── Cancelled               CANCELLED
    ├── NotAllowed              PERMISSION_DENIED
    ├── NotAuthenticated        UNAUTHENTICATED
    ├── NotSupported            UNIMPLEMENTED
    └── Internal                INTERNAL, with a fixed text

``to_proto`` feeds all three places where REAPI wants a google.rpc.Status: the status of a failed RPC, the status of one
blob in a batch response, and ExecuteResponse.status. Anything that is not a StatusError is a fault of ours: the edge
logs it with its traceback and answers INTERNAL with a text that says nothing of our insides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from cas.digest import Digest


class Code(IntEnum):
    """The gRPC status codes (google.rpc.Code), so that no service needs the gRPC library to name one."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


NAMED_CHUNKS = 20
"""Chunks that ChunksMissing names; 20 of the longest digests are 3 KiB of details."""


class StatusError(Exception):
    """A failure with a gRPC status; its text is for the person who sent the request."""

    code: Code = Code.INTERNAL

    received_details: Sequence[any_pb2.Any] | None = None
    """Those that another process sent with the failure, which hold in place of what the class knows to say."""

    def details(self) -> Iterable[any_pb2.Any]:
        """The google.rpc details (error_details.proto) that a client acts on; none unless a subclass has some."""
        return ()

    def to_proto(self) -> status_pb2.Status:
        """The google.rpc.Status of this failure, details included."""
        details = self.details() if self.received_details is None else self.received_details
        return status_pb2.Status(code=int(self.code), message=str(self), details=list(details))


def packed(
    message: error_details_pb2.PreconditionFailure | error_details_pb2.RetryInfo | error_details_pb2.BadRequest,
) -> any_pb2.Any:
    """`message` as a google.protobuf.Any, as Status.details wants it."""
    packed_message = any_pb2.Any()
    packed_message.Pack(message)
    return packed_message


def retry_info(delay_seconds: float) -> any_pb2.Any:
    """A google.rpc.RetryInfo that asks the client to come back after `delay_seconds`."""
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(delay_seconds * 1000))
    return packed(error_details_pb2.RetryInfo(retry_delay=delay))


def missing_blobs(digests: Iterable[Digest]) -> any_pb2.Any:
    """A google.rpc.PreconditionFailure with a violation of type MISSING for each digest."""
    failure = error_details_pb2.PreconditionFailure()
    for digest in digests:
        failure.violations.add(type="MISSING", subject=digest.blob_name())
    return packed(failure)


class MalformedRequest(StatusError):
    """The request itself is wrong and will be wrong again: a bad digest, resource name, offset or instance name."""

    code = Code.INVALID_ARGUMENT


class DigestMismatch(MalformedRequest):
    """The bytes are not those that the digest names."""

    def __init__(self, claimed: Digest, actual: Digest | str) -> None:
        super().__init__(f"blob does not match its digest: expected {claimed}, got {actual}")
        self.claimed = claimed


class OffsetMismatch(MalformedRequest):
    """A write that does not start where the previous one ended (google.bytestream.WriteRequest.write_offset)."""


class QualifiersNotSupported(MalformedRequest):
    """A fetch with qualifiers that nothing here understands (Remote Asset, Fetch.FetchBlob, on unsupported qualifiers)."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"qualifiers not supported: {', '.join(repr(name[:200]) for name in names)}")
        self.names = tuple(names)

    def details(self) -> Iterable[any_pb2.Any]:
        request = error_details_pb2.BadRequest()
        for name in self.names:
            request.field_violations.add(field="qualifiers.name", description=f'"{name[:200]}" not supported')
        return (packed(request),)


class OffsetOutOfRange(StatusError):
    """A read that starts past the end of the blob (google.bytestream.ReadRequest.read_offset)."""

    code = Code.OUT_OF_RANGE


class NotFound(StatusError):
    """The thing named does not exist here."""

    code = Code.NOT_FOUND


class BlobNotFound(NotFound):
    """The store does not have the blob."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"no blob {digest}")
        self.digest = digest


class ChunksMissing(NotFound):
    """Chunks that a blob is to be made of are not in the store (REAPI, ContentAddressableStorage.SpliceBlob, "Errors").

    Text and details name the first ones, for both travel in headers of bounded size.
    """

    def __init__(self, digests: Iterable[Digest]) -> None:
        self.digests = tuple(digests)
        named = ", ".join(str(digest) for digest in self.digests[:NAMED_CHUNKS])
        more = f" and {len(self.digests) - NAMED_CHUNKS} more" if len(self.digests) > NAMED_CHUNKS else ""
        super().__init__(f"chunks missing from the store: {named}{more}")

    def details(self) -> Iterable[any_pb2.Any]:
        return (missing_blobs(self.digests[:NAMED_CHUNKS]),)


class ActionResultNotFound(NotFound):
    """The action cache has no result, or one of whose blobs is gone."""


class OperationNotFound(NotFound):
    """No operation of that name is known; it never was, or it ended long ago."""


class AlreadyExists(StatusError):
    """The thing is there already, and was not touched."""

    code = Code.ALREADY_EXISTS


class FailedPrecondition(StatusError):
    """The request is well formed but the state of the system does not allow it."""

    code = Code.FAILED_PRECONDITION


class InputsMissing(FailedPrecondition):
    """Blobs that an action needs are not in the store.

    Carries one google.rpc.PreconditionFailure in which every violation is of type MISSING and nothing else: Bazel uploads
    again only if it finds no other type (REAPI, Execution.Execute, "Errors").
    """

    def __init__(self, digests: Iterable[Digest]) -> None:
        self.digests = tuple(digests)
        first = self.digests[0] if self.digests else None
        more = f" and {len(self.digests) - 1} more" if len(self.digests) > 1 else ""
        super().__init__(f"inputs missing from the store: {first}{more}")

    def details(self) -> Iterable[any_pb2.Any]:
        return (missing_blobs(self.digests),)


class NoWorkerFits(FailedPrecondition):
    """No worker can ever run the action as its platform properties stand."""


class WrongOutputKind(FailedPrecondition):
    """An output declared as a file turned out a directory, or the reverse."""


class ResourceExhausted(StatusError):
    """Something bounded is full."""

    code = Code.RESOURCE_EXHAUSTED


class StoreFull(ResourceExhausted):
    """The store has no room for the blob and can make none."""


class QueueFull(ResourceExhausted):
    """Too many operations wait already; come back after `retry_seconds`."""

    def __init__(self, text: str, retry_seconds: float = 5.0) -> None:
        super().__init__(text)
        self.retry_seconds = retry_seconds

    def details(self) -> Iterable[any_pb2.Any]:
        return (retry_info(self.retry_seconds),)


class UploadsFull(ResourceExhausted):
    """The unfinished uploads hold all the memory, or are as many, as they may; come back after `retry_seconds`."""

    def __init__(self, text: str, retry_seconds: float = 1.0) -> None:
        super().__init__(text)
        self.retry_seconds = retry_seconds

    def details(self) -> Iterable[any_pb2.Any]:
        return (retry_info(self.retry_seconds),)


class Unavailable(StatusError):
    """A part of the system cannot answer now; the same request may succeed after `retry_seconds`."""

    code = Code.UNAVAILABLE

    def __init__(self, text: str, retry_seconds: float = 1.0) -> None:
        super().__init__(text)
        self.retry_seconds = retry_seconds

    def details(self) -> Iterable[any_pb2.Any]:
        return (retry_info(self.retry_seconds),)


class SchedulerStops(Unavailable):
    """Told to everyone who waits when the server stops, which is a line of its own in the log."""

    def __init__(self) -> None:
        super().__init__("the scheduler stops")


class WorkerLost(Unavailable):
    """Every attempt to run the action ended with its worker gone."""


class ActionTimedOut(StatusError):
    """The command ran for longer than its timeout."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(StatusError):
    """Someone asked for the operation to stop."""

    code = Code.CANCELLED


class NotAllowed(StatusError):
    """The identity is known and may not do this."""

    code = Code.PERMISSION_DENIED


class NotAuthenticated(StatusError):
    """The request carries no credentials that count here."""

    code = Code.UNAUTHENTICATED


class NotSupported(StatusError):
    """A part of the protocol that this server does not offer and does not advertise."""

    code = Code.UNIMPLEMENTED


class Internal(StatusError):
    """A fault of ours. The text is fixed: what happened is in the log, under the same request."""

    code = Code.INTERNAL

    def __init__(self) -> None:
        super().__init__("the server failed to handle this request; its log says why")


_BY_CODE: dict[int, type[StatusError]] = {}


def from_status(code: int, message: str) -> StatusError:
    """The StatusError that a status received from another server stands for.

    The class is one that has the code; details are not carried over, so InputsMissing comes back as FailedPrecondition.
    """
    if not _BY_CODE:
        for kind in (MalformedRequest, OffsetOutOfRange, NotFound, AlreadyExists, FailedPrecondition, ResourceExhausted,
                     Unavailable, ActionTimedOut, Cancelled, NotAllowed, NotAuthenticated, NotSupported):  # fmt: skip
            _BY_CODE[kind.code] = kind
    found = _BY_CODE.get(code)
    return found(message) if found is not None else Unavailable(message or f"status {code}")
