"""The workers' stream: attaching, losing, draining, and what hostile workers say."""

from __future__ import annotations

import asyncio

import pytest

from cas.errors import Code, MalformedRequest, Unavailable
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.workers import MAX_PARTIAL_METADATA_BYTES, MAX_TOGETHER
from tests.scheduler.world import GUARD_SECONDS, FakeWorker, World, stage_of

Property = re_pb2.Platform.Property


def hello(
    worker_name: str = "w1",
    session_id: str = "s1",
    slots: int = 1,
    properties: list[re_pb2.Platform.Property] | None = None,
    held: list[worker_pb2.HeldLease] | None = None,
) -> worker_pb2.Hello:
    return worker_pb2.Hello(
        worker_name=worker_name, session_id=session_id, slots=slots, properties=properties, held=held
    )  # fmt: skip


class TestAttaching:
    async def test_the_welcome_says_how_to_behave(self, world: World) -> None:
        worker = await world.worker()
        assert worker.welcome.heartbeat_interval.ToSeconds() == world.settings.heartbeat_seconds
        assert worker.welcome.grace.ToSeconds() == world.settings.grace_seconds
        assert worker.welcome.worker_id

    async def test_workers_of_a_large_fleet_are_told_to_send_fewer_heartbeats(self) -> None:
        settings = SchedulerSettings(heartbeat_seconds=1, max_heartbeats_per_second=0.5)
        async with World(settings) as world:
            first, second = await world.worker("w1"), await world.worker("w2")
            assert first.welcome.heartbeat_interval.ToSeconds() == 2
            assert second.welcome.heartbeat_interval.ToSeconds() == 4

    @pytest.mark.parametrize(
        ("greeting", "reason"),
        [
            (hello(worker_name=""), "worker_name"),
            (hello(worker_name="w" * 1000), "worker_name"),
            (hello(session_id=""), "session_id"),
            (hello(slots=0), "0 slots, expected 1 to"),
            (hello(slots=-1), "-1 slots"),
            (hello(slots=2**31 - 1), "2147483647 slots"),
            (hello(properties=[Property(name=str(n), value="x") for n in range(1001)]), "1001 properties"),
            (hello(properties=[Property(name="", value="x")]), "has no name or is too long"),
            (hello(properties=[Property(name="a", value="x" * 5000)]), "has no name or is too long"),
            (hello(properties=[Property(name=f"a{n}", value="x" * 4000) for n in range(17)]), "characters together"),
        ],
    )
    async def test_a_hello_that_makes_no_sense_is_refused(
        self, world: World, greeting: worker_pb2.Hello, reason: str
    ) -> None:
        worker = world.silent_worker()
        worker.say(hello=greeting)
        with pytest.raises(MalformedRequest, match=reason):
            await worker.hear("welcome")
        assert world.broker.snapshot().slots == 0

    async def test_the_first_message_must_be_hello(self, world: World) -> None:
        worker = world.silent_worker()
        worker.say(credit=worker_pb2.Credit(leases=1))
        with pytest.raises(MalformedRequest, match="the first message is credit, expected hello"):
            await worker.hear("welcome")

    async def test_what_travels_together_is_taken_in_order(self, world: World) -> None:
        worker = await world.worker(credit=0)
        stream = world.execute(await world.action())
        await stream.next()
        credits = [worker_pb2.FromWorker(credit=worker_pb2.Credit(leases=leases)) for leases in (0, 1)]
        worker.say(heartbeat=worker_pb2.Heartbeat(), also=credits)
        assert (await worker.lease()).epoch == 1

    async def test_too_much_at_once_ends_the_stream(self, world: World) -> None:
        worker = await world.worker()
        worker.say(heartbeat=worker_pb2.Heartbeat(), also=[worker_pb2.FromWorker()] * (MAX_TOGETHER + 1))
        with pytest.raises(MalformedRequest, match="10001 messages in one, expected at most 10000"):
            await worker.hear("welcome")

    async def test_a_second_hello_ends_the_stream(self, world: World) -> None:
        worker = await world.worker()
        worker.say(hello=hello())
        with pytest.raises(MalformedRequest, match="second hello"):
            await worker.hear("lease")

    async def test_negative_credit_ends_the_stream(self, world: World) -> None:
        worker = await world.worker(credit=0)
        worker.say(credit=worker_pb2.Credit(leases=-1))
        with pytest.raises(MalformedRequest, match="credit of -1"):
            await worker.hear("lease")

    async def test_a_stream_without_hello_is_not_kept_for_ever(self, world: World) -> None:
        worker = world.silent_worker()
        answer = asyncio.create_task(worker.hear("welcome"))
        await world.clock.timer_set()
        world.clock.advance(world.settings.heartbeat_timeout_seconds)
        with pytest.raises(Unavailable, match="nothing heard"):
            await answer


class TestLosing:
    async def test_15_the_task_of_a_worker_that_vanished_runs_elsewhere(self, world: World) -> None:
        stream = world.execute(await world.action())
        await stream.next()
        first = await world.worker("w1")
        await first.lease()
        assert stage_of(await stream.next()) == re_pb2.ExecutionStage.EXECUTING
        await first.vanish()
        world.clock.advance(world.settings.grace_seconds)
        assert stage_of(await stream.next()) == re_pb2.ExecutionStage.QUEUED
        second = await world.worker("w2")
        lease = await second.lease()
        assert lease.epoch == 2
        await second.finish(lease)
        response = await stream.response()
        assert response.status.code == Code.OK
        assert response.result.execution_metadata.worker == "w2"

    async def test_a_worker_that_comes_back_goes_on_and_nobody_notices(self, world: World) -> None:
        stream = world.execute(await world.action())
        await stream.next()
        worker = await world.worker()
        lease = await worker.lease()
        await stream.next()
        await worker.vanish()
        world.clock.advance(world.settings.grace_seconds - 1)
        again = await world.worker(held=[lease], credit=0)
        assert [held.lease_id for held in again.welcome.resumed] == [lease.lease_id]
        world.clock.advance(world.settings.grace_seconds)
        await again.finish(lease, exit_code=5)
        assert (await stream.response()).result.exit_code == 5
        assert world.counts.retries == []

    async def test_a_worker_that_was_given_up_is_told_what_it_no_longer_has(self, world: World) -> None:
        stream = world.execute(await world.action())
        await stream.next()
        worker = await world.worker()
        lease = await worker.lease()
        await worker.vanish()
        world.clock.advance(world.settings.grace_seconds)
        again = await world.worker(held=[lease], credit=0)
        assert [held.lease_id for held in again.welcome.unknown] == [lease.lease_id]

    async def test_a_result_repeated_on_a_new_stream_is_taken_once(self, world: World) -> None:
        action = await world.action()
        stream = world.execute(action)
        await stream.next()
        worker = await world.worker()
        lease = await worker.lease()
        await worker.finish(lease, exit_code=4)
        await worker.vanish()
        again = await world.worker(held=[lease], credit=0)
        await again.finish(lease, exit_code=6)
        assert (await stream.response()).result.exit_code == 4
        assert world.counts.results == ["failed"]

    async def test_a_newer_stream_of_the_session_replaces_the_older(self, world: World) -> None:
        older = await world.worker()
        newer = await world.worker()
        with pytest.raises(Unavailable, match="replaced by a newer stream"):
            await older.hear("lease")
        await world.execute(await world.action()).next()
        await newer.lease()

    async def test_another_session_of_the_name_ends_the_first_ones_stream(self, world: World) -> None:
        first = await world.worker(session="before")
        await world.worker(session="after")
        with pytest.raises(Unavailable, match="replaced by a new session"):
            await first.hear("lease")

    async def test_a_silent_worker_counts_as_gone_and_heartbeats_keep_it(self, world: World) -> None:
        worker = await world.worker()
        limit = world.settings.heartbeat_timeout_seconds
        for _ in range(3):
            world.clock.advance(limit - 1)
            worker.say(heartbeat=worker_pb2.Heartbeat(load=1.0))
            worker.say(credit=worker_pb2.Credit(leases=1))
            await world.execute(await world.action(f"at {world.clock.now}")).next()
            await worker.finish(await worker.lease())
        world.clock.advance(limit)
        with pytest.raises(Unavailable, match="nothing heard for 20 s"):
            await worker.hear("lease")

    async def test_a_worker_that_was_told_to_say_little_may_be_silent_for_longer(self) -> None:
        async with World(SchedulerSettings(heartbeat_timeout_seconds=20, max_heartbeats_per_second=0.01)) as world:
            worker = await world.worker()
            assert worker.welcome.heartbeat_interval.ToSeconds() == 20
            world.clock.advance(39)
            worker.say(credit=worker_pb2.Credit(leases=1))
            await world.execute(await world.action()).next()
            await worker.finish(await worker.lease())
            world.clock.advance(40)
            with pytest.raises(Unavailable, match="nothing heard for 40 s"):
                await worker.hear("lease")

    async def test_a_worker_that_closes_its_side_is_let_go(self, world: World) -> None:
        worker = await world.worker()
        worker.end()
        async with asyncio.timeout(GUARD_SECONDS):
            assert [message async for message in worker.stream] == []
        assert world.broker.snapshot().workers == {"ready": 0, "draining": 0, "away": 1, "quarantined": 0}

    async def test_a_stopping_scheduler_sends_its_workers_away(self, world: World) -> None:
        worker = await world.worker()
        await world.stop()
        with pytest.raises(Unavailable, match="the scheduler stops"):
            await worker.hear("lease")

    async def test_a_stream_that_comes_after_the_stop_is_told_so(self, world: World) -> None:
        """The ports are closed after the scheduler: a worker whose stream has just ended may be back before."""
        await world.stop()
        worker = world.silent_worker()
        worker.say(hello=hello())
        with pytest.raises(Unavailable, match="the scheduler stops"):
            await worker.hear("welcome")


class TestLying:
    async def running(self, world: World) -> tuple[FakeWorker, worker_pb2.Lease]:
        worker = await world.worker("honest")
        await world.execute(await world.action()).next()
        return worker, await worker.lease()

    async def test_a_result_for_another_workers_lease_ends_the_stream(self, world: World) -> None:
        _honest, lease = await self.running(world)
        liar = await world.worker("liar")
        with pytest.raises(MalformedRequest, match="belongs to another worker"):
            await liar.finish(lease)
        assert world.counts.results == []

    async def test_progress_of_another_workers_lease_ends_the_stream(self, world: World) -> None:
        _honest, lease = await self.running(world)
        liar = await world.worker("liar")
        liar.running(lease)
        with pytest.raises(MalformedRequest, match="belongs to another worker"):
            await liar.hear("revoke")

    async def test_progress_that_would_swamp_every_client_ends_the_stream(self, world: World) -> None:
        worker, lease = await self.running(world)
        swamp = re_pb2.ExecutedActionMetadata(worker="w" * (MAX_PARTIAL_METADATA_BYTES + 1))
        worker.say(
            progress=worker_pb2.Progress(lease_id=lease.lease_id, epoch=lease.epoch, partial_metadata=swamp)
        )  # fmt: skip
        with pytest.raises(MalformedRequest, match="expected at most 65536"):
            await worker.hear("revoke")

    async def test_a_lease_that_never_was_is_acknowledged_and_forgotten(self, world: World) -> None:
        worker = await world.worker()
        await worker.finish(worker_pb2.Lease(lease_id="never", epoch=3))
        assert world.counts.results == []

    async def test_a_wrong_epoch_changes_nothing(self, world: World) -> None:
        worker, lease = await self.running(world)
        await worker.finish(worker_pb2.Lease(lease_id=lease.lease_id, epoch=lease.epoch + 1))
        assert world.counts.results == []
        assert world.broker.snapshot().executing == 1

    async def test_held_leases_that_are_anothers_are_not_resumed(self, world: World) -> None:
        _honest, lease = await self.running(world)
        liar = await world.worker("liar", held=[lease])
        assert [held.lease_id for held in liar.welcome.unknown] == [lease.lease_id]
        assert not liar.welcome.resumed


class TestStopping:
    async def test_12_cancelling_revokes_and_the_slot_is_free_when_the_worker_says_so(self, world: World) -> None:
        worker = await world.worker()
        stream = world.execute(await world.action("first"))
        await stream.next()
        lease = await worker.lease()
        await world.cancel(stream.name)
        assert (await stream.response()).status.code == Code.CANCELLED
        assert (await worker.hear("revoke")).revoke.lease_id == lease.lease_id
        await worker.finish(lease, failure=worker_pb2.Finished.REVOKED, result=False)
        await world.execute(await world.action("second")).next()
        await worker.lease()

    async def test_a_draining_worker_gets_nothing_more(self, world: World) -> None:
        leaving = await world.worker("leaving", slots=2)
        await world.execute(await world.action("first")).next()
        lease = await leaving.lease()
        leaving.say(draining=worker_pb2.Draining(reason="SIGTERM"))
        await leaving.finish(lease, credit=2)
        stream = world.execute(await world.action("second"))
        await stream.next()
        staying = await world.worker("staying")
        await staying.lease()
        leaving.end()
        async with asyncio.timeout(GUARD_SECONDS):
            assert [message async for message in leaving.stream] == []
        assert world.broker.snapshot().workers == {"ready": 1, "draining": 0, "away": 0, "quarantined": 0}

    async def test_a_worker_can_be_asked_to_leave(self, world: World) -> None:
        worker = await world.worker()
        world.broker.drain("w1-session", 30, "scaling down")
        drain = (await worker.hear("drain")).drain
        assert (drain.grace.ToSeconds(), drain.reason) == (30, "scaling down")
        assert world.broker.snapshot().workers["draining"] == 1
