"""Autoscalers that follow: when they are told, who may, and what becomes of what they say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cas.context import ANYONE, Identity, RequestContext
from cas.errors import Code, MalformedRequest, NotAllowed, ResourceExhausted, SchedulerStops, StatusError
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.scheduler.autoscaling import (
    COALESCE_SECONDS,
    LEAST_MORE_WORK_SECONDS,
    LEAST_SECONDS,
    MAX_FOLLOWERS,
    MOST_SECONDS,
)
from rexec.scheduler.autoscaling_service import AutoscalingService
from rexec.scheduler.category import Category
from rexec.scheduler.pools import KEPT_SECONDS
from tests.scheduler.test_durability import restarted
from tests.scheduler.world import GUARD_SECONDS, Stream, World, stage_of

LINUX = [("OSFamily", "linux")]


class Autoscaler:
    """The other end of a Follow stream."""

    def __init__(self, world: World, identity: Identity = ANYONE) -> None:
        self._said: asyncio.Queue[autoscaling_pb2.FromAutoscaler | None] = asyncio.Queue()
        self.stream = AutoscalingService(world.broker).Follow(self._requests(), RequestContext(identity=identity))

    async def _requests(self) -> AsyncIterator[autoscaling_pb2.FromAutoscaler]:
        while (message := await self._said.get()) is not None:
            yield message

    def say(
        self, *pools: autoscaling_pb2.Pool, leave: autoscaling_pb2.Leave | None = None
    ) -> None:  # fmt: skip
        said = autoscaling_pb2.Pools(pools=pools) if leave is None else None
        self._said.put_nowait(autoscaling_pb2.FromAutoscaler(pools=said, leave=leave))

    def end(self) -> None:
        self._said.put_nowait(None)

    async def next(self) -> autoscaling_pb2.ToAutoscaler:
        async with asyncio.timeout(GUARD_SECONDS):
            return await anext(self.stream)


def pool(name: str = "linux", target: int = 0) -> autoscaling_pb2.Pool:
    linux = re_pb2.Platform.Property(name="OSFamily", value="linux")
    return autoscaling_pb2.Pool(name=name, properties=[linux], slots=1, max=4, target=target)


async def queued(world: World, text: str = "true") -> Stream:
    """An action that a client waits for."""
    stream = world.execute(await world.action(text, platform=LINUX))
    await stream.next()
    return stream


# When


class Watched:
    """A follower whose messages are counted by time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.follower = world.broker.autoscaling.follow()
        self._snapshots = self.follower.snapshots()
        self.seen: list[autoscaling_pb2.ToAutoscaler] = []
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for snapshot in self._snapshots:
            self.seen.append(snapshot)

    async def after(self, seconds: float) -> int:
        """How many messages there were when so much more time has passed."""
        self.world.clock.advance(seconds)
        for _ in range(5):
            await asyncio.sleep(0)
        return len(self.seen)

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._snapshots.aclose()


async def test_a_change_is_told_at_once_after_a_quiet_time_and_more_rarely_while_things_change(world: World) -> None:
    watched = Watched(world)
    assert await watched.after(0) == 1
    assert not watched.seen[0].waiting
    await watched.after(1)
    first = await queued(world, "1")
    assert await watched.after(0) == 1
    assert await watched.after(COALESCE_SECONDS + 0.001) == 2
    assert [group.tasks for group in watched.seen[-1].waiting] == [1]
    await queued(world, "2")  # more work
    assert await watched.after(LEAST_MORE_WORK_SECONDS - 0.01) == 2
    assert await watched.after(0.02) == 3
    await world.cancel(first.name)  # less
    assert await watched.after(LEAST_SECONDS - 0.05) == 3
    assert await watched.after(0.05) == 4
    assert [group.tasks for group in watched.seen[-1].waiting] == [1]
    await watched.close()


async def test_without_a_change_it_is_told_every_few_seconds(world: World) -> None:
    watched = Watched(world)
    assert await watched.after(MOST_SECONDS - 0.1) == 1
    assert await watched.after(0.2) == 2
    assert await watched.after(MOST_SECONDS) == 3
    await watched.close()


async def test_workers_that_come_and_go_are_told(world: World) -> None:
    watched = Watched(world)
    await watched.after(1)
    worker = await world.worker("w1")
    await watched.after(COALESCE_SECONDS + 0.001)
    (attached,) = watched.seen[-1].workers
    assert attached.name == "w1"
    assert attached.idle_seconds == pytest.approx(COALESCE_SECONDS)
    await queued(world)
    lease = await worker.lease()
    await watched.after(LEAST_SECONDS)
    assert [each.busy_slots for each in watched.seen[-1].workers] == [1]
    await worker.finish(lease)
    await watched.after(LEAST_SECONDS)
    assert [each.busy_slots for each in watched.seen[-1].workers] == [0]
    worker.end()
    assert [message async for message in worker.stream] == []
    await watched.after(LEAST_SECONDS)
    assert [each.away for each in watched.seen[-1].workers] == [True]
    await watched.close()


async def test_whoever_reads_slowly_gets_the_latest_state_alone(world: World) -> None:
    snapshots = world.broker.autoscaling.follow().snapshots()
    assert not (await anext(snapshots)).waiting
    for number in range(3):
        await queued(world, f"{number}")
        world.clock.advance(1)
    assert [group.tasks for group in (await anext(snapshots)).waiting] == [3]
    async with asyncio.timeout(GUARD_SECONDS):
        waits = asyncio.ensure_future(anext(snapshots))
        await asyncio.sleep(0)
        assert not waits.done()
        world.clock.advance(MOST_SECONDS)
        await waits
    await snapshots.aclose()


async def test_all_who_follow_are_told_the_same_which_is_put_together_once(world: World) -> None:
    first, second = Watched(world), Watched(world)
    assert (await first.after(0), await second.after(0)) == (1, 1)
    await queued(world)
    world.clock.advance(1)
    assert (await first.after(0), await second.after(0)) == (2, 2)
    assert first.seen[-1] is second.seen[-1]
    await first.close()
    await second.close()


async def test_nothing_is_put_together_while_nobody_follows(world: World) -> None:
    await queued(world, "1")
    assert not world.broker.autoscaling.latest.waiting
    watched = Watched(world)
    await watched.after(0)
    await watched.close()
    latest = world.broker.autoscaling.latest
    assert [group.tasks for group in latest.waiting] == [1]
    await queued(world, "2")
    world.clock.advance(60)
    assert world.broker.autoscaling.latest is latest
    assert not world.broker.autoscaling.followed


async def test_a_glance_sees_what_there_is_now_and_is_not_made_anew_again_and_again(world: World) -> None:
    autoscaling = world.broker.autoscaling
    assert not autoscaling.glance().waiting
    await queued(world, "1")
    assert not autoscaling.glance().waiting
    world.clock.advance(LEAST_MORE_WORK_SECONDS)
    seen = autoscaling.glance()
    assert [group.tasks for group in seen.waiting] == [1]
    world.clock.advance(60)
    assert autoscaling.latest is seen


async def test_who_follows_just_after_a_glance_hears_of_what_has_changed_since(world: World) -> None:
    world.broker.autoscaling.glance()
    await queued(world)
    watched = Watched(world)
    assert await watched.after(0) == 1
    assert await watched.after(LEAST_MORE_WORK_SECONDS) == 2
    assert [group.tasks for group in watched.seen[-1].waiting] == [1]
    await watched.close()


async def test_when_the_scheduler_stops_the_stream_ends_as_those_of_workers(world: World) -> None:
    autoscaler = Autoscaler(world)
    await autoscaler.next()
    await world.stop()
    with pytest.raises(SchedulerStops):
        await autoscaler.next()
    with pytest.raises(SchedulerStops):
        world.broker.autoscaling.follow()


async def test_only_so_many_may_follow(world: World) -> None:
    followers = [world.broker.autoscaling.follow() for _ in range(MAX_FOLLOWERS)]
    with pytest.raises(ResourceExhausted):
        world.broker.autoscaling.follow()
    followers[0].close()
    followers[0].close()
    world.broker.autoscaling.follow()


# Who


@pytest.mark.parametrize(
    "identity",
    [
        Identity("worker", may_operate=False),
        Identity("of one instance", instance_names=frozenset({"main"})),
        Identity("of none", instance_names=frozenset()),
    ],
)
async def test_only_those_may_follow_who_may_operate_everything(world: World, identity: Identity) -> None:
    with pytest.raises(NotAllowed):
        await Autoscaler(world, identity).next()
    assert not world.broker.autoscaling.followed


# What they say


async def heard(autoscaler: Autoscaler) -> None:
    """Until the scheduler has heard what was said so far: the end of the other side ends ours."""
    autoscaler.end()
    async with asyncio.timeout(GUARD_SECONDS):
        async for _message in autoscaler.stream:
            pass


async def test_pools_hold_while_the_autoscaler_follows_and_for_a_while_after_it(world: World) -> None:
    autoscaler = Autoscaler(world)
    await autoscaler.next()
    autoscaler.say(pool(target=2))
    stream = await queued(world)
    await heard(autoscaler)
    pools = world.broker.status._queue().state.fleet.pools
    assert [(each.name, each.target, each.away) for each in pools] == [("linux", 2, True)]
    world.clock.advance(KEPT_SECONDS - 1)
    assert len(pools) == 1
    world.clock.advance(1)
    assert len(pools) == 0
    assert world.broker.snapshot().reasons == {Category.NO_WORKER: 1}
    await stream.close()


async def test_a_second_autoscaler_takes_over_what_the_first_has_told(world: World) -> None:
    first = Autoscaler(world)
    await first.next()
    first.say(pool(target=2))
    await heard(first)
    second = world.broker.autoscaling.follow()
    await second.tell(autoscaling_pb2.FromAutoscaler(pools=autoscaling_pb2.Pools(pools=[pool(target=3)])))
    world.clock.advance(KEPT_SECONDS)
    pools = world.broker.status._queue().state.fleet.pools
    assert [(each.name, each.target, each.away) for each in pools] == [("linux", 3, False)]


async def test_after_a_restart_an_action_may_wait_for_the_autoscaler_though_a_worker_is_back_first(
    tmp_path: Path,
) -> None:
    image = [("container-image", "registry.example.com/builder:1")]
    async with restarted(tmp_path / "scheduler.sqlite3") as (world, _journal):
        await world.worker("w1")
    async with restarted(tmp_path / "scheduler.sqlite3", world) as (again, _journal):
        await again.worker("w1")
        stream = again.execute(await again.action(platform=image))
        await stream.next()
        again.clock.advance(again.settings.settle_seconds)
        assert (await stream.response()).status.code == Code.FAILED_PRECONDITION


async def test_workers_that_are_named_are_drained_and_say_why(world: World) -> None:
    busy, idle = await world.worker("busy"), await world.worker("idle", properties=[("OSFamily", "windows")])
    await queued(world)
    lease = await busy.lease()
    busy.running(lease)
    await busy.heard()
    follower = world.broker.autoscaling.follow()
    await follower.tell(
        autoscaling_pb2.FromAutoscaler(
            leave=autoscaling_pb2.Leave(names=["idle", "busy", "unheard of"], grace_seconds=60, reason="too many")
        )
    )
    for worker in (busy, idle):
        told = (await worker.hear("drain")).drain
        assert (told.grace.ToSeconds(), told.reason) == (60, "drained: too many")
    idle.end()  # a worker without a lease goes at once
    assert [message async for message in idle.stream] == []
    (left,) = world.broker.workers()
    assert (left.name, left.draining, left.drain_reason) == ("busy", True, "drained: too many")
    await busy.finish(lease)


async def test_what_ran_on_machines_that_have_ended_goes_elsewhere_without_the_grace(world: World) -> None:
    gone = await world.worker("gone")
    stream = await queued(world)
    await gone.lease()
    assert stage_of(await stream.next()) == re_pb2.ExecutionStage.EXECUTING
    follower = world.broker.autoscaling.follow()
    ended = autoscaling_pb2.FromAutoscaler(ended=autoscaling_pb2.Ended(names=["gone", "unheard of", "gone"]))
    await follower.tell(ended)
    assert [worker.name for worker in world.broker.workers()] == ["gone"], "it is connected, so it cannot have ended"
    await gone.vanish()
    await follower.tell(ended)
    assert world.broker.workers() == []
    assert stage_of(await stream.next()) == re_pb2.ExecutionStage.QUEUED
    lease = await (await world.worker("other")).lease()
    assert lease.epoch == 2


async def test_one_that_has_got_work_meanwhile_is_left_alone_if_only_idle_ones_are_meant(world: World) -> None:
    busy = await world.worker("busy")
    await queued(world)
    await busy.lease()
    idle = await world.worker("idle")
    follower = world.broker.autoscaling.follow()
    leave = autoscaling_pb2.Leave(names=["busy", "idle", "idle"], only_idle=True)
    await follower.tell(autoscaling_pb2.FromAutoscaler(leave=leave))
    assert (await idle.hear("drain")).drain.reason == "drained by the autoscaler"
    assert {worker.name: worker.draining for worker in world.broker.workers()} == {"busy": False, "idle": True}


@pytest.mark.parametrize(
    "message",
    [
        autoscaling_pb2.FromAutoscaler(leave=autoscaling_pb2.Leave(names=["w1"], grace_seconds=-1)),
        autoscaling_pb2.FromAutoscaler(leave=autoscaling_pb2.Leave(names=["w1"], grace_seconds=float("nan"))),
        autoscaling_pb2.FromAutoscaler(leave=autoscaling_pb2.Leave(names=["w1"], grace_seconds=1e9)),
        autoscaling_pb2.FromAutoscaler(leave=autoscaling_pb2.Leave(names=["w1"], reason="x" * 301)),
        autoscaling_pb2.FromAutoscaler(leave=autoscaling_pb2.Leave(names=["w1"] * 1001)),
        autoscaling_pb2.FromAutoscaler(pools=autoscaling_pb2.Pools(pools=[autoscaling_pb2.Pool()])),
    ],
)
async def test_what_makes_no_sense_ends_the_stream_and_changes_nothing(
    world: World, message: autoscaling_pb2.FromAutoscaler
) -> None:
    await world.worker("w1")
    autoscaler = Autoscaler(world)
    await autoscaler.next()
    autoscaler._said.put_nowait(message)
    with pytest.raises(MalformedRequest):
        await autoscaler.next()
    assert [worker.draining for worker in world.broker.workers()] == [False]
    assert not world.broker.autoscaling.followed


async def test_what_a_newer_autoscaler_says_is_passed_over(world: World) -> None:
    follower = world.broker.autoscaling.follow()
    await follower.tell(autoscaling_pb2.FromAutoscaler())


async def test_a_stream_that_fails_at_the_other_end_ends(world: World) -> None:
    async def requests() -> AsyncIterator[autoscaling_pb2.FromAutoscaler]:
        yield autoscaling_pb2.FromAutoscaler(pools=autoscaling_pb2.Pools(pools=[pool()]))
        raise ConnectionResetError

    stream = AutoscalingService(world.broker).Follow(requests(), RequestContext())
    async with asyncio.timeout(GUARD_SECONDS):
        await anext(stream)
        with pytest.raises(StatusError):
            await anext(stream)
    assert not world.broker.autoscaling.followed
