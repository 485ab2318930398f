"""What a frontend keeps of an operation, and of the reasons why no scheduler is reached: no more than is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from google.protobuf.message import Message
from structlog.testing import capture_logs

from cas.errors import Unavailable
from protos.rexec.scheduler.v1 import frontends_pb2
from rexec.scheduler.clock import SystemClock, Timer
from rexec.scheduler.remote import UNCLAIMED_SECONDS, RemoteScheduler
from rexec.scheduler.scheduler import Inlining
from rexec.scheduler.scheduler_link import LinkBroken, SchedulerLink
from tests.scheduler.parted import Served, Wire, eventually, remote_over
from tests.scheduler.test_remote import NAME, run_by, waiters
from tests.scheduler.test_scheduler_contract import candidate, response, until_done
from tests.scheduler.world import GUARD_SECONDS, World


class CountingClock(SystemClock):
    """Counts the calls that are due in a long time."""

    def __init__(self) -> None:
        self.far = 0

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = super().call_at(when, callback)
        if when < self.monotonic() + UNCLAIMED_SECONDS - 1:
            return timer
        self.far += 1
        return _Counted(self, timer)


class _Counted:
    def __init__(self, clock: CountingClock, timer: Timer) -> None:
        self._clock = clock
        self._timer = timer

    def cancel(self) -> None:
        self._clock.far -= 1
        self._timer.cancel()


async def test_nothing_of_an_operation_is_kept_once_its_stream_has_ended(world: World) -> None:
    """Hundreds end each second, and an action and its response may be large."""
    wire, clock = Wire(), CountingClock()
    scheduler = RemoteScheduler([wire.dial], name="frontend", wait_seconds=GUARD_SECONDS, clock=clock)
    async with Served(world) as wire.server, scheduler:
        submitted = await scheduler.submit(candidate(), Inlining())
        recorded = await scheduler.record(candidate("other"), Inlining(), response())
        assert clock.far == 2
        await run_by(world)
        for name in (submitted, recorded):
            assert (await until_done(scheduler, name)).done
        assert clock.far == 0


async def test_a_state_that_cannot_be_read_is_not_waited_for(world: World) -> None:
    """A newer scheduler may say what this frontend does not know."""
    wire, clock = Wire(), CountingClock()
    scheduler = RemoteScheduler([wire.dial], name="frontend", wait_seconds=GUARD_SECONDS, clock=clock)

    def of_tomorrow(message: Message) -> None:
        if isinstance(message, frontends_pb2.ToFrontend):
            for answer in message.answers:
                answer.state.stage = 99  # type: ignore[assignment]  # no stage of today

    wire.on_receive = of_tomorrow
    async with Served(world) as wire.server, scheduler:
        with pytest.raises(Unavailable, match="stage 99"):
            await scheduler.submit(candidate(), Inlining(), NAME)
        await eventually(lambda: waiters(world) == 0)


async def test_the_log_says_once_why_no_scheduler_is_reached() -> None:
    attempts = 0

    @asynccontextmanager
    async def dial() -> AsyncIterator[SchedulerLink]:
        nonlocal attempts
        attempts += 1
        raise LinkBroken("not allowed" if attempts > 2 else "connection refused")
        yield

    with capture_logs() as lines:
        async with remote_over(dial):
            await eventually(lambda: attempts == 4)
    told = [line["reason"] for line in lines if line["log_level"] == "warning"]
    assert told == ["connection refused", "not allowed"]
