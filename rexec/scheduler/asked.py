"""What a frontend has asked the scheduler and not had the last answer to (rexec/scheduler/remote.py)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cas.errors import Code, MalformedRequest, OperationNotFound, QueueFull, StatusError, Unavailable
from protos.rexec.scheduler.v1 import frontends_pb2
from rexec.scheduler.scheduler import OperationState
from rexec.scheduler.wire import read_error

Request = frontends_pb2.FrontendRequest
Answer = frontends_pb2.FrontendAnswer


@dataclass(eq=False, slots=True)
class Call:
    """A request with one answer."""

    request: Request
    answer: asyncio.Future[Answer]


@dataclass(eq=False, slots=True)
class Watch:
    """An operation that one client's stream follows."""

    name: str
    submit: Request.Submit | None = None
    """How it came to be, if it was submitted here."""
    request_id: int = 0
    """Of the request that is open for it, 0 if there is none."""
    accepted: bool = False
    """Whether the scheduler has answered with a state."""
    state: OperationState | None = None
    failure: StatusError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def request(self) -> Request:
        """What asks for its states. Until the scheduler has had it, it is submitted."""
        if self.submit is not None and not self.accepted:
            return Request(id=self.request_id, submit=self.submit)
        return Request(id=self.request_id, watch=Request.Watch(name=self.name))


def fail(answer: asyncio.Future[Answer], failure: StatusError) -> None:
    """Answer with a failure, unless there is an answer."""
    if not answer.done():
        answer.set_exception(failure)


def failure_of(answer: Answer) -> StatusError:
    """What the scheduler answered with, of the class that the services know."""
    try:
        failure = read_error(answer.failure)
    except MalformedRequest as reason:
        return Unavailable(f"the scheduler's answer cannot be understood: {reason}")
    kinds: dict[Code, type[StatusError]] = {Code.NOT_FOUND: OperationNotFound, Code.RESOURCE_EXHAUSTED: QueueFull}
    kind = kinds.get(failure.code)
    if kind is None:
        return failure
    known = kind(str(failure))
    known.received_details = failure.received_details
    return known
