"""What a frontend still has of an operation when nobody follows it any more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import Message

from cas.errors import Unavailable
from protos.rexec.scheduler.v1 import frontends_pb2
from rexec.scheduler.clock import SystemClock, Timer
from rexec.scheduler.remote import UNCLAIMED_SECONDS, RemoteScheduler
from rexec.scheduler.scheduler import Inlining
from tests.scheduler.parted import Served, Wire, eventually
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
