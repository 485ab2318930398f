"""`rexec drain --wait`: who is waited for, what is said meanwhile, and when it gives up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grpc
import pytest
from click.testing import CliRunner
from grpc import aio

from protos.rexec.scheduler.v1 import status_pb2
from rexec.cli import main
from rexec.drain_wait import INTERVAL_SECONDS, NAMED, PATIENCE_SECONDS, wait_until_gone
from rexec.status_client import CannotShow

Look = Sequence[status_pb2.FoundWorker] | CannotShow


class Server:
    """Gives one picture after the other, the last one for ever; its clock moves only while somebody pauses."""

    def __init__(self, *looks: Look) -> None:
        self._looks = list(looks)
        self.now = 100.0
        self.said: list[str] = []

    async def look(self) -> Sequence[status_pb2.FoundWorker]:
        look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        if isinstance(look, CannotShow):
            raise look
        return look

    async def pause(self, seconds: float) -> None:
        self.now += seconds

    async def wait(self, *told: str, timeout_seconds: float | None = None, and_all_that_leave: bool = False) -> bool:
        return await wait_until_gone(
            self.look, frozenset(told), self.said.append, timeout_seconds=timeout_seconds,
            and_all_that_leave=and_all_that_leave, clock=lambda: self.now, pause=self.pause,
        )  # fmt: skip


def worker(
    name: str, session: str = "", state: status_pb2.WorkerState = status_pb2.DRAINING, actions: int = 0
) -> status_pb2.FoundWorker:
    return status_pb2.FoundWorker(
        name=name, worker_id=session or f"{name}-1", state=state, running=[status_pb2.HeldTask()] * actions
    )


def failed(code: grpc.StatusCode) -> CannotShow:
    failure = CannotShow(code.name.lower())
    failure.__cause__ = aio.AioRpcError(code, aio.Metadata(), aio.Metadata())
    return failure


async def test_what_changes_is_said_once_until_all_have_left() -> None:
    both = [worker("a", actions=1), worker("b", actions=2)]
    server = Server(both, both, [worker("b", actions=2)], [worker("b", state=status_pb2.AWAY)], [])
    assert await server.wait("a-1", "b-1")
    assert server.said == [
        "0 of 2 have left; still there: a (1 action), b (2 actions)",
        "1 of 2 have left; still there: b (2 actions)",
        "1 of 2 have left; still there: b (away)",
        "all 2 have left",
    ]


async def test_a_worker_that_was_started_again_under_the_same_name_is_another_one() -> None:
    server = Server([worker("a", "a-2", status_pb2.READY), worker("z", "z-1", status_pb2.READY)])
    assert await server.wait("a-1")
    assert server.said == ["it has left"]


async def test_it_gives_up_when_time_is_over_and_not_before() -> None:
    server = Server([worker("a", actions=1)])
    assert not await server.wait("a-1", timeout_seconds=2.5 * INTERVAL_SECONDS)
    assert server.now == 100 + 2.5 * INTERVAL_SECONDS


async def test_without_time_it_looks_once() -> None:
    server = Server([worker("a")])
    assert not await server.wait("a-1", timeout_seconds=0)
    assert server.now == 100
    assert await Server([]).wait("a-1", timeout_seconds=0)


async def test_many_are_counted_and_a_few_named() -> None:
    names = [f"w{number}" for number in range(NAMED + 3)]
    server = Server([worker(name) for name in names], [])
    assert await server.wait(*[f"{name}-1" for name in names])
    assert "w4 (0 actions) and 3 more" in server.said[0]


async def test_of_more_workers_than_are_listed_all_that_leave_are_waited_for() -> None:
    there = [worker("a"), worker("unlisted"), worker("stays", state=status_pb2.READY)]
    server = Server(there, there[1:], there[2:])
    assert await server.wait("a-1", and_all_that_leave=True)
    assert server.said[1] == "1 of 2 have left; still there: unlisted (0 actions)"
    assert server.said[2] == "all 2 have left"


async def test_a_server_that_is_started_again_is_waited_for() -> None:
    away = failed(grpc.StatusCode.UNAVAILABLE)
    server = Server([worker("a")], *[away] * 20, [worker("a")], *[away] * 50, [])
    assert await server.wait("a-1")
    assert server.said.count("unavailable; trying again") == 2


@pytest.mark.parametrize(
    ("code", "waited"),
    [
        (grpc.StatusCode.UNAVAILABLE, lambda seconds: PATIENCE_SECONDS < seconds <= PATIENCE_SECONDS + INTERVAL_SECONDS),
        (grpc.StatusCode.PERMISSION_DENIED, lambda seconds: seconds == 0),
    ],
)  # fmt: skip
async def test_a_server_that_stays_away_or_refuses_is_not(
    code: grpc.StatusCode, waited: Callable[[float], bool]
) -> None:
    server = Server(failed(code))
    with pytest.raises(CannotShow):
        await server.wait("a-1")
    assert waited(server.now - 100)


def test_a_timeout_without_waiting_is_refused() -> None:
    result = CliRunner().invoke(main, ["drain", "--all", "--timeout", "5"])
    assert (result.exit_code, "--wait" in result.output) == (2, True)
