"""REAPI Execution: Execute and WaitExecution.

A request is answered by a stream of Operations: the state at once, every change, something at least every
`keepalive_seconds`, and the completed state last. A stream that is closed by the client cancels nothing at once; the rules
wait whether someone comes back.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog
from google.longrunning import operations_pb2

from cas.context import RequestContext
from cas.errors import ActionResultNotFound, InputsMissing, StatusError
from cas.instances import Instances
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.admission import Admission, Admitted
from rexec.scheduler.observer import Observer, Unobserved
from rexec.scheduler.permission import require_operation
from rexec.scheduler.rendering import inlined, operation_of
from rexec.scheduler.scheduler import OperationState, Scheduler
from rexec.scheduler.settings import SchedulerSettings

log = structlog.get_logger()

MAX_TRAILER_BYTES = 4 << 10
"""The largest status that an RPC itself fails with. It travels in a trailer, where clients accept 8 KiB of everything. A
list of missing blobs that is longer comes as ExecuteResponse.status, which every client treats alike and which is a message
of any length."""


class ExecutionService:
    """build.bazel.remote.execution.v2.Execution."""

    def __init__(
        self,
        instances: Instances,
        scheduler: Scheduler,
        admission: Admission,
        settings: SchedulerSettings,
        *,
        observer: Observer | None = None,
    ) -> None:
        self._instances = instances
        self._scheduler = scheduler
        self._admission = admission
        self._settings = settings
        self._observer: Observer = observer or Unobserved()

    async def Execute(
        self, request: re_pb2.ExecuteRequest, context: RequestContext
    ) -> AsyncGenerator[operations_pb2.Operation, None]:
        instance = self._instances.executable(request.instance_name, context.identity)
        admitted = await self._admission.admit(instance, request, context)
        name = await self._cached(admitted)
        if name is None:
            name = await self._submitted(admitted)
        async with aclosing(self._stream(name)) as operations:
            async for operation in operations:
                yield operation

    async def WaitExecution(
        self, request: re_pb2.WaitExecutionRequest, context: RequestContext
    ) -> AsyncGenerator[operations_pb2.Operation, None]:
        await require_operation(self._scheduler, request.name, context.identity)
        async with aclosing(self._stream(request.name)) as operations:
            async for operation in operations:
                yield operation

    async def _cached(self, admitted: Admitted) -> str | None:
        """The name of an operation that is complete from the action cache, None if the action has to run."""
        try:
            result = await admitted.cached()
        except ActionResultNotFound:
            self._observer.action_cache_read("miss" if admitted.may_read_cache else "skipped")
            return None
        except StatusError as failure:
            # A cache that cannot be read costs a run; it must not cost the build.
            log.warning("action cache not read", action=str(admitted.candidate.action_digest), reason=str(failure))
            self._observer.action_cache_read("miss")
            return None
        self._observer.action_cache_read("hit")
        response = re_pb2.ExecuteResponse(result=result, cached_result=True)
        response.status.SetInParent()
        response.result.execution_metadata.SetInParent()
        return await self._scheduler.record(admitted.candidate, admitted.inlining, response)

    async def _submitted(self, admitted: Admitted) -> str:
        """The name of an operation that runs the action, or that has failed already because much of it is missing."""
        try:
            candidate = await self._admission.check_inputs(admitted)
        except InputsMissing as missing:
            status = missing.to_proto()
            if status.ByteSize() <= MAX_TRAILER_BYTES:
                raise
            response = re_pb2.ExecuteResponse(status=status, message=str(missing))
            return await self._scheduler.record(admitted.candidate, admitted.inlining, response)
        return await self._scheduler.submit(candidate, admitted.inlining)

    async def _stream(self, name: str) -> AsyncGenerator[operations_pb2.Operation, None]:
        states = self._scheduler.watch(name, self._settings.keepalive_seconds)
        async with aclosing(states) as watched:
            async for state in watched:
                yield operation_of(state, await self._answer(state))

    async def _answer(self, state: OperationState) -> re_pb2.ExecuteResponse | None:
        """The response as this client wants it."""
        if state.response is None:
            return None
        store = self._instances.of(state.instance_name).store
        limit = self._settings.inline_bytes
        try:
            return await inlined(state.response, state.inlining, store, state.action_digest, limit)
        except StatusError as failure:
            log.warning("output not inlined", operation=state.name, reason=str(failure))
            return state.response
