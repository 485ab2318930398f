"""rexec.scheduler.v1.Status: what goes on, for those who may run actions.

The service decides who may see what and checks what is asked; the answers come from a `StatusSource`: the queue itself, or the
scheduler's process far away. Requests go to the source with the instances written into them that the caller may see.
"""

from __future__ import annotations

import base64
import binascii
from typing import Protocol, TypeVar

from cas.context import Identity, RequestContext
from cas.errors import MalformedRequest, NotAllowed
from protos.rexec.scheduler.v1 import status_pb2
from rexec.scheduler.found_operations import LIVE, Place, Wanted
from rexec.scheduler.found_workers import STATES
from rexec.scheduler.task import Stage

DEFAULT_PAGE = 100
MAX_PAGE = 500
"""Entries in one answer: of a worker with all its leases about 20 KiB, of an operation 2 KiB."""

MAX_PAGE_BYTES = 3 << 20
"""What an answer may hold before the page ends early: gRPC's default limit for a message is 4 MiB."""

MAX_INSTANCES = 1000
"""Names in one request."""

Asked = TypeVar(
    "Asked", status_pb2.GetOverviewRequest, status_pb2.FindOperationsRequest, status_pb2.FindWorkersRequest
)  # fmt: skip


class StatusSource(Protocol):
    """Whoever knows. Whose instances a request names, or all if it names none, has been decided."""

    async def overview(self, request: status_pb2.GetOverviewRequest) -> status_pb2.Overview: ...

    async def operations(self, request: status_pb2.FindOperationsRequest) -> status_pb2.FindOperationsResponse:
        """Raises MalformedRequest."""
        ...

    async def workers(self, request: status_pb2.FindWorkersRequest) -> status_pb2.FindWorkersResponse:
        """Raises MalformedRequest."""
        ...


class StatusService:
    """rexec.scheduler.v1.Status."""

    def __init__(self, source: StatusSource) -> None:
        self._source = source

    async def GetOverview(
        self, request: status_pb2.GetOverviewRequest, context: RequestContext
    ) -> status_pb2.Overview:  # fmt: skip
        return await self._source.overview(narrowed(request, context.identity))

    async def FindOperations(
        self, request: status_pb2.FindOperationsRequest, context: RequestContext
    ) -> status_pb2.FindOperationsResponse:
        return await self._source.operations(narrowed(request, context.identity))

    async def FindWorkers(
        self, request: status_pb2.FindWorkersRequest, context: RequestContext
    ) -> status_pb2.FindWorkersResponse:
        return await self._source.workers(narrowed(request, context.identity))


def narrowed(request: Asked, identity: Identity) -> Asked:
    """The request for those of its instances that the identity may use. Raises NotAllowed if one is not, or if the identity
    may not execute at all, and MalformedRequest for too many."""
    allowed = identity.instance_names
    if not identity.may_execute or (allowed is not None and not allowed):
        raise NotAllowed("not allowed")
    if not request.HasField("instances"):
        if allowed is not None:
            request.instances.names.extend(sorted(allowed))
        return request
    if len(request.instances.names) > MAX_INSTANCES:
        raise MalformedRequest(f"{len(request.instances.names)} instances, expected at most {MAX_INSTANCES}")
    if not request.instances.names:
        raise MalformedRequest("instances is empty, expected at least one name, or no list at all")
    if allowed is not None and not allowed.issuperset(request.instances.names):
        raise NotAllowed("not allowed")
    return request


# What requests say, as values


def names_of(request: Asked) -> frozenset[str] | None:
    """The instances to look at, None for all."""
    return frozenset(request.instances.names) if request.HasField("instances") else None


def page_of(request: status_pb2.FindOperationsRequest | status_pb2.FindWorkersRequest) -> int:
    """How many entries to give. Raises MalformedRequest."""
    if request.page_size < 0:
        raise MalformedRequest(f"page_size is {request.page_size}, expected 0 or more")
    return min(request.page_size or DEFAULT_PAGE, MAX_PAGE)


def wanted_of(request: status_pb2.FindOperationsRequest) -> Wanted:
    """Which operations are asked for. Raises MalformedRequest."""
    stages = frozenset(_stage(number) for number in request.stages)
    return Wanted(
        names_of(request),
        stages or LIVE,
        request.tenant if request.HasField("tenant") else None,
        request.user if request.HasField("user") else None,
        request.invocation if request.HasField("invocation") else None,
        _place(request.page_token),
    )


def states_of(request: status_pb2.FindWorkersRequest) -> frozenset[int]:
    """The states of the workers asked for. Raises MalformedRequest."""
    for state in request.states:
        if state not in STATES:
            raise MalformedRequest(f"states has {state}, expected {', '.join(map(str, STATES))}")
    return frozenset(request.states or STATES)


def token_of(place: tuple[object, str]) -> str:
    """The token of a page that ends there."""
    return base64.urlsafe_b64encode(f"{place[0]}\0{place[1]}".encode()).decode()


def after(token: str) -> tuple[str, str]:
    """Where the page before ended; two empty texts without a token. Raises MalformedRequest."""
    if not token:
        return "", ""
    try:
        first, separator, second = base64.urlsafe_b64decode(token.encode("ascii")).decode().partition("\0")
    except (binascii.Error, UnicodeError):
        separator = ""
        first = second = ""
    if not separator:
        raise MalformedRequest(f"page_token {token[:100]!r} is not one that this server gave")
    return first, second


def _stage(number: int) -> Stage:
    try:
        return Stage(number)
    except ValueError:
        known = ", ".join(f"{stage.value} ({stage.name})" for stage in Stage)
        raise MalformedRequest(f"stages has {number}, expected {known}") from None


def _place(token: str) -> Place:
    arrival, name = after(token)
    if not token:
        return -1, ""
    if not (arrival.isascii() and arrival.isdecimal() and len(arrival) < 20):
        raise MalformedRequest(f"page_token {token[:100]!r} is not one that this server gave")
    return int(arrival), name
