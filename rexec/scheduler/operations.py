"""google.longrunning.Operations: look at operations, stop them, forget them.

Names are those that Execute gave. ListOperations lists one instance: its `name` is the instance name, with or without
"/operations" at the end.
"""

from __future__ import annotations

import base64
import binascii
from contextlib import aclosing

from google.longrunning import operations_pb2
from google.protobuf import empty_pb2

from cas.context import RequestContext
from cas.errors import MalformedRequest
from cas.instances import Instances
from rexec.scheduler.clock import Clock
from rexec.scheduler.permission import require_operation
from rexec.scheduler.rendering import operation_of
from rexec.scheduler.scheduler import PAGE_BYTES, OperationState, Scheduler
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Stage

DEFAULT_PAGE = 100
MAX_PAGE = 1000
"""Operations in one answer. Completed ones carry their results, so an answer must have room for large ones."""


class OperationsService:
    """google.longrunning.Operations."""

    def __init__(self, instances: Instances, scheduler: Scheduler, settings: SchedulerSettings, clock: Clock) -> None:
        self._instances = instances
        self._scheduler = scheduler
        self._settings = settings
        self._clock = clock

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: RequestContext
    ) -> operations_pb2.Operation:
        await require_operation(self._scheduler, request.name, context.identity)
        return operation_of(await self._scheduler.state(request.name))

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: RequestContext
    ) -> operations_pb2.ListOperationsResponse:
        """Sorted by name. `filter` is empty or "stage=QUEUED", "stage=EXECUTING", "stage=COMPLETED"."""
        instance_name = request.name.removesuffix("operations").removesuffix("/")
        self._instances.executable(instance_name, context.identity)
        if request.page_size < 0:
            raise MalformedRequest(f"page_size is {request.page_size}, expected 0 or more")
        limit = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        stages = _stages(request.filter)
        states = await self._scheduler.page(instance_name, stages, _after(request.page_token), limit + 1)
        answer = operations_pb2.ListOperationsResponse()
        size_bytes = 0
        for state in states[:limit]:
            operation = operation_of(state)
            size_bytes += operation.ByteSize()
            if answer.operations and size_bytes > PAGE_BYTES:
                break
            answer.operations.append(operation)
        if len(answer.operations) < len(states):
            answer.next_page_token = base64.urlsafe_b64encode(answer.operations[-1].name.encode()).decode()
        return answer

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, context: RequestContext
    ) -> empty_pb2.Empty:
        await require_operation(self._scheduler, request.name, context.identity)
        await self._scheduler.cancel(request.name)
        return empty_pb2.Empty()

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, context: RequestContext
    ) -> empty_pb2.Empty:
        await require_operation(self._scheduler, request.name, context.identity)
        await self._scheduler.forget(request.name)
        return empty_pb2.Empty()

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: RequestContext
    ) -> operations_pb2.Operation:
        """The completed operation, or its state when `timeout` or the keepalive interval is over."""
        await require_operation(self._scheduler, request.name, context.identity)
        longest = self._settings.keepalive_seconds
        if request.HasField("timeout"):
            longest = min(longest, max(0.0, request.timeout.seconds + request.timeout.nanos / 1e9))
        ends_at = self._clock.monotonic() + longest
        latest: OperationState | None = None
        async with aclosing(self._scheduler.watch(request.name, max(longest, 0.001))) as states:
            async for state in states:
                latest = state
                if state.done or self._clock.monotonic() >= ends_at:
                    break
        if latest is None:
            latest = await self._scheduler.state(request.name)
        return operation_of(latest)


def _stages(text: str) -> frozenset[Stage]:
    if not text.strip():
        return frozenset(Stage)
    name, _, value = text.partition("=")
    if name.strip() != "stage" or value.strip() not in Stage.__members__:
        known = ", ".join(f"stage={stage}" for stage in Stage.__members__)
        raise MalformedRequest(f"filter {text[:200]!r} is not one of {known}")
    return frozenset({Stage[value.strip()]})


def _after(page_token: str) -> str:
    try:
        return base64.b64decode(page_token.encode(), b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        raise MalformedRequest(f"page_token {page_token[:200]!r} is not one that this server gave") from None
