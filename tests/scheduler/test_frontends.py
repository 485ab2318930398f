"""What a frontend may say to the scheduler, and what becomes of one that says something else or does not listen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from google.rpc import status_pb2

from cas.context import Identity, RequestContext
from cas.errors import Code, MalformedRequest, NotAllowed, OffsetOutOfRange, StatusError, Unavailable
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import frontends_pb2, record_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler import frontend_session
from rexec.scheduler.frontends import MAX_REQUESTS, FrontendsService
from rexec.scheduler.scheduler import Inlining
from rexec.scheduler.wire import write_candidate
from tests.scheduler.parted import eventually
from tests.scheduler.test_scheduler_contract import candidate
from tests.scheduler.world import GUARD_SECONDS, HandClock, World

Request = frontends_pb2.FrontendRequest
FRONT = Identity("frontend")
ELSEWHERE = Identity("elsewhere", instance_names=frozenset({""}))


class Frontend:
    """The frontend's end of a Connect stream, following the test's script."""

    def __init__(self, service: FrontendsService, identity: Identity = FRONT, session_id: str = "s1") -> None:
        self.service = service
        self._said: asyncio.Queue[frontends_pb2.FromFrontend | None] = asyncio.Queue()
        self.stream: AsyncGenerator[frontends_pb2.ToFrontend, None] = service.Connect(
            self._requests(), RequestContext(peer="fake", identity=identity)
        )
        self.hello = frontends_pb2.FrontendHello(frontend_name="f", session_id=session_id)

    async def _requests(self) -> AsyncIterator[frontends_pb2.FromFrontend]:
        while (message := await self._said.get()) is not None:
            yield message

    def say(self, *requests: Request, hello: frontends_pb2.FrontendHello | None = None) -> None:
        self._said.put_nowait(frontends_pb2.FromFrontend(hello=hello, requests=requests))

    def end(self) -> None:
        self._said.put_nowait(None)

    async def hear(self) -> frontends_pb2.ToFrontend:
        async with asyncio.timeout(GUARD_SECONDS):
            return await anext(self.stream)

    async def answers(self, count: int) -> dict[int, frontends_pb2.FrontendAnswer]:
        """The next answers, by request id."""
        found: dict[int, frontends_pb2.FrontendAnswer] = {}
        while len(found) < count:
            found |= {answer.id: answer for answer in (await self.hear()).answers}
        return found

    async def failure(self, request: Request) -> status_pb2.Status:
        """What the request is refused with."""
        self.say(request)
        answer = (await self.answers(1))[request.id]
        assert answer.WhichOneof("answer") == "failure", answer
        return answer.failure

    async def connect(self) -> Frontend:
        self.say(hello=self.hello)
        assert (await self.hear()).HasField("welcome")
        return self


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def service(world: World, clock: HandClock) -> AsyncIterator[FrontendsService]:
    async with FrontendsService(world.instances, world.broker, world.workers, clock, name="here", generation=3) as made:
        yield made


@pytest.fixture
async def frontend(service: FrontendsService) -> AsyncIterator[Frontend]:
    frontend = await Frontend(service).connect()
    async with aclosing(frontend.stream):
        yield frontend


def submit(request_id: int, operation: str = "main/operations/a", **changes: Any) -> Request:
    message = write_candidate(candidate(**changes))
    return Request(id=request_id, submit=Request.Submit(name=operation, candidate=message))


def named(request_id: int, field: str, name: str = "main/operations/a") -> Request:
    return Request(id=request_id, **{field: Request.NamedOperation(name=name)})  # type: ignore[arg-type]


async def test_the_scheduler_says_who_it_is_and_then_that_it_lives(service: FrontendsService, clock: HandClock) -> None:
    frontend = Frontend(service)
    frontend.say(hello=frontend.hello)
    welcome = (await frontend.hear()).welcome
    assert (welcome.scheduler_name, welcome.generation, welcome.heartbeat_interval.seconds) == ("here", 3, 2)
    assert list(service.frontends) == ["f"]
    heard = asyncio.ensure_future(frontend.hear())
    await clock.timer_set()
    clock.advance(2.0)
    assert await heard == frontends_pb2.ToFrontend()
    await frontend.stream.aclose()
    assert not service.frontends


@pytest.mark.parametrize(
    "hello",
    [
        None,
        frontends_pb2.FrontendHello(session_id="s"),
        frontends_pb2.FrontendHello(frontend_name="f"),
        frontends_pb2.FrontendHello(frontend_name="f" * 10_000, session_id="s"),
        frontends_pb2.FrontendHello(frontend_name="f", session_id="s" * 10_000),
    ],
)
async def test_who_does_not_say_who_he_is_is_refused(
    service: FrontendsService, hello: frontends_pb2.FrontendHello | None
) -> None:
    frontend = Frontend(service)
    frontend.say(hello=hello)
    with pytest.raises(MalformedRequest, match="is empty or longer than"):
        await frontend.hear()


async def test_who_may_not_be_a_frontend_is_refused_everything(service: FrontendsService) -> None:
    nobody = RequestContext(identity=Identity("client", may_front=False))

    async def nothing() -> AsyncIterator[Any]:
        return
        yield

    streams: list[AsyncGenerator[Any, None]] = [
        service.Connect(nothing(), nobody),
        service.ReadLog(frontends_pb2.ReadLogRequest(), nobody),
        service.Attach(nothing(), nobody),
    ]
    for stream in streams:
        with pytest.raises(NotAllowed):
            await anext(stream)


async def test_a_newer_stream_of_the_same_frontend_takes_the_place_of_the_older_one(
    service: FrontendsService, frontend: Frontend, world: World
) -> None:
    frontend.say(submit(1))
    await frontend.answers(1)
    newer = await Frontend(service).connect()
    with pytest.raises(Unavailable, match="newer stream"):
        await frontend.hear()
    newer.say(Request(id=1, watch=Request.Watch(name="main/operations/a")))
    await newer.answers(1)
    await eventually(lambda: world.broker._queue.operations["main/operations/a"].waiters == 1)
    await newer.stream.aclose()


async def test_an_id_that_is_in_use_ends_the_stream(frontend: Frontend) -> None:
    frontend.say(submit(1), submit(1, "main/operations/b"))
    with pytest.raises(MalformedRequest, match="request id 1 is in use"):
        await frontend.answers(2)


async def test_more_requests_than_a_message_may_have_end_the_stream(frontend: Frontend) -> None:
    frontend.say(*(Request(id=number) for number in range(MAX_REQUESTS + 1)))
    with pytest.raises(MalformedRequest, match="10001 requests at once"):
        await frontend.hear()


async def test_nonsense_is_refused_request_by_request(frontend: Frontend) -> None:
    no_run = write_candidate(candidate())
    no_run.ClearField("run")
    bad_digest = write_candidate(candidate())
    bad_digest.action_digest.hash = "?"
    cases = [
        Request(),
        submit(0, "operations/a"),
        submit(0, "main/operations/"),
        submit(0, "main/operations/" + "x" * 5_000),
        submit(0, "elsewhere/operations/a", instance_name="elsewhere"),
        Request(submit=Request.Submit(name="main/operations/a", candidate=no_run)),
        Request(submit=Request.Submit(name="main/operations/a", candidate=bad_digest)),
        Request(record=Request.Record(name="x", candidate=write_candidate(candidate()))),
        Request(record=Request.Record(name="main/operations/a", candidate=record_pb2.Candidate(instance_name="main"))),
    ]
    for number, request in enumerate(cases, 1):
        request.id = number
        assert (number, (await frontend.failure(request)).code) == (number, Code.INVALID_ARGUMENT)
    frontend.say(submit(100))
    assert (await frontend.answers(1))[100].HasField("state")


async def test_a_frontend_of_one_instance_has_no_part_in_others(service: FrontendsService, world: World) -> None:
    await world.broker.submit(candidate(), Inlining(), "main/operations/a")
    frontend = await Frontend(service, ELSEWHERE).connect()
    for number, request in enumerate(
        [
            submit(0),
            Request(record=Request.Record(name="main/operations/b", candidate=write_candidate(candidate()))),
            Request(watch=Request.Watch(name="main/operations/a")),
            named(0, "state"),
            named(0, "cancel"),
            named(0, "forget"),
            Request(page=Request.Page(instance_name="main", stages=[2, 3, 4], limit=10)),  # type: ignore[list-item]
        ],
        1,
    ):
        request.id = number
        assert (number, (await frontend.failure(request)).code) == (number, Code.PERMISSION_DENIED)
    frontend.say(submit(100, "operations/a", instance_name=""))
    assert (await frontend.answers(1))[100].HasField("state")
    await frontend.stream.aclose()


async def test_a_frontend_that_does_not_listen_is_owed_a_bounded_number_of_answers(
    frontend: Frontend, world: World
) -> None:
    names = [f"main/operations/{number}" for number in range(2 * frontend_session.MAX_UNSENT)]
    (session,) = frontend.service._open
    for number, name in enumerate(names):
        frontend.say(submit(number, name, name=f"action {number % 10}"))
    operations = world.broker._queue.operations
    await eventually(lambda: len(operations) == len(names) and all(op.waiters for op in operations.values()))
    await eventually(lambda: len(session._unsent) == frontend_session.MAX_UNSENT)
    for name in names:
        await world.broker.cancel(name)
    ended: set[int] = set()
    while len(ended) < len(names):
        assert len(session._unsent) <= frontend_session.MAX_UNSENT
        completed = (a for a in (await frontend.hear()).answers if a.state.stage == re_pb2.ExecutionStage.COMPLETED)
        ended.update(answer.id for answer in completed)


async def test_requests_beyond_those_that_may_be_answered_at_once_wait(
    frontend: Frontend,
) -> None:
    count = frontend_session.MAX_ASKED + frontend_session.MAX_UNSENT + 500
    frontend.say(submit(1 << 40))
    frontend.say(*(named(number, "state") for number in range(count)))
    (session,) = frontend.service._open
    await eventually(lambda: len(session._asked) == frontend_session.MAX_ASKED)
    assert len(await frontend.answers(count + 1)) == count + 1


async def test_all_frontends_together_watch_a_bounded_number_of_operations(
    frontend: Frontend, service: FrontendsService
) -> None:
    service._room.watches = 1
    frontend.say(submit(1))
    await frontend.answers(1)
    failure = await frontend.failure(submit(2, "main/operations/b"))
    assert failure.code == Code.RESOURCE_EXHAUSTED
    assert failure.details
    frontend.say(Request(id=3, unwatch=Request.Unwatch(id=1)))
    await eventually(lambda: service._room.watches == 1)
    frontend.say(submit(4, "main/operations/b"))
    assert (await frontend.answers(1))[4].HasField("state")


async def test_a_kept_action_does_not_keep_the_batch_that_it_came_in(frontend: Frontend, world: World) -> None:
    """Messages hold on to the whole that they were parsed from."""
    batch = frontends_pb2.FromFrontend.FromString(
        frontends_pb2.FromFrontend(requests=[submit(1), submit(2, "main/operations/b", name="b")]).SerializeToString()
    )
    frontend._said.put_nowait(batch)
    await frontend.answers(2)
    kept = world.broker._queue.operations["main/operations/a"].task.candidate.payload
    batch.requests[0].submit.candidate.run.command.arguments[0] = "changed"
    assert kept.command.arguments == ["a"]  # type: ignore[attr-defined]


async def test_what_is_asked_is_answered(frontend: Frontend, world: World) -> None:
    record = Request.Record(
        name="main/operations/done",
        candidate=write_candidate(candidate("b")),
        response=re_pb2.ExecuteResponse(message="kept"),
    )
    frontend.say(submit(1), Request(id=2, record=record))
    assert (await frontend.answers(2))[2].HasField("done")
    page = Request.Page(instance_name="main", stages=[2, 3, 4, 77], limit=10)  # type: ignore[list-item]
    frontend.say(named(3, "state", "main/operations/done"), named(4, "cancel"), Request(id=5, page=page))
    answers = await frontend.answers(4)
    assert answers[3].state.response.message == "kept"
    assert answers[4].HasField("done")
    assert answers[1].state.stage == re_pb2.ExecutionStage.COMPLETED
    assert [state.name for state in answers[5].page.states] == ["main/operations/a", "main/operations/done"]
    frontend.say(named(6, "forget", "main/operations/done"), named(7, "state", "main/operations/none"))
    answers = await frontend.answers(2)
    assert answers[6].HasField("done")
    assert answers[7].failure.code == Code.NOT_FOUND


async def test_the_end_of_a_frontends_side_is_the_end_of_the_stream(frontend: Frontend) -> None:
    frontend.end()
    with pytest.raises(StopAsyncIteration):
        await frontend.hear()


async def test_when_the_scheduler_stops_the_stream_says_so_and_no_operation_is_said_to_have_failed(
    frontend: Frontend, world: World
) -> None:
    frontend.say(submit(1))
    await frontend.answers(1)
    await world.stop()
    with pytest.raises(StatusError) as caught:
        await frontend.hear()
    assert caught.value.code is Code.UNAVAILABLE


async def test_a_frontend_without_a_word_does_not_keep_the_scheduler_from_stopping(world: World) -> None:
    async with FrontendsService(world.instances, world.broker, world.workers, HandClock()) as service:
        frontend = Frontend(service)
        waiting = asyncio.ensure_future(frontend.hear())
        await asyncio.sleep(0)
    with pytest.raises(StatusError):
        await waiting


@pytest.mark.parametrize(
    ("request_", "failure"),
    [
        (frontends_pb2.ReadLogRequest(operation_name="main/operations/a"), MalformedRequest),
        (
            frontends_pb2.ReadLogRequest(operation_name="main/operations/a", stream=worker_pb2.STDOUT, offset=-1),
            OffsetOutOfRange,
        ),
        (
            frontends_pb2.ReadLogRequest(
                operation_name="main/operations/a", stream=worker_pb2.STDOUT, offset=(1 << 63) - 1
            ),
            OffsetOutOfRange,
        ),
    ],
)
async def test_a_log_that_cannot_be_read_is_refused(
    service: FrontendsService, request_: frontends_pb2.ReadLogRequest, failure: type[StatusError]
) -> None:
    with pytest.raises(failure):
        await anext(service.ReadLog(request_, RequestContext()))


async def test_a_worker_comes_through_a_frontend_with_the_instances_of_both(
    service: FrontendsService, world: World
) -> None:
    async def said(*names: str) -> AsyncIterator[worker_pb2.FromWorker]:
        yield worker_pb2.FromWorker(
            hello=worker_pb2.Hello(worker_name="w", session_id="s", slots=1, instance_names=names)
        )
        await asyncio.Event().wait()

    async with aclosing(service.Attach(said(), RequestContext(identity=ELSEWHERE))) as messages:
        assert (await anext(messages)).HasField("welcome")
        (worker,) = world.broker._queue.fleet.workers.values()
        assert worker.offer.instance_names == {""}
    with pytest.raises(NotAllowed):
        await anext(service.Attach(said("main"), RequestContext(identity=ELSEWHERE)))
