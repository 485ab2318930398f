"""A `Scheduler` that is another process: what the services of a frontend use in the place of a Broker.

All requests of the process share one connection. While it is broken nothing is told to clients: their streams stay open, and
go on once a scheduler answers again, the same one or another that has taken over. Each request whose answer has not come is
then repeated, and each operation that a client waits for is watched again; operations have names that are made here, so that
nothing happens twice. A scheduler that does not know an operation which was submitted from here has lost it, and gets it
again under its name. Only requests that are no streams give up after `wait_seconds`. When all schedulers
refuse this frontend, everything that waits ends at once with their reason.

Clients are told that an operation is still there by this process, without asking.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Final, Self
from uuid import uuid4

import msgspec
import structlog

from cas.errors import (
    Code,
    MalformedRequest,
    SchedulerStops,
    StatusError,
    Unavailable,
)
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.methods import methods_of
from protos.rexec.scheduler.v1 import frontends_pb2, record_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.asked import Answer, Call, Request, Watch, fail, failure_of
from rexec.scheduler.clock import Clock, SystemClock, Timer
from rexec.scheduler.live_logs import STARTS_OVER
from rexec.scheduler.log_name import Output
from rexec.scheduler.scheduler import (
    PAGE_BYTES,
    Inlining,
    LogRest,
    OperationState,
    operation_name,
)
from rexec.scheduler.scheduler_connection import PAUSE_SECONDS, Connection
from rexec.scheduler.scheduler_link import Dial, LinkBroken
from rexec.scheduler.task import Candidate, Stage
from rexec.scheduler.wire import read_state, write_candidate, write_inlining

log = structlog.get_logger()

UNCLAIMED_SECONDS: Final = 60.0
"""How long an operation that was submitted is waited for although no client's stream follows it yet."""

_READ_LOG = methods_of(frontends_pb2, "Frontends")["ReadLog"]
_STREAMS: Final = {Output.STDOUT: worker_pb2.STDOUT, Output.STDERR: worker_pb2.STDERR}


class RemoteScheduler:
    """`Scheduler` over connections to the first of several schedulers that answers. To be entered before it is used."""

    def __init__(
        self,
        dials: Sequence[Dial],
        *,
        name: str,
        version: str = "",
        wait_seconds: float = 30.0,
        keepalive_seconds: float = 30.0,
        clock: Clock | None = None,
        new_id: Callable[[], str] = lambda: str(uuid4()),
    ) -> None:
        """`name` is this frontend's, for people; `keepalive_seconds` is that of logs without a byte."""
        self._wait_seconds = wait_seconds
        self._keepalive_seconds = keepalive_seconds
        self._clock: Clock = clock or SystemClock()
        self._new_id = new_id
        self._last_id = 0
        self._asked: dict[int, Call | Watch] = {}
        """What waits for an answer, by request id, in the order in which it was asked."""
        self._own: dict[str, tuple[Watch, Timer]] = {}
        """Operations that were made here and that no stream follows yet, by name, with what gives them up."""
        hello = frontends_pb2.FrontendHello(frontend_name=name, session_id=new_id(), software_version=version)
        self.connection = Connection(
            dials, hello, self._clock, wait_seconds, self._unanswered, self._take, self._refused
        )

    async def __aenter__(self) -> Self:
        await self.connection.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End every stream with UNAVAILABLE: clients come back to another frontend."""
        self.connection.closed = True
        for asked in list(self._asked.values()):
            if isinstance(asked, Call):
                fail(asked.answer, SchedulerStops())
            else:
                asked.changed.set()
        for watch, timer in self._own.values():
            timer.cancel()
            watch.changed.set()
        await self.connection.__aexit__(None, None, None)

    # Requests and answers

    def _unanswered(self) -> Iterator[Request]:
        """What a scheduler has to be asked that knows nothing of this frontend."""
        for asked in self._asked.values():
            yield asked.request if isinstance(asked, Call) else asked.request()

    def _new_request_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def _ask(self, request: Request) -> Answer:
        """The answer. Raises the StatusError that came instead, and Unavailable when none comes."""
        if self.connection.closed:
            raise SchedulerStops()
        refusal = self.connection.refusal()
        if refusal is not None:
            raise refusal
        request.id = self._new_request_id()
        call = Call(request, asyncio.get_running_loop().create_future())
        self._asked[request.id] = call
        self.connection.put(request)
        timer = self._clock.call_at(
            self._clock.monotonic() + self._wait_seconds, lambda: fail(call.answer, self.connection.unreached())
        )
        try:
            return await call.answer
        finally:
            timer.cancel()
            del self._asked[request.id]

    def _refused(self, refusal: Unavailable) -> None:
        for asked in list(self._asked.values()):
            if isinstance(asked, Call):
                fail(asked.answer, refusal)
            else:
                self._watch_failed(asked, refusal)

    def _take(self, answer: Answer) -> None:
        asked = self._asked.get(answer.id)
        match asked:
            case Call():
                if answer.WhichOneof("answer") == "failure":
                    fail(asked.answer, failure_of(answer))
                elif not asked.answer.done():
                    asked.answer.set_result(answer)
            case Watch():
                if answer.WhichOneof("answer") == "failure":
                    self._watch_failed(asked, failure_of(answer))
                else:
                    self._watch_changed(asked, answer)
            case None:
                pass  # nobody waits for it any more

    def _watch_changed(self, watch: Watch, answer: Answer) -> None:
        # A copy: the answer is part of a batch, all of which would be kept for as long as the state is.
        message = record_pb2.OperationState()
        message.CopyFrom(answer.state)
        try:
            watch.state = read_state(message)
        except MalformedRequest as reason:
            watch.failure = Unavailable(f"the scheduler's answer cannot be understood: {reason}")
            self._close(watch)
        watch.accepted = True
        if watch.state is not None and watch.state.done:
            self._forget(watch)
        watch.changed.set()

    def _watch_failed(self, watch: Watch, failure: StatusError) -> None:
        self._forget(watch)
        if failure.code is Code.NOT_FOUND and watch.accepted and watch.submit is not None:
            # The scheduler has lost it, and knows nothing of what was said of it before.
            log.info("operation is submitted again", operation=watch.name)
            watch.accepted = False
            self._open(watch)
            return
        watch.failure = failure
        watch.changed.set()

    def _open(self, watch: Watch) -> None:
        watch.failure = self.connection.refusal()
        if watch.failure is not None:
            watch.changed.set()
            return
        watch.request_id = self._new_request_id()
        self._asked[watch.request_id] = watch
        self.connection.put(watch.request())
        if self.connection.closed:
            watch.changed.set()

    def _forget(self, watch: Watch) -> None:
        self._asked.pop(watch.request_id, None)
        watch.request_id = 0

    def _close(self, watch: Watch) -> None:
        """Nobody follows the operation any more."""
        if watch.request_id:
            self.connection.put(Request(id=self._new_request_id(), unwatch=Request.Unwatch(id=watch.request_id)))
            self._forget(watch)

    # For services

    async def submit(self, candidate: Candidate, inlining: Inlining, name: str = "") -> str:
        name = name or operation_name(candidate.instance_name, self._new_id())
        submit = Request.Submit(
            name=name, candidate=write_candidate(candidate), inlining=write_inlining(inlining)
        )  # fmt: skip
        watch = Watch(name, submit)
        self._open(watch)
        timer = self._clock.call_at(self._clock.monotonic() + self._wait_seconds, watch.changed.set)
        try:
            await watch.changed.wait()
        except asyncio.CancelledError:
            self._close(watch)
            raise
        finally:
            timer.cancel()
        if watch.failure is not None:
            raise watch.failure
        if watch.state is None:
            self._close(watch)
            raise SchedulerStops() if self.connection.closed else self.connection.unreached()
        self._keep(watch)
        return name

    async def record(
        self, candidate: Candidate, inlining: Inlining, response: re_pb2.ExecuteResponse, name: str = ""
    ) -> str:
        name = name or operation_name(candidate.instance_name, self._new_id())
        record = Request.Record(
            name=name,
            candidate=write_candidate(msgspec.structs.replace(candidate, payload=None)),
            inlining=write_inlining(inlining),
            response=response,
        )
        await self._ask(Request(record=record))
        # Whoever made it looks at it next: there is no need to ask for it.
        state = OperationState(
            name=name,
            instance_name=candidate.instance_name,
            action_digest=candidate.action_digest,
            stage=Stage.COMPLETED,
            response=response,
            inlining=inlining,
            owner=candidate.owner,
        )
        self._keep(Watch(name, accepted=True, state=state))
        return name

    def _keep(self, watch: Watch) -> None:
        """Until a stream follows the operation, or for long enough that none ever will."""
        replaced = self._claimed(watch.name)
        if replaced is not None:
            self._close(replaced)
        due = self._clock.monotonic() + UNCLAIMED_SECONDS
        self._own[watch.name] = watch, self._clock.call_at(due, lambda: self._give_up(watch))

    def _claimed(self, name: str) -> Watch | None:
        """What was kept under this name. Its timer, which would hold the action and its response, ends with that."""
        watch, timer = self._own.pop(name, (None, None))
        if timer is not None:
            timer.cancel()
        return watch

    def _give_up(self, watch: Watch) -> None:
        del self._own[watch.name]
        self._close(watch)

    async def watch(self, name: str, keepalive_seconds: float) -> AsyncGenerator[OperationState, None]:
        watch = self._claimed(name)
        if watch is None:
            watch = Watch(name)
            self._open(watch)
        # A stream that has nothing to repeat yet is not kept waiting for ever.
        give_up = self._clock.monotonic() + self._wait_seconds
        try:
            while True:
                watch.changed.clear()  # before the state is read: what happens from here on is not lost
                if watch.failure is not None:
                    raise watch.failure
                state = watch.state
                if self.connection.closed and (state is None or not state.done):
                    raise SchedulerStops()
                now = self._clock.monotonic()
                if state is not None:
                    yield state
                    if state.done:
                        return
                    now = self._clock.monotonic()
                elif now >= give_up:
                    raise self.connection.unreached()
                due = give_up if state is None else now + keepalive_seconds
                timer = self._clock.call_at(due, watch.changed.set)
                try:
                    await watch.changed.wait()
                finally:
                    timer.cancel()
        finally:
            self._close(watch)

    async def log(self, name: str, output: Output, offset: int) -> AsyncGenerator[bytes | LogRest, None]:
        while True:
            link = self.connection.link
            if link is None:
                if self.connection.closed:
                    raise SchedulerStops()
                refusal = self.connection.refusal()
                if refusal is not None:
                    raise refusal
                due = self._clock.monotonic() + self._keepalive_seconds
                await self.connection.change(due)
                if self._clock.monotonic() >= due:
                    yield b""
                continue
            request = frontends_pb2.ReadLogRequest(operation_name=name, stream=_STREAMS[output], offset=offset)
            try:
                async with aclosing(link.stream(_READ_LOG, request)) as parts:
                    async for part in parts:
                        assert isinstance(part, frontends_pb2.ReadLogResponse)
                        if part.HasField("rest"):
                            yield LogRest(part.rest.offset, read_state(part.rest.state))
                            return
                        if part.starts_over:
                            offset = 0
                            yield STARTS_OVER
                        else:
                            offset += len(part.data)
                            yield part.data
            except LinkBroken as broken:
                log.debug("a log is read on over the next connection", operation=name, reason=str(broken))
            # Whatever ended it early, the connection is not used for this again before something has changed.
            if self.connection.link is link:
                await self.connection.pause(PAUSE_SECONDS)

    async def state(self, name: str) -> OperationState:
        answer = await self._ask(Request(state=Request.NamedOperation(name=name)))
        return read_state(answer.state)

    async def page(
        self, instance_name: str, stages: frozenset[Stage], after: str, limit: int
    ) -> Sequence[OperationState]:
        states: list[OperationState] = []
        size_bytes = 0
        while True:
            page = Request.Page(
                instance_name=instance_name,
                stages=[re_pb2.ExecutionStage.Value.Name(stage) for stage in sorted(stages)],
                after=after,
                limit=limit - len(states),
            )
            answer = (await self._ask(Request(page=page))).page
            states += [read_state(state) for state in answer.states]
            size_bytes += sum(state.response.ByteSize() for state in answer.states)
            if not answer.cut or not answer.states or size_bytes > PAGE_BYTES:
                return states
            after = states[-1].name

    async def cancel(self, name: str) -> None:
        await self._ask(Request(cancel=Request.NamedOperation(name=name)))

    async def forget(self, name: str) -> None:
        await self._ask(Request(forget=Request.NamedOperation(name=name)))
