"""Expectations: each raises `Failed` with what was expected and what came."""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import aio

from integration.conformance.case import Failed, NotSupported

OK = code_pb2.OK
CANCELLED = code_pb2.CANCELLED
UNKNOWN = code_pb2.UNKNOWN
INVALID_ARGUMENT = code_pb2.INVALID_ARGUMENT
DEADLINE_EXCEEDED = code_pb2.DEADLINE_EXCEEDED
NOT_FOUND = code_pb2.NOT_FOUND
PERMISSION_DENIED = code_pb2.PERMISSION_DENIED
RESOURCE_EXHAUSTED = code_pb2.RESOURCE_EXHAUSTED
FAILED_PRECONDITION = code_pb2.FAILED_PRECONDITION
OUT_OF_RANGE = code_pb2.OUT_OF_RANGE
UNIMPLEMENTED = code_pb2.UNIMPLEMENTED
INTERNAL = code_pb2.INTERNAL
UNAVAILABLE = code_pb2.UNAVAILABLE


def fail(text: str) -> NoReturn:
    raise Failed(text)


def expect(holds: bool, text: str) -> None:
    """`text` says what was expected and what came."""
    if not holds:
        raise Failed(text)


def expect_equal(got: object, expected: object, what: str) -> None:
    if got != expected:
        raise Failed(f"{what}: expected {_short(expected)}, got {_short(got)}")


def expect_in(got: object, expected: Collection[object], what: str) -> None:
    if got not in expected:
        raise Failed(f"{what}: expected one of {_short(list(expected))}, got {_short(got)}")


def code_of(error: aio.AioRpcError) -> int:
    """The number of an RPC's status."""
    number: int = error.code().value[0]
    return number


def status_of(error: aio.AioRpcError) -> status_pb2.Status:
    """The status of an RPC with its details, which travel in a trailer."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin" and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return status_pb2.Status(code=code_of(error), message=error.details() or "")


def shown(status: status_pb2.Status) -> str:
    return f"{name_of(status.code)} ({status.message[:200]!r})" if status.message else name_of(status.code)


def name_of(code: int) -> str:
    return code_pb2.Code.Name(code) if code in code_pb2.Code.values() else str(code)


async def expect_refused(call: Awaitable[Any], what: str, *codes: int) -> status_pb2.Status:
    """The status of a call that must fail with one of `codes`."""
    try:
        await call
    except aio.AioRpcError as error:
        status = status_of(error)
        expect_code(status, what, *codes)
        return status
    fail(f"{what}: expected {' or '.join(map(name_of, codes))}, got OK")


def expect_offered(condition: bool, what: str) -> None:
    """Raises NotSupported unless the server does what the interface leaves open; `what` says what it does without."""
    if not condition:
        raise NotSupported(what)


def expect_code(status: status_pb2.Status, what: str, *codes: int) -> None:
    if status.code not in codes:
        raise Failed(f"{what}: expected {' or '.join(map(name_of, codes))}, got {shown(status)}")


@contextmanager
def within(what: str) -> Iterator[None]:
    """Say `what` was waited for when the time of the block is up."""
    try:
        yield
    except TimeoutError:
        raise Failed(f"waited in vain for {what}") from None


def violations_of(status: status_pb2.Status) -> list[error_details_pb2.PreconditionFailure.Violation]:
    """All violations of the PreconditionFailures in a status."""
    found = []
    for detail in status.details:
        failure = error_details_pb2.PreconditionFailure()
        if detail.Unpack(failure):
            found.extend(failure.violations)
    return found


def retry_info_of(status: status_pb2.Status) -> error_details_pb2.RetryInfo | None:
    for detail in status.details:
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return info
    return None


def is_transport_loss(error: aio.AioRpcError) -> bool:
    """Whether the call broke with its connection, as it does when the server goes."""
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:400]}… ({len(text)} characters)"
