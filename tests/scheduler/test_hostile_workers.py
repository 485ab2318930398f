"""Workers and clients that keep to the protocol and are broken all the same: what the others notice, and what the log says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from cas.digest import Digest
from cas.errors import AlreadyExists, Code, QueueFull
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler import events as e
from rexec.scheduler import invariants
from rexec.scheduler.platform import Requirement
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.statistics import MIN_SAMPLES
from rexec.scheduler.task import Candidate, Usage
from tests.scheduler.rules import Driver, of_kind
from tests.scheduler.world import GUARD_SECONDS, FakeWorker, Stream, World, stage_of

EXECUTING = re_pb2.ExecutionStage.EXECUTING


@pytest.fixture
async def brief() -> AsyncIterator[World]:
    """A scheduler that loses patience soon: silence of a whole worker takes longer."""
    async with World(SchedulerSettings(answer_seconds=8, overdue_seconds=5, exclusion_seconds=1)) as world:
        yield world


async def executing(world: World, worker: FakeWorker, *arguments: str) -> tuple[Stream, worker_pb2.Lease]:
    stream = world.execute(await world.action(*arguments))
    await stream.next()
    return stream, await worker.lease()


class TestNames:
    async def test_two_workers_of_one_name_do_not_rob_each_other_for_ever(self, world: World) -> None:
        await world.worker("twin", session="a")
        second = await world.worker("twin", session="b")
        stream, lease = await executing(world, second)
        with pytest.raises(AlreadyExists, match=r"another worker named 'twin' is connected.*\[worker\] name"):
            await world.worker("twin", session="a")
        await second.finish(lease)
        assert (await stream.response()).status.code == Code.OK
        assert world.counts.retries == []


class TestSilence:
    async def test_a_worker_that_takes_a_lease_and_says_nothing_of_it_loses_it(self, brief: World) -> None:
        deaf = await brief.worker("deaf")
        stream, lease = await executing(brief, deaf)
        good = await brief.worker("good")
        await good.heard()
        brief.clock.advance(8)
        revoke = (await deaf.hear("revoke")).revoke
        assert revoke.lease_id == lease.lease_id
        assert "no answer for 8 s" in revoke.reason
        await good.finish(await good.lease())
        assert (await stream.response()).result.execution_metadata.worker == "good"

    async def test_one_that_answers_is_left_alone(self, brief: World) -> None:
        worker = await brief.worker("w1")
        stream, lease = await executing(brief, worker)
        fetching = worker_pb2.Progress(
            lease_id=lease.lease_id, epoch=lease.epoch, phase=worker_pb2.Progress.FETCHING
        )  # fmt: skip
        worker.say(progress=fetching)
        await worker.heard()
        brief.clock.advance(10)
        await worker.finish(lease)
        assert (await stream.response()).status.code == Code.OK
        assert brief.counts.retries == []


class TestFailingEverything:
    async def fail(self, world: World, worker: FakeWorker, action: str, *, lie: bool) -> Stream:
        stream, lease = await executing(world, worker, action)
        if lie:
            await worker.finish(lease, files={"out": f"never uploaded by {action}".encode()}, upload=False)
        else:
            failure = worker_pb2.Finished.INFRASTRUCTURE
            await worker.finish(lease, failure=failure, result=False, message="no space left")
        return stream

    @pytest.mark.parametrize("lie", [False, True])
    async def test_a_worker_on_which_everything_fails_gets_no_more_and_the_log_says_why(
        self, world: World, lie: bool
    ) -> None:
        bad = await world.worker("bad")
        with capture_logs() as lines:
            for action in ("a", "b", "c"):
                stream = await self.fail(world, bad, action, lie=lie)
                await world.cancel(stream.name)
        (told,) = [line for line in lines if line["event"].startswith("worker quarantined")]
        assert told["log_level"] == "warning"
        assert told["worker"] == "bad"
        assert len(told["failures"]) == 3
        assert all(("not in the store" if lie else "no space left") in failure for failure in told["failures"])
        assert world.broker.snapshot().workers["quarantined"] == 1
        waiting = world.execute(await world.action("waiting"))
        good = await world.worker("good")
        await waiting.next()
        await good.finish(await good.lease())
        assert (await waiting.response()).result.execution_metadata.worker == "good"

    async def test_a_store_that_is_down_is_held_against_no_worker(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        worker = await world.worker("w1")
        for action in ("a", "b", "c", "d"):
            stream, lease = await executing(world, worker, action)
            with monkeypatch.context() as patched:
                patched.setattr(world.store, "find_missing", _unavailable)
                await worker.finish(lease, files={"out": b"x"})
            await world.cancel(stream.name)
        assert world.broker.snapshot().workers["quarantined"] == 0


async def _unavailable(_digests: object) -> set[Digest]:
    raise QueueFull("the store is down")


class TestStaleLeases:
    async def test_the_result_of_a_cancelled_action_is_dropped_and_told_of(self, world: World) -> None:
        worker = await world.worker()
        stream, lease = await executing(world, worker)
        await world.cancel(stream.name)
        await worker.hear("revoke")
        with capture_logs() as lines:
            await worker.finish(lease)
        assert (await stream.response()).status.code == Code.CANCELLED
        assert [line["event"] for line in lines] == ["result dropped: its lease is revoked"]

    async def test_a_replayed_result_is_acknowledged_dropped_and_told_of(self, world: World) -> None:
        worker = await world.worker()
        stream, lease = await executing(world, worker)
        await worker.finish(lease)
        await stream.response()
        with capture_logs() as lines:
            await worker.finish(lease, exit_code=1)
        assert [line["event"] for line in lines] == ["result dropped: its lease is over, or was granted anew"]
        assert world.counts.results == ["succeeded"]

    async def test_progress_of_a_stale_lease_is_answered_with_a_revocation(self, world: World) -> None:
        worker = await world.worker()
        stream, lease = await executing(world, worker)
        await worker.finish(lease)
        await stream.response()
        worker.running(lease)
        assert (await worker.hear("revoke")).revoke.lease_id == lease.lease_id


class TestSecondRuns:
    async def test_the_first_result_counts_and_the_other_run_is_stopped(self, world: World) -> None:
        slow = await world.worker("slow")
        stream, lease = await executing(world, slow)
        (task,) = world.broker._queue.tasks.values()
        for _ in range(MIN_SAMPLES):
            world.broker._queue.state.statistics.learn(task.candidate, Usage(1.0))
        slow.running(lease)
        idle = await world.worker("idle")
        await slow.heard()
        await idle.heard()
        with capture_logs() as lines:
            world.clock.advance(10)
            again = await idle.lease()
            await idle.finish(again, files={"out": b"x"})
        assert (again.task_id, again.epoch) == (lease.task_id, 2)
        response = await stream.response()
        assert response.result.execution_metadata.worker == "idle"
        assert (await slow.hear("revoke")).revoke.lease_id == lease.lease_id
        assert [line["event"] for line in lines] == [
            "slow action runs a second time",
            "second run of an action ended",
        ]


class TestVanishing:
    async def test_the_room_of_clients_that_vanish_comes_back(self) -> None:
        settings = SchedulerSettings(max_queued_operations=300)
        async with World(settings) as world:
            worker = await world.worker(slots=2)
            await worker.heard()
            streams = []
            for number in range(300 + 2):
                stream = world.execute(await world.action(f"{number}"))
                await stream.next()
                streams.append(stream)
            refused = world.execute(await world.action("one more"))
            with pytest.raises(QueueFull):
                await refused.next()
            leases = [await worker.lease(), await worker.lease()]
            for stream in streams:
                await stream.close()
            wanted = world.execute(await world.action("of a client that stays"))
            with pytest.raises(QueueFull):  # it might all be wanted again
                await wanted.next()
            for _ in range(3):  # the worker would be given up if nothing were heard of it
                world.clock.advance(settings.abandon_seconds / 4)
                await worker.heard()
            world.clock.advance(settings.abandon_seconds / 4)
            revoked = {(await worker.hear("revoke")).revoke.lease_id for _ in leases}
            assert revoked == {lease.lease_id for lease in leases}
            for lease in leases:
                await worker.finish(lease, failure=worker_pb2.Finished.REVOKED, result=False, credit=1)
            wanted = world.execute(await world.action("of a client that stays"))
            assert stage_of(await wanted.next()) in (re_pb2.ExecutionStage.QUEUED, EXECUTING)
            async with asyncio.timeout(GUARD_SECONDS):
                await worker.lease()
            assert len(world.broker._queue.tasks) == 1
            world.clock.advance(settings.retain_seconds)
            assert len(world.broker._queue.operations) == 1

    def test_ten_thousand_operations_of_clients_that_vanish_leave_nothing_behind(self) -> None:
        rules = Driver()
        worker = rules.attach(slots=4)
        state = rules.queue.state
        for number in range(10_000):  # driven without the checks, which cost the size of everything
            name = f"operations/{number}"
            candidate = Candidate("", Digest.of(name.encode()), Requirement())
            rules.queue.apply(e.Submit(name, name, candidate), rules.now)
            rules.queue.apply(e.WaiterJoined(name), rules.now)
        for number in range(10_000):
            rules.queue.apply(e.WaiterLeft(f"operations/{number}"), rules.now)
        invariants.check(rules.queue)
        wanted = rules.submit("wanted")
        assert all(task.parked for task in state.tasks.values() if task.lease is None and task.waiters == 0)
        for lease in rules.leases(worker):
            rules.finish(worker, lease)
        rules.credit(worker, 4)
        assert rules.running_on(wanted)
        effects = rules.pass_time(rules.settings.abandon_seconds)
        assert len(of_kind(effects, e.TaskCompleted)) == 10_000 - 4
        assert set(state.tasks) == {rules.operation(wanted).task.task_id}
        rules.finish(worker)
        rules.do(e.WaiterLeft(wanted))
        rules.pass_time(rules.settings.retain_seconds)
        invariants.check(rules.queue)
        tables = (state.operations, state.tasks, state.leases, state.in_flight, state.fleet.active)
        assert not any(tables)
        assert len(state.fleet.shares) == 0
        assert state.queued_operations == 0
