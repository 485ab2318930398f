"""The numbers that metrics and displays are made from."""

from __future__ import annotations

from rexec.scheduler.observer import Snapshot
from tests.scheduler.world import World


def waiting(world: World) -> dict[str, int]:
    return {name: load.waiting for name, load in world.broker.snapshot().platforms.items()}


def oldest(world: World) -> dict[str, float]:
    return {name: load.oldest_seconds for name, load in world.broker.snapshot().platforms.items()}


async def test_an_empty_scheduler(world: World) -> None:
    workers = {"ready": 0, "draining": 0, "away": 0, "quarantined": 0}
    assert world.broker.snapshot() == Snapshot({}, 0, 0, workers, 0, 0)


async def test_waiting_is_counted_by_platform_over_all_instances(world: World) -> None:
    linux = await world.action(platform=[("OSFamily", "linux")])
    for instance_name in ("main", ""):
        await world.execute(linux, instance_name=instance_name).next()
    await world.execute(await world.action("anywhere")).next()
    assert waiting(world) == {"OSFamily=linux": 2, "any platform": 1}


async def test_slots_and_runs_are_counted(world: World) -> None:
    worker = await world.worker(slots=4)
    await world.execute(await world.action()).next()
    await worker.lease()
    snapshot = world.broker.snapshot()
    assert (snapshot.slots, snapshot.busy_slots, snapshot.executing, snapshot.operations) == (4, 1, 1, 1)


async def test_a_task_that_nobody_waits_for_is_neither_in_line_nor_running(world: World) -> None:
    stream = world.execute(await world.action())
    await stream.next()
    await stream.close()
    snapshot = world.broker.snapshot()
    assert snapshot.platforms == {}
    assert (snapshot.executing, snapshot.operations, snapshot.parked) == (0, 1, 1)
    assert snapshot.reasons == {"parked": 1}


async def test_the_longest_wait_is_told_by_platform_whatever_its_priority(world: World) -> None:
    linux = [("OSFamily", "linux")]
    await world.execute(await world.action("first", platform=linux), priority=5).next()
    world.clock.advance(10)
    await world.execute(await world.action("urgent", platform=linux), priority=-5).next()
    world.clock.advance(3)
    await world.execute(await world.action("anywhere")).next()
    world.clock.advance(1)
    assert oldest(world) == {"OSFamily=linux": 14.0, "any platform": 1.0}


async def test_a_task_that_runs_waits_no_more(world: World) -> None:
    worker = await world.worker(slots=1)
    await world.execute(await world.action("first")).next()
    await worker.lease()
    world.clock.advance(10)
    assert oldest(world) == {}
    await world.execute(await world.action("second")).next()
    world.clock.advance(2)
    assert oldest(world) == {"any platform": 2.0}
