"""rexec.scheduler.v1.Frontends: what frontends that are processes of their own ask of the scheduler.

Requests and answers of one frontend travel over one stream, which is a session (rexec/scheduler/frontend_session.py); logs and
the workers that a frontend answers for have calls of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Final, Self

import structlog
from google.protobuf import duration_pb2

from cas.context import Identity, RequestContext
from cas.errors import (
    Internal,
    MalformedRequest,
    NotAllowed,
    OffsetOutOfRange,
    SchedulerStops,
    StatusError,
    Unavailable,
)
from cas.instances import Instances
from protos.rexec.scheduler.v1 import frontends_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.clock import Clock
from rexec.scheduler.frontend_session import HEARTBEAT_SECONDS, MAX_NAME_CHARACTERS, MAX_WATCHES, FrontendSession, Room
from rexec.scheduler.live_logs import STARTS_OVER
from rexec.scheduler.log_name import Output
from rexec.scheduler.log_streams import MAX_OFFSET
from rexec.scheduler.observer import Observer, Unobserved
from rexec.scheduler.permission import require_operation
from rexec.scheduler.scheduler import LogRest, Scheduler
from rexec.scheduler.wire import write_state
from rexec.scheduler.workers import WorkersService

log = structlog.get_logger()

MAX_REQUESTS: Final = 10_000
"""In one message."""

_OUTPUTS: Final = {worker_pb2.STDOUT: Output.STDOUT, worker_pb2.STDERR: Output.STDERR}


class FrontendsService:
    """rexec.scheduler.v1.Frontends. To be entered before it is used; leaving it ends all streams."""

    def __init__(
        self,
        instances: Instances,
        scheduler: Scheduler,
        workers: WorkersService,
        clock: Clock,
        *,
        name: str = "",
        generation: int = 0,
        observer: Observer | None = None,
    ) -> None:
        """`generation` is that of the journal's leader, 0 without one (frontends.proto, FrontendWelcome)."""
        self._scheduler = scheduler
        self._workers = workers
        self._clock = clock
        self._room = Room(MAX_WATCHES)
        self._observer: Observer = observer or Unobserved()
        self._instances = instances
        self._open: set[FrontendSession] = set()
        self._sessions: dict[str, FrontendSession] = {}
        """Those that have said who they are, by their id."""
        self._tasks = asyncio.TaskGroup()
        self._welcome = frontends_pb2.FrontendWelcome(
            scheduler_name=name,
            generation=generation,
            heartbeat_interval=duration_pb2.Duration(seconds=int(HEARTBEAT_SECONDS)),
        )
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        for session in self._open:
            session.close(SchedulerStops())
            session.end()
        await self._tasks.__aexit__(None, None, None)

    @property
    def frontends(self) -> tuple[str, ...]:
        """The names of those that are connected."""
        return tuple(session.name for session in self._sessions.values())

    async def Connect(
        self, requests: AsyncIterator[frontends_pb2.FromFrontend], context: RequestContext
    ) -> AsyncGenerator[frontends_pb2.ToFrontend, None]:
        """Raises NotAllowed, MalformedRequest for nonsense, and Unavailable when the scheduler stops."""
        _require_frontend(context.identity)
        if self._closed:
            raise SchedulerStops()
        session = FrontendSession(
            self._scheduler, self._instances, context.identity, self._clock, self._tasks, self._room
        )  # fmt: skip
        self._open.add(session)
        self._observer.frontend_links(len(self._open))
        session.reader = self._tasks.create_task(self._read(session, requests, context.peer))
        try:
            async with aclosing(session.messages(self._welcome)) as messages:
                async for message in messages:
                    yield message
        finally:
            session.end()
            self._open.discard(session)
            self._observer.frontend_links(len(self._open))
            if self._sessions.get(session.session_id) is session:
                del self._sessions[session.session_id]
                log.info("frontend gone", frontend=session.name, peer=context.peer)

    async def _read(
        self, session: FrontendSession, requests: AsyncIterator[frontends_pb2.FromFrontend], peer: str
    ) -> None:  # fmt: skip
        """Take what the frontend says until it ends its side, then end ours."""
        try:
            async for message in requests:
                if session.closed:
                    return
                if not session.session_id:
                    self._greet(session, message, peer)
                if len(message.requests) > MAX_REQUESTS:
                    raise MalformedRequest(
                        f"{len(message.requests)} requests at once, at most {MAX_REQUESTS} are taken"
                    )
                for request in message.requests:
                    await session.take(request)
            session.close()
        except StatusError as failure:
            session.close(failure)
        except Exception:
            log.exception("frontend's stream failed", peer=peer)
            session.close(Internal())

    def _greet(self, session: FrontendSession, message: frontends_pb2.FromFrontend, peer: str) -> None:
        hello = message.hello
        for field, text in (("frontend_name", hello.frontend_name), ("session_id", hello.session_id)):
            if not text or len(text) > MAX_NAME_CHARACTERS:
                raise MalformedRequest(
                    f"{field} {text[:50]!r} is empty or longer than {MAX_NAME_CHARACTERS} characters"
                )
        # Its waiters would count twice.
        earlier = self._sessions.get(hello.session_id)
        if earlier is not None:
            earlier.close(Unavailable("replaced by a newer stream of the same frontend"))
            earlier.end()
        session.introduce(hello.frontend_name, hello.session_id)
        self._sessions[hello.session_id] = session
        log.info("frontend connected", frontend=session.name, version=hello.software_version[:50], peer=peer)

    async def ReadLog(
        self, request: frontends_pb2.ReadLogRequest, context: RequestContext
    ) -> AsyncGenerator[frontends_pb2.ReadLogResponse, None]:
        """Raises NotAllowed, MalformedRequest, OperationNotFound, ResourceExhausted, and Unavailable when it stops."""
        _require_frontend(context.identity)
        output = _OUTPUTS.get(request.stream)
        if output is None:
            raise MalformedRequest(f"log stream {request.stream}, expected STDOUT or STDERR")
        if not 0 <= request.offset <= MAX_OFFSET:
            raise OffsetOutOfRange(f"offset {request.offset} is not in a log; the least is 0")
        await require_operation(self._scheduler, request.operation_name, context.identity)
        async with aclosing(self._scheduler.log(request.operation_name, output, request.offset)) as parts:
            async for part in parts:
                if isinstance(part, LogRest):
                    rest = frontends_pb2.ReadLogResponse.Rest(offset=part.offset, state=write_state(part.state))
                    yield frontends_pb2.ReadLogResponse(rest=rest)
                elif part is STARTS_OVER:
                    yield frontends_pb2.ReadLogResponse(starts_over=True)
                else:
                    yield frontends_pb2.ReadLogResponse(data=part)

    async def Attach(
        self, requests: AsyncIterator[worker_pb2.FromWorker], context: RequestContext
    ) -> AsyncGenerator[worker_pb2.ToWorker, None]:
        """A worker that a frontend answers for: all that it may do is bounded by the instances of the frontend."""
        _require_frontend(context.identity)
        worker = replace(context.identity, may_work=True)
        passed_on = replace(context, identity=worker)
        async with aclosing(self._workers.Attach(requests, passed_on)) as messages:
            async for message in messages:
                yield message


def _require_frontend(identity: Identity) -> None:
    if not identity.may_front:
        raise NotAllowed("not allowed")
