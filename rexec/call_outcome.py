"""What becomes of one call: its messages parsed and counted, and its failure turned into a status, with a line in the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from google.protobuf.message import DecodeError, Message

from cas.errors import (
    Code,
    Internal,
    MalformedRequest,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    SchedulerStops,
    StatusError,
)
from protos.methods import Method

log = structlog.get_logger()


class CallOutcome:
    """How a call ended, how many bytes it moved, and what the log says of it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.code = Code.OK
        self.peer = ""
        self.caller = ""
        self.received_bytes = 0
        self.sent_bytes = 0

    def parsed(self, method: Method, data: bytes) -> Message:
        """A message of the client's, counted. Raises MalformedRequest."""
        self.received_bytes += len(data)
        return _parsed(method, data)

    def encoded(self, message: Message) -> bytes:
        """A message of ours, counted."""
        data = message.SerializeToString()
        self.sent_bytes += len(data)
        return data

    def failed(self, error: Exception) -> StatusError:
        """The status that `error` is for the client. One line in the log for his fault, a traceback for ours."""
        match error:
            case NotFound() | SchedulerStops():
                failure: StatusError = error  # the normal answer of a cache, or told once for all calls: no line
            case NotAuthenticated() | NotAllowed():
                failure = error  # whose text says nothing
                reason = str(error.__cause__ or error)[:500]
                log.info("call refused", method=self.path, peer=self.peer, caller=self.caller, reason=reason)
            case StatusError():
                failure = error
                log.info(
                    "call refused", method=self.path, code=error.code.name, peer=self.peer, reason=str(error)[:500]
                )
            case _:
                failure = Internal()
                log.exception("call failed", method=self.path, exc_info=error)
        self.code = failure.code
        return failure


def _parsed(method: Method, data: bytes) -> Message:
    try:
        return method.request_type.FromString(data)
    except DecodeError as error:
        raise MalformedRequest(
            f"request of {method.path} is not a {method.request_type.DESCRIPTOR.full_name}"
        ) from error


class EachParsed:
    """The messages of a request stream. A class and not a generator: one that is left before its end, as by a Write of a
    blob that exists, would cost a task to close it."""

    __slots__ = ("_method", "_next", "_requests", "_seen")

    def __init__(self, method: Method, requests: AsyncIterator[bytes], seen: CallOutcome) -> None:
        self._method = method
        self._seen = seen
        self._requests = requests
        # Made at the first use: gRPC's iterator complains of one that is made and never used, as by a call that is refused.
        self._next: Callable[[], Awaitable[bytes]] | None = None

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        if self._next is None:
            self._next = aiter(self._requests).__anext__
        return self._seen.parsed(self._method, await self._next())
