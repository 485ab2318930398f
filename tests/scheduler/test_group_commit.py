"""Nothing leaves before it is durable, in its order, and nothing is lost when the journal cannot be written."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cas.errors import SchedulerStops, StatusError, StoreFull, Unavailable
from rexec.scheduler import group_commit
from rexec.scheduler.group_commit import GroupCommit
from rexec.scheduler.journal import Fenced, Journal
from rexec.scheduler.rows import Batch

GUARD_SECONDS = 10


class Gate(Journal):
    """A journal whose commits end when the test says so, and as it says."""

    def __init__(self) -> None:
        self.path = Path("scheduler.sqlite3")
        self.written: list[list[int]] = []
        self.failures: list[Exception | None] = []
        """Of the next commits; None for one that succeeds."""
        self._may_end = threading.Semaphore(0)
        self.began = threading.Semaphore(0)

    wants_checkpoint = False

    def end(self, commits: int = 1) -> None:
        """Let so many commits end."""
        self._may_end.release(commits)

    def write(self, batch: Batch) -> None:
        self.began.release()
        assert self._may_end.acquire(timeout=GUARD_SECONDS)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        self.written.append(list(batch.ended_tasks))


class Numbers:
    """Changes of which each is a number; the operations are named after them."""

    def __init__(self) -> None:
        self.changed: list[int] = []
        self.is_last = False

    def __bool__(self) -> bool:
        return bool(self.changed)

    def names(self) -> frozenset[str]:
        return frozenset(map(str, self.changed))

    def concern(self, operation_name: str) -> bool:
        return operation_name in self.names()

    def take(self) -> Batch:
        batch, self.changed = Batch(ended_tasks=self.changed), []
        return batch

    def hurry(self) -> None:
        self.is_last = True


class Bench:
    """A group commit in the test's hands."""

    def __init__(self, trust_seconds: float = 1000.0) -> None:
        self.gate = Gate()
        self.source = Numbers()
        self.way_out = GroupCommit(self.gate, self.source, renew_seconds=1000.0, trust_seconds=trust_seconds)
        self.released: list[object] = []

    def change(self, number: int) -> None:
        """Something happens, and something is to leave because of it."""
        self.source.changed.append(number)
        self.way_out.changed()
        self.way_out.after(lambda: self.released.append(number))

    async def begun(self) -> None:
        """Until the next commit is under way."""
        assert await asyncio.to_thread(self.gate.began.acquire, True, GUARD_SECONDS)

    async def until_released(self, number: int) -> None:
        done = asyncio.Event()
        self.way_out.after(done.set)
        async with asyncio.timeout(GUARD_SECONDS):
            await done.wait()
        assert number in self.released


@pytest.fixture(autouse=True)
def in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every commit, so that the test goes on meanwhile."""
    monkeypatch.setattr(group_commit, "INLINE_ROWS", -1)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.gate.end(100)
    await bench.way_out.close()


async def test_nothing_leaves_before_its_commit_and_then_all_in_order(bench: Bench) -> None:
    bench.change(1)
    bench.change(2)
    await bench.begun()
    assert bench.released == []
    bench.gate.end()
    await bench.until_released(2)
    assert bench.gate.written == [[1, 2]]
    assert bench.released == [1, 2]


async def test_what_is_small_is_committed_without_a_thread(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "INLINE_ROWS", 4)
    bench.gate.end(2)
    bench.change(1)
    assert bench.released == []
    await asyncio.sleep(0)  # its turn comes after this one
    assert bench.released == [1]
    monkeypatch.setattr(group_commit, "SLOW_SECONDS", -1.0)
    bench.change(2)
    await asyncio.sleep(0)
    assert bench.released == [1, 2]
    bench.change(3)  # the disk has been slow
    await asyncio.sleep(0)
    assert bench.released == [1, 2]
    bench.gate.end()
    await bench.until_released(3)


async def test_what_happens_during_a_commit_goes_into_the_next_one(bench: Bench) -> None:
    bench.change(1)
    await bench.begun()
    for number in (2, 3, 4):
        bench.change(number)
    bench.gate.end()
    await bench.begun()
    assert bench.released == [1]
    bench.gate.end()
    await bench.until_released(4)
    assert bench.gate.written == [[1], [2, 3, 4]]


async def test_what_follows_from_nothing_new_leaves_at_once(bench: Bench) -> None:
    bench.way_out.after(lambda: bench.released.append("at once"))
    assert bench.released == ["at once"]


async def test_what_follows_from_nothing_new_does_not_overtake(bench: Bench) -> None:
    bench.change(1)
    await bench.begun()
    bench.way_out.after(lambda: bench.released.append("later"))
    assert bench.released == []
    bench.gate.end()
    await bench.until_released(1)
    assert bench.released == [1, "later"]


async def test_what_is_released_may_release_more_behind_what_waits(bench: Bench) -> None:
    bench.source.changed.append(1)
    bench.way_out.changed()
    bench.way_out.after(lambda: bench.way_out.after(lambda: bench.released.append("second")))
    bench.way_out.after(lambda: bench.released.append("first"))
    bench.gate.end()
    done = asyncio.Event()
    bench.way_out.after(done.set)
    async with asyncio.timeout(GUARD_SECONDS):
        await done.wait()
    assert bench.released[0] == "first"
    await asyncio.to_thread(lambda: None)
    assert bench.released == ["first", "second"]


async def test_an_operation_is_covered_once_it_is_committed(bench: Bench) -> None:
    bench.change(1)
    assert not bench.way_out.covers("1")
    assert bench.way_out.covers("2")
    waiting = asyncio.create_task(bench.way_out.durable("1"))
    await bench.begun()
    assert not bench.way_out.covers("1")
    assert not waiting.done()
    bench.gate.end()
    async with asyncio.timeout(GUARD_SECONDS):
        await waiting
    assert bench.way_out.covers("1")


@pytest.mark.parametrize(
    ("code", "kind"), [(sqlite3.SQLITE_FULL, StoreFull), (sqlite3.SQLITE_IOERR, Unavailable)], ids=["full", "broken"]
)
async def test_when_nothing_can_be_written_nothing_leaves_and_nothing_new_is_taken_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[StatusError]
) -> None:
    monkeypatch.setattr(group_commit, "RETRY_SECONDS", 0.0)
    reason = sqlite3.OperationalError("no")
    reason.sqlite_errorcode = code
    bench.gate.failures = [reason, reason]
    bench.change(1)
    patient = asyncio.create_task(bench.way_out.durable("1"))
    hasty = asyncio.create_task(bench.way_out.durable("1", rather_fail=True))
    await bench.begun()
    with capture_logs() as lines:
        bench.gate.end()
        await bench.begun()  # again
    assert [line["log_level"] for line in lines] == ["error"]
    with pytest.raises(kind, match="journal"):
        await hasty
    with pytest.raises(kind):
        bench.way_out.require()
    with pytest.raises(kind):
        await bench.way_out.durable("1", rather_fail=True)
    bench.change(2)
    assert bench.released == []
    assert not patient.done()
    bench.gate.end(3)
    await bench.until_released(2)
    await patient
    bench.way_out.require()
    assert bench.gate.written == [[1], [2]]
    assert bench.released == [1, 2]


async def test_who_is_fenced_releases_nothing_and_says_why(bench: Bench) -> None:
    bench.gate.failures = [Fenced("second leads now")]
    bench.change(1)
    waiting = asyncio.create_task(bench.way_out.durable("1"))
    bench.gate.end()
    async with asyncio.timeout(GUARD_SECONDS):
        assert await bench.way_out.lost == "second leads now"
    bench.change(2)
    bench.way_out.after(lambda: bench.released.append("anything"))
    assert bench.released == []
    with pytest.raises(SchedulerStops):
        await waiting
    with pytest.raises(SchedulerStops):
        await bench.way_out.durable("2")


async def test_who_finds_his_journal_damaged_does_not_go_on(bench: Bench) -> None:
    reason = sqlite3.DatabaseError("malformed")
    reason.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    bench.gate.failures = [reason]
    bench.change(1)
    bench.gate.end()
    async with asyncio.timeout(GUARD_SECONDS):
        assert "damaged" in await bench.way_out.lost
    assert bench.released == []


@pytest.mark.parametrize("inline_rows", [-1, 24], ids=["in a thread", "at once"])
async def test_a_fault_of_ours_ends_the_process_and_nothing_leaves(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, inline_rows: int
) -> None:
    monkeypatch.setattr(group_commit, "INLINE_ROWS", inline_rows)
    bench.gate.failures = [OverflowError("a number that no column holds")]
    bench.gate.end()
    bench.change(1)
    async with asyncio.timeout(GUARD_SECONDS):
        assert "a number that no column holds" in await bench.way_out.lost
    assert bench.released == []


async def test_changes_that_cannot_be_written_down_end_the_process_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take() -> Batch:
        raise TypeError("no message")

    monkeypatch.setattr(bench.source, "take", take)
    bench.change(1)
    async with asyncio.timeout(GUARD_SECONDS):
        assert "no message" in await bench.way_out.lost
    assert bench.released == []


async def test_after_a_long_pause_it_is_asked_again_who_leads() -> None:
    """The process may have been stopped after its commit, and another one leads by now."""
    bench = Bench(trust_seconds=-1.0)  # every commit has taken too long
    bench.gate.failures = [None, Fenced("second leads now")]
    bench.change(1)
    bench.gate.end(2)
    async with asyncio.timeout(GUARD_SECONDS):
        await bench.way_out.lost
    assert bench.gate.written == [[1]]
    assert bench.released == []
    await bench.way_out.close()


async def test_the_end_waits_for_what_is_to_be_written(bench: Bench) -> None:
    bench.change(1)
    bench.change(2)
    bench.gate.end(10)
    await bench.way_out.close()
    assert bench.source.is_last
    assert bench.released == [1, 2]
    assert sorted(number for batch in bench.gate.written for number in batch) == [1, 2]
    bench.way_out.after(lambda: bench.released.append("too late"))
    assert bench.released == [1, 2]


async def test_the_end_does_not_wait_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "FLUSH_SECONDS", 0.0)
    bench.change(1)
    await bench.begun()
    waiting = asyncio.create_task(bench.way_out.durable("1"))
    await asyncio.to_thread(lambda: None)
    bench.gate.end(10)
    with capture_logs() as lines:
        await bench.way_out.close()
    assert bench.released == []
    assert any("not in the journal" in line["event"] for line in lines)
    with pytest.raises(SchedulerStops):
        await waiting
