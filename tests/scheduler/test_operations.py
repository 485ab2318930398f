"""google.longrunning.Operations over executions."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from google.longrunning import operations_pb2
from google.protobuf import duration_pb2

from cas.context import Identity, RequestContext
from cas.digest import Digest
from cas.errors import Code, MalformedRequest, NotAllowed, OperationNotFound
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler import events as e
from rexec.scheduler.task import Candidate, Outcome, Stage
from tests.scheduler.world import World, response_of, stage_of

STRANGER = RequestContext(identity=Identity("stranger", may_execute=False))


compared: Counter[str] = Counter()


class Name(str):
    """The name of an operation that counts how often it is put in order."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        compared["<"] += 1
        return str(self) < str(other)


async def names(world: World, **request: object) -> list[str]:
    """All names in the listing, page by page."""
    listed: list[str] = []
    while True:
        message = operations_pb2.ListOperationsRequest(**request)
        answer = await world.operations.ListOperations(message, RequestContext())
        listed += [operation.name for operation in answer.operations]
        request["page_token"] = answer.next_page_token
        if not answer.next_page_token:
            return listed


class TestGet:
    async def test_12_an_operation_can_be_looked_at(self, world: World) -> None:
        stream = world.execute(await world.action())
        operation = await stream.next()
        assert await world.get(stream.name) == operation

    async def test_12_an_unknown_one_is_not_found(self, world: World) -> None:
        with pytest.raises(OperationNotFound):
            await world.get("main/operations/never")

    async def test_who_may_not_execute_may_not_look(self, world: World) -> None:
        with pytest.raises(NotAllowed):
            await world.operations.GetOperation(operations_pb2.GetOperationRequest(), STRANGER)
        with pytest.raises(NotAllowed):
            await world.operations.ListOperations(operations_pb2.ListOperationsRequest(), STRANGER)
        with pytest.raises(NotAllowed):
            await world.operations.CancelOperation(operations_pb2.CancelOperationRequest(), STRANGER)
        with pytest.raises(NotAllowed):
            await world.operations.DeleteOperation(operations_pb2.DeleteOperationRequest(), STRANGER)
        with pytest.raises(NotAllowed):
            await world.operations.WaitOperation(operations_pb2.WaitOperationRequest(), STRANGER)


class TestList:
    async def test_12_operations_are_listed_page_by_page(self, world: World) -> None:
        started = []
        for number in range(7):
            stream = world.execute(await world.action(str(number)))
            started.append((await stream.next()).name)
        for page_size in (1, 3, 7, 100):
            assert await names(world, name="main", page_size=page_size) == sorted(started)

    async def test_a_page_costs_no_sorting_of_all_operations(self, world: World) -> None:
        numbers = list(range(5000))
        random.Random(12).shuffle(numbers)
        for number in numbers:
            outcome = Outcome(response=re_pb2.ExecuteResponse())
            candidate = Candidate("main", Digest.of(b""))
            world.broker._apply(e.Record(Name(f"{number:04}"), str(number), candidate, outcome))
        compared.clear()
        page = await world.broker.page("main", frozenset(Stage), "1", 10)
        assert [state.name for state in page] == [f"{number:04}" for number in range(1000, 1010)]
        # To sort the 4,000 after "1" takes some 40,000.
        assert compared["<"] < 8000

    async def test_12_each_instance_has_its_own(self, world: World) -> None:
        mine = world.execute(await world.action(), instance_name="main")
        other = world.execute(await world.action(), instance_name="")
        await mine.next()
        await other.next()
        assert await names(world, name="main/operations") == [mine.name]
        assert await names(world, name="operations") == [other.name]
        assert await names(world, name="") == [other.name]

    async def test_12_a_filter_picks_a_stage(self, world: World) -> None:
        done, waiting = world.execute(await world.action("1")), world.execute(await world.action("2"))
        await done.next()
        await waiting.next()
        await world.cancel(done.name)
        assert await names(world, name="main", filter="stage=QUEUED") == [waiting.name]
        assert await names(world, name="main", filter="stage = COMPLETED") == [done.name]
        assert await names(world, name="main", filter="stage=EXECUTING") == []

    @pytest.mark.parametrize(
        ("request_", "reason"),
        [
            ({"name": "nowhere"}, "unknown instance name 'nowhere'"),
            ({"name": "main", "page_size": -1}, "page_size is -1"),
            ({"name": "main", "page_token": "&"}, "page_token '&'"),
            ({"name": "main", "page_token": "/w=="}, "page_token"),
            ({"name": "main", "filter": "colour=red"}, "filter 'colour=red'"),
            ({"name": "main", "filter": "stage=UNHEARD"}, "filter"),
        ],
    )
    async def test_a_malformed_request_says_what_is_wrong(
        self, world: World, request_: dict[str, object], reason: str
    ) -> None:
        with pytest.raises(MalformedRequest, match=reason):
            await names(world, **request_)


class TestCancel:
    async def test_12_cancelling_ends_the_stream_and_is_idempotent(self, world: World) -> None:
        stream = world.execute(await world.action())
        await stream.next()
        await world.cancel(stream.name)
        await world.cancel(stream.name)
        assert (await stream.response()).status.code == Code.CANCELLED
        assert response_of(await world.get(stream.name)).status.code == Code.CANCELLED

    async def test_12_cancelling_what_is_complete_changes_nothing(self, world: World) -> None:
        worker = await world.worker()
        stream = world.execute(await world.action())
        await stream.next()
        await worker.finish(await worker.lease())
        await stream.response()
        await world.cancel(stream.name)
        assert response_of(await world.get(stream.name)).status.code == Code.OK

    async def test_12_cancelling_an_unknown_one_is_not_found(self, world: World) -> None:
        with pytest.raises(OperationNotFound):
            await world.cancel("main/operations/never")


class TestDelete:
    async def test_a_completed_operation_is_forgotten_and_a_live_one_goes_on(self, world: World) -> None:
        stream = world.execute(await world.action())
        await stream.next()
        request = operations_pb2.DeleteOperationRequest(name=stream.name)
        await world.operations.DeleteOperation(request, RequestContext())
        assert not (await world.get(stream.name)).done
        await world.cancel(stream.name)
        await world.operations.DeleteOperation(request, RequestContext())
        with pytest.raises(OperationNotFound):
            await world.get(stream.name)


class TestWait:
    async def test_waiting_returns_the_completed_operation(self, world: World) -> None:
        stream = world.execute(await world.action())
        await stream.next()
        request = operations_pb2.WaitOperationRequest(name=stream.name)
        waiting = asyncio.create_task(world.operations.WaitOperation(request, RequestContext()))
        await world.cancel(stream.name)
        assert (await waiting).done

    async def test_waiting_ends_with_its_timeout(self, world: World) -> None:
        stream = world.execute(await world.action())
        await stream.next()
        request = operations_pb2.WaitOperationRequest(name=stream.name, timeout=duration_pb2.Duration(seconds=5))
        waiting = asyncio.create_task(world.operations.WaitOperation(request, RequestContext()))
        await world.clock.timer_set()
        world.clock.advance(5)
        operation = await waiting
        assert not operation.done
        assert stage_of(operation) == re_pb2.ExecutionStage.QUEUED

    async def test_waiting_for_an_unknown_one_is_not_found(self, world: World) -> None:
        with pytest.raises(OperationNotFound):
            await world.operations.WaitOperation(operations_pb2.WaitOperationRequest(name="x"), RequestContext())
