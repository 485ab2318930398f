"""One frontend's stream, seen from the scheduler: the requests that are being answered, and the answers that wait to be sent.

What comes to be said in one turn of the event loop, and while the frontend still reads what was said before, goes into one
message. A frontend that does not read holds up nobody but itself: of each operation that it watches only the latest state
is sent, and no more than MAX_UNSENT answers wait.

What a frontend says is checked like a client's words, although it had to show who it is: that its clients may do what they
ask for is the frontend's affair, but that the values can be used, that they are of its instances and how many there are is
looked at here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog

from cas.context import Identity
from cas.errors import Internal, MalformedRequest, NotAllowed, QueueFull, SchedulerStops, StatusError
from cas.instances import Instances
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import frontends_pb2, record_pb2
from rexec.scheduler.clock import Clock
from rexec.scheduler.permission import require_operation
from rexec.scheduler.scheduler import PAGE_BYTES, Inlining, OperationState, Scheduler, operation_name
from rexec.scheduler.task import Stage
from rexec.scheduler.wire import read_candidate, read_inlining, write_state

log = structlog.get_logger()

HEARTBEAT_SECONDS: Final = 2.0
"""How often something is said. A frontend that hears nothing for several times as long looks for another scheduler."""

REFRESH_SECONDS: Final = 60.0
"""A state that does not change is sent again this often: why an operation waits changes without an event."""

MAX_WATCHES: Final = 100_000
"""Operations that all frontends watch together; each takes some kilobytes."""

MAX_ASKED: Final = 1_000
"""Other requests of one frontend that are being answered; before the next one is read, one has to be done."""

MAX_UNSENT: Final = 1_000
"""Answers that wait until the frontend reads."""

BATCH_BYTES: Final = 1 << 20
"""A message is sent when it has so many bytes; the last answer may make it larger."""

MAX_NAME_CHARACTERS: Final = 2_048
"""Of an operation, and of the frontend."""

MAX_PAGE: Final = 10_000
"""Operations in one page."""

_Request = frontends_pb2.FrontendRequest
_Answer = frontends_pb2.FrontendAnswer
_Said = OperationState | StatusError | _Answer.Page | None
_Work = Callable[[], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class Room:
    """What all sessions share."""

    watches: int


class FrontendSession:
    """One frontend's stream: the requests that are being answered, and the answers that wait to be sent."""

    def __init__(
        self,
        scheduler: Scheduler,
        instances: Instances,
        identity: Identity,
        clock: Clock,
        tasks: asyncio.TaskGroup,
        room: Room,
    ) -> None:
        self.name = ""
        self.session_id = ""
        """Empty before the hello."""
        self._scheduler = scheduler
        self._instances = instances
        self._identity = identity
        self._clock = clock
        self._tasks = tasks
        self._room = room
        self.reader: asyncio.Task[None] | None = None
        """Takes what the frontend says."""
        self._watches: dict[int, asyncio.Task[None]] = {}
        self._asked: dict[int, asyncio.Task[None]] = {}
        self._may_ask = asyncio.Semaphore(MAX_ASKED)
        self._unsent: deque[tuple[int, _Said]] = deque()
        self._may_say = asyncio.Semaphore(MAX_UNSENT)
        self._changed = asyncio.Event()
        self._ended = False
        self._failure: StatusError | None = None
        self.closed = False
        """Whether the stream is to end."""

    def introduce(self, name: str, session_id: str) -> None:
        """The frontend has said who it is: from now on it is answered."""
        self.name, self.session_id = name, session_id
        self._changed.set()

    def close(self, failure: StatusError | None = None) -> None:
        """End the stream, with a failure or in good order. The first call counts."""
        if not self.closed:
            self.closed, self._failure = True, failure
            self._changed.set()

    def end(self) -> None:
        """Forget everything: nobody reads any more."""
        self._ended = True
        if self.reader is not None:
            self.reader.cancel()
        for task in (*self._watches.values(), *self._asked.values()):
            task.cancel()

    async def messages(
        self, welcome: frontends_pb2.FrontendWelcome
    ) -> AsyncGenerator[frontends_pb2.ToFrontend, None]:  # fmt: skip
        """What is to be sent: answers as they come, and something now and then. Raises the failure of the stream."""
        while not self.session_id and not self.closed:
            await self._change()
        if not self.closed:
            yield frontends_pb2.ToFrontend(welcome=welcome)
        while True:
            if self.closed:
                if self._failure is not None:
                    raise self._failure
                return
            if not self._unsent:
                await self._change()
            if not self.closed:
                yield self._batch()  # of nothing: a heartbeat

    async def _change(self) -> None:
        self._changed.clear()
        timer = self._clock.call_at(self._clock.monotonic() + HEARTBEAT_SECONDS, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()

    def _batch(self) -> frontends_pb2.ToFrontend:
        message = frontends_pb2.ToFrontend()
        size_bytes = 0
        while self._unsent and size_bytes < BATCH_BYTES:
            request_id, said = self._unsent.popleft()
            self._may_say.release()
            answer = message.answers.add(id=request_id)
            # Written now and not when it was said: until then it takes no room of its own.
            match said:
                case OperationState():
                    answer.state.CopyFrom(write_state(said))
                case StatusError():
                    answer.failure.CopyFrom(said.to_proto())
                case None:
                    answer.done.SetInParent()
                case _:
                    answer.page.CopyFrom(said)
            size_bytes += answer.ByteSize()
        return message

    async def _say(self, request_id: int, said: _Said) -> None:
        await self._may_say.acquire()
        self._unsent.append((request_id, said))
        self._changed.set()

    async def take(self, request: _Request) -> None:
        """Begin to answer a request. Waits while too many are being answered. Raises MalformedRequest."""
        request_id = request.id
        if request_id in self._watches or request_id in self._asked:
            raise MalformedRequest(f"request id {request_id} is in use")
        match request.WhichOneof("request"):
            case "submit":
                # A copy: the request is part of a batch, all of which would be kept for as long as the action is.
                candidate = record_pb2.Candidate()
                candidate.CopyFrom(request.submit.candidate)
                submit = request.submit
                work = partial(self._submission, request_id, submit.name, candidate, read_inlining(submit.inlining))
                await self._begin_watch(request_id, work)
            case "watch":
                await self._begin_watch(request_id, partial(self._watch, request_id, request.watch.name))
            case "unwatch":
                watch = self._watches.get(request.unwatch.id)
                if watch is not None:
                    watch.cancel()
            case None:
                await self._say(request_id, MalformedRequest("a request for nothing that is known here"))
            case _:
                await self._may_ask.acquire()
                self._begin(self._asked, request_id, partial(self._answer, request))

    async def _begin_watch(self, request_id: int, work: _Work) -> None:
        if self._room.watches <= 0:
            await self._say(request_id, QueueFull(f"{MAX_WATCHES} operations are watched already"))
            return
        self._room.watches -= 1
        self._begin(self._watches, request_id, work)

    def _begin(self, where: dict[int, asyncio.Task[None]], request_id: int, work: _Work) -> None:
        task = self._tasks.create_task(self._guarded(request_id, work))
        where[request_id] = task
        if where is self._watches:
            task.add_done_callback(lambda _task: self._watch_ended(request_id))
        else:
            task.add_done_callback(lambda _task: self._answered(request_id))
        if self._ended:
            task.cancel()

    def _watch_ended(self, request_id: int) -> None:
        del self._watches[request_id]
        self._room.watches += 1

    def _answered(self, request_id: int) -> None:
        del self._asked[request_id]
        self._may_ask.release()

    async def _guarded(self, request_id: int, work: _Work) -> None:
        try:
            await work()
        except SchedulerStops as failure:
            self.close(failure)  # the frontend asks again whoever is next
        except StatusError as failure:
            await self._say(request_id, failure)
        except Exception:
            log.exception("a frontend's request failed", frontend=self.name)
            await self._say(request_id, Internal())

    # The requests

    async def _submission(
        self, request_id: int, name: str, candidate: record_pb2.Candidate, inlining: Inlining
    ) -> None:  # fmt: skip
        if not candidate.HasField("run"):
            raise MalformedRequest("a candidate without a run")
        self._require_own(name, candidate.instance_name)
        await self._scheduler.submit(read_candidate(candidate), inlining, name)
        await self._states(request_id, name)

    async def _watch(self, request_id: int, name: str) -> None:
        await require_operation(self._scheduler, name, self._identity)
        await self._states(request_id, name)

    async def _states(self, request_id: int, name: str) -> None:
        async with aclosing(self._scheduler.watch(name, REFRESH_SECONDS)) as states:
            async for state in states:
                await self._say(request_id, state)

    async def _answer(self, request: _Request) -> None:
        match request.WhichOneof("request"):
            case "record":
                await self._record(request.record)
                await self._say(request.id, None)
            case "state":
                await require_operation(self._scheduler, request.state.name, self._identity)
                await self._say(request.id, await self._scheduler.state(request.state.name))
            case "cancel":
                await require_operation(self._scheduler, request.cancel.name, self._identity)
                await self._scheduler.cancel(request.cancel.name)
                await self._say(request.id, None)
            case "forget":
                await require_operation(self._scheduler, request.forget.name, self._identity)
                await self._scheduler.forget(request.forget.name)
                await self._say(request.id, None)
            case _:
                await self._say(request.id, await self._page(request.page))

    async def _record(self, record: _Request.Record) -> None:
        self._require_own(record.name, record.candidate.instance_name)
        response = re_pb2.ExecuteResponse()
        response.CopyFrom(record.response)
        await self._scheduler.record(
            read_candidate(record.candidate), read_inlining(record.inlining), response, record.name
        )

    async def _page(self, page: _Request.Page) -> _Answer.Page:
        if not self._identity.may_use(page.instance_name):
            raise NotAllowed("not allowed")
        stages = frozenset(stage for stage in Stage if int(stage) in set(page.stages))
        limit = max(1, min(page.limit, MAX_PAGE))
        answer = _Answer.Page()
        size_bytes = 0
        states = await self._scheduler.page(page.instance_name, stages, page.after, limit)
        for state in states:
            if size_bytes > PAGE_BYTES:
                answer.cut = True
                break
            written = write_state(state)
            size_bytes += written.ByteSize()
            answer.states.append(written)
        return answer

    def _require_own(self, name: str, instance_name: str) -> None:
        """Raises MalformedRequest and NotAllowed unless this is a name for an operation of an instance of this frontend."""
        self._instances.executable(instance_name, self._identity)
        prefix = operation_name(instance_name, "")
        if not name.startswith(prefix) or len(name) == len(prefix) or len(name) > MAX_NAME_CHARACTERS:
            raise MalformedRequest(f"operation name {name[:300]!r}, expected {prefix[:300]}ID")
