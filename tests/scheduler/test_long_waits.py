"""What the log is told of actions that wait for long: enough to look into it, and not a line for each."""

from __future__ import annotations

import pytest
import structlog

from rexec.scheduler import events as e
from rexec.scheduler.platform import Offer
from rexec.scheduler.settings import SchedulerSettings
from tests.scheduler.rules import LINUX, Driver, of_kind
from tests.scheduler.world import World

LONG = SchedulerSettings().long_wait_seconds


def test_one_line_for_a_platform_with_the_reason_and_again_after_as_long() -> None:
    driver = Driver()
    driver.attach()
    for _ in range(4):
        driver.submit(pairs=LINUX)
    assert of_kind(driver.pass_time(LONG - 1), e.TasksWaitLong) == []
    (told,) = of_kind(driver.pass_time(1), e.TasksWaitLong)
    assert (told.waiting, told.oldest_seconds) == (3, LONG)
    assert "busy" in told.reason
    assert len(of_kind(driver.pass_time(LONG), e.TasksWaitLong)) == 1


def test_nothing_is_said_of_many_that_each_wait_briefly() -> None:
    driver = Driver()
    worker = driver.attach()
    driver.submit(pairs=LINUX)
    effects: list[e.Effect] = []
    for _ in range(30):
        driver.submit(pairs=LINUX)
        effects += driver.pass_time(LONG / 10)
        driver.finish(worker)
        driver.credit(worker, 1)
    assert of_kind(effects, e.TasksWaitLong) == []


def test_that_no_worker_fits_is_told_elsewhere() -> None:
    driver = Driver()
    driver.submit(pairs=LINUX)
    effects = driver.pass_time(LONG)
    assert of_kind(effects, e.TasksUnserved)
    assert not of_kind(effects, e.TasksWaitLong)


def test_what_nothing_waits_with_any_more_is_not_looked_at_again() -> None:
    driver = Driver()
    name = driver.submit(pairs=LINUX)
    driver.do(e.Cancel(name))
    driver.pass_time(LONG)
    assert driver.queue.state.long_waits.names == {}
    assert driver.queue.state.long_waits.requirements == {}
    driver.do(e.WorkerAttached("s", "w", 1, Offer(LINUX)))
    driver.submit(pairs=LINUX)
    assert len(of_kind(driver.pass_time(LONG), e.TasksWaitLong)) == 1


async def test_the_log_says_how_many_how_long_and_why() -> None:
    async with World(SchedulerSettings(long_wait_seconds=5)) as world:
        worker = await world.worker()
        await world.execute(await world.action("first")).next()
        await worker.lease()
        await world.execute(await world.action("second")).next()
        with structlog.testing.capture_logs() as lines:
            world.clock.advance(5)
    (line,) = (line for line in lines if line["event"] == "actions wait for long")
    assert (line["actions"], line["oldest_seconds"], line["log_level"]) == (1, 5, "warning")
    assert "busy" in line["reason"]


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_long_wait_takes_some_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="long_wait_seconds"):
        SchedulerSettings(long_wait_seconds=seconds)
