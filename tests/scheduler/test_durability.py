"""A scheduler with a journal: what clients and workers hear, and when; what a restart leaves of it."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cas.digest import Digest
from cas.errors import Code, SchedulerStops, Unavailable
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler import group_commit
from rexec.scheduler.journal import Journal
from rexec.scheduler.rows import Batch
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate
from tests.scheduler.world import GUARD_SECONDS, FakeWorker, World, stage_of

QUEUED, EXECUTING, COMPLETED = (
    re_pb2.ExecutionStage.QUEUED,
    re_pb2.ExecutionStage.EXECUTING,
    re_pb2.ExecutionStage.COMPLETED,
)


class HeldUp(Journal):
    """A journal whose commits can be made to take until the test lets them go on."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        super().__init__(path, database)
        self._open = threading.Event()
        self._open.set()
        self._began = threading.Semaphore(0)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Commits wait meanwhile."""
        self._open.clear()
        while self._began.acquire(blocking=False):
            pass
        try:
            yield
        finally:
            self._open.set()

    async def begun(self) -> None:
        """Until one waits."""
        assert await asyncio.to_thread(self._began.acquire, True, GUARD_SECONDS)

    def write(self, batch: Batch) -> None:
        if not self._open.is_set() and len(batch):
            self._began.release()
            assert self._open.wait(GUARD_SECONDS)
        super().write(batch)


@pytest.fixture(autouse=True)
def in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every commit, so that the test goes on meanwhile."""
    monkeypatch.setattr(group_commit, "INLINE_ROWS", -1)


def taken_over(path: Path) -> HeldUp:
    journal = HeldUp.open(path)
    assert journal.take_over(journal.tenure(), "test", "", locked=True)
    return journal


@asynccontextmanager
async def restarted(path: Path, earlier: World | None = None) -> AsyncIterator[tuple[World, HeldUp]]:
    """A scheduler over the journal in the file, with the stores of the one before."""
    with closing(taken_over(path)) as journal:
        store, kept = (earlier.store, earlier.kept) if earlier is not None else (None, None)
        async with World(journal=journal, store=store, action_cache=kept) as world:
            yield world, journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scheduler.sqlite3"


@pytest.fixture
async def pair(path: Path) -> AsyncIterator[tuple[World, HeldUp]]:
    async with restarted(path) as pair:
        yield pair


async def _ran(world: World, worker: FakeWorker, *arguments: str) -> str:
    """The name of an operation that a worker has run to its end."""
    stream = world.execute(await world.action(*arguments))
    await stream.next()
    lease = await worker.lease()
    await worker.finish(lease)
    await stream.response()
    return stream.name


async def test_an_action_runs_as_it_does_without_a_journal(pair: tuple[World, HeldUp]) -> None:
    world, _journal = pair
    worker = await world.worker()
    name = await _ran(world, worker)
    assert stage_of(await world.get(name)) == COMPLETED


async def test_no_client_hears_of_an_operation_that_may_be_forgotten(pair: tuple[World, HeldUp]) -> None:
    world, journal = pair
    stream = world.execute(await world.action())
    with journal.held():
        first = asyncio.create_task(stream.next())
        await journal.begun()
        assert not first.done()
    assert stage_of(await first) == QUEUED


async def test_no_worker_gets_a_lease_that_may_be_forgotten(pair: tuple[World, HeldUp]) -> None:
    world, journal = pair
    worker = await world.worker()
    stream = world.execute(await world.action())
    with journal.held():
        first, lease = asyncio.create_task(stream.next()), asyncio.create_task(worker.lease())
        await journal.begun()
        assert not first.done()
        assert not lease.done()
    assert (await lease).task_id
    await first


async def test_nobody_hears_of_an_end_that_may_be_forgotten(pair: tuple[World, HeldUp]) -> None:
    world, journal = pair
    worker = await world.worker()
    stream = world.execute(await world.action())
    await stream.next()
    lease = await worker.lease()
    with journal.held():
        worker.say(finished=worker_pb2.Finished(lease_id=lease.lease_id, epoch=lease.epoch,
                                                action_result=re_pb2.ActionResult(exit_code=1)))  # fmt: skip
        acknowledged = asyncio.create_task(worker.hear("acknowledged"))
        await journal.begun()
        end = asyncio.create_task(stream.response())
        late = world.wait(stream.name)
        waits = asyncio.create_task(late.next())
        looks = asyncio.create_task(world.get(stream.name))
        await asyncio.to_thread(lambda: None)
        for told in (acknowledged, end, waits, looks):
            assert not told.done()
    assert (await end).result.exit_code == 1
    assert stage_of(await waits) == COMPLETED
    assert stage_of(await looks) == COMPLETED
    await acknowledged


async def test_a_stream_is_kept_alive_with_what_it_was_told_last(pair: tuple[World, HeldUp]) -> None:
    world, journal = pair
    worker = await world.worker()
    stream = world.execute(await world.action())
    await stream.until(EXECUTING)
    lease = await worker.lease()
    with journal.held():
        worker.say(finished=worker_pb2.Finished(lease_id=lease.lease_id, epoch=lease.epoch,
                                                action_result=re_pb2.ActionResult(exit_code=1)))  # fmt: skip
        again = asyncio.create_task(stream.next())
        await journal.begun()
        world.clock.advance(world.settings.keepalive_seconds)
        assert stage_of(await again) == EXECUTING
    assert (await stream.response()).result.exit_code == 1


async def test_a_restart_finds_what_waits_runs_and_has_ended(path: Path) -> None:
    async with restarted(path) as (world, _):
        worker = await world.worker()
        completed = await _ran(world, worker, "completed")
        running = world.execute(await world.action("running"))
        await running.next()
        lease = await worker.lease()
        waiting = world.execute(await world.action("waiting"))
        await waiting.next()
    async with restarted(path, world) as (world, _):
        assert stage_of(await world.get(completed)) == COMPLETED
        runs, waits = world.wait(running.name), world.wait(waiting.name)
        assert stage_of(await runs.next()) == EXECUTING
        assert stage_of(await waits.next()) == QUEUED
        worker = await world.worker(held=[lease], credit=0)
        assert [held.lease_id for held in worker.welcome.resumed] == [lease.lease_id]
        await worker.finish(lease)
        await runs.response()
        lease = await worker.lease()
        await worker.finish(lease)
        await waits.response()
        assert world.counts.results == ["succeeded", "succeeded"]


async def test_the_same_action_asked_for_again_after_a_restart_runs_once(path: Path) -> None:
    async with restarted(path) as (world, _):
        action = await world.action()
        await world.execute(action).next()
    async with restarted(path, world) as (world, _):
        worker = await world.worker()
        stream = world.execute(action)
        await stream.next()
        await worker.finish(await worker.lease())
        await stream.response()
        assert world.counts.results == ["succeeded"]


async def test_an_end_that_was_not_written_down_is_reported_again(path: Path) -> None:
    """The process dies between the report and its commit."""
    async with restarted(path) as (world, journal):
        worker = await world.worker()
        stream = world.execute(await world.action())
        await stream.next()
        lease = await worker.lease()
        with journal.held():
            worker.say(
                finished=worker_pb2.Finished(
                    lease_id=lease.lease_id, epoch=lease.epoch, action_result=re_pb2.ActionResult(exit_code=1)
                )
            )
            await journal.begun()
            # Another process takes over: as far as the file knows, the first one is dead.
            async with restarted(path, world) as (other, _):
                again = await other.worker(held=[lease], credit=0)
                waits = other.wait(stream.name)
                assert stage_of(await waits.next()) == EXECUTING
                again.say(
                    finished=worker_pb2.Finished(
                        lease_id=lease.lease_id, epoch=lease.epoch, action_result=re_pb2.ActionResult(exit_code=1)
                    )
                )
                assert (await waits.response()).result.exit_code == 1
                await again.hear("acknowledged")
        with pytest.raises(SchedulerStops):
            await stream.response()
        with pytest.raises(SchedulerStops):
            await worker.hear("acknowledged")
        assert world.broker.lost is not None
        assert "test leads now" in await world.broker.lost


async def test_a_defect_of_the_rules_ends_the_process_and_the_next_one_starts_before_it(
    pair: tuple[World, HeldUp], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, journal = pair
    stream = world.execute(await world.action())
    await stream.next()

    def defect(*_: object) -> None:
        raise KeyError("what should be there")

    monkeypatch.setattr("rexec.scheduler.queue.assign", defect)
    with capture_logs() as logs, pytest.raises(SchedulerStops):
        await world.broker.cancel(stream.name)
    assert any("cannot go on" in entry["event"] for entry in logs)
    assert world.broker.lost is not None
    assert "KeyError" in await world.broker.lost
    with pytest.raises(SchedulerStops):
        await stream.response()
    monkeypatch.undo()
    async with restarted(journal.path, world) as (other, _):
        assert stage_of(await other.wait(stream.name).next()) == QUEUED  # the half-done cancellation was never written


async def test_a_name_that_is_given_again_is_the_same_operation(pair: tuple[World, HeldUp]) -> None:
    world, _ = pair
    stream = world.execute(await world.action())
    await stream.next()
    state = await world.broker.state(stream.name)
    candidate = Candidate(state.instance_name, state.action_digest)
    assert await world.broker.submit(candidate, state.inlining, stream.name) == stream.name
    assert world.broker.snapshot().operations == 1


@contextmanager
def no_room(path: Path) -> Iterator[None]:
    """No file of this process grows beyond what the journal's log has now: the system says so, as with a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(Path(f"{path}{suffix}").stat().st_size for suffix in ("", "-wal"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_disk_that_is_full_stops_what_is_new_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "RETRY_SECONDS", 0.01)
    async with restarted(path) as (world, _):
        worker = await world.worker(slots=2, credit=1)
        stream = world.execute(await world.action("runs"))
        await stream.until(EXECUTING)
        lease = await worker.lease()
        refused, later = await world.action("refused"), await world.action("later")
        with no_room(path):
            with capture_logs() as lines, pytest.raises(Unavailable) as caught:
                await world.execute(refused).next()
            assert caught.value.code is Code.UNAVAILABLE
            assert [line["event"] for line in lines if line["log_level"] == "error"] == [
                "the scheduler's journal cannot be written: nothing new is taken on, results wait, what runs goes on"
            ]
            with pytest.raises(Unavailable):  # at once, now that it is known
                await world.execute(later).next()
            worker.say(finished=worker_pb2.Finished(lease_id=lease.lease_id, epoch=lease.epoch,
                                                    action_result=re_pb2.ActionResult(exit_code=1)))  # fmt: skip
            end = asyncio.create_task(stream.response())
            acknowledged = asyncio.create_task(worker.hear("acknowledged"))
            await asyncio.to_thread(lambda: None)
            assert not end.done()
            assert not acknowledged.done()
        assert (await end).result.exit_code == 1
        await acknowledged
        await _ran_now(world, worker, later)
    async with restarted(path, world) as (world, _):
        assert stage_of(await world.get(stream.name)) == COMPLETED
        assert world.broker.snapshot().operations == 2  # nothing of those that were refused


async def _ran_now(world: World, worker: FakeWorker, action: Digest) -> None:
    worker.say(credit=worker_pb2.Credit(leases=1))
    stream = world.execute(action)
    await stream.next()
    await worker.finish(await worker.lease())
    await stream.response()


async def test_who_cancels_is_answered_when_it_cannot_be_forgotten_any_more(pair: tuple[World, HeldUp]) -> None:
    world, journal = pair
    stream = world.execute(await world.action())
    await stream.next()
    with journal.held():
        cancelled = asyncio.create_task(world.cancel(stream.name))
        await journal.begun()
        assert not cancelled.done()
    await cancelled
    assert (await stream.response()).status.code == Code.CANCELLED


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="leadership_seconds is 0"):
        SchedulerSettings(leadership_seconds=0)
    with pytest.raises(ValueError, match="restart_grace_seconds is -1"):
        SchedulerSettings(restart_grace_seconds=-1)
