"""Processes that die, hang and take over from one another: nobody who was told anything was told wrong."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rexec.scheduler.journal import Journal, JournalUnusable, Tenure, read_tenure
from rexec.scheduler.leadership import Watched, lead, lock_path

GUARD_SECONDS = 60
"""What hangs fails the test instead of the whole run. Nothing is measured with it."""

LONG_SECONDS = 1000.0
"""A lease that does not run out during a test."""

SHORT_SECONDS = 0.5


class Process:
    """One `journal_process`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said: list[list[str]] = []

    async def line(self) -> list[str]:
        """The next line, in words; empty at the end."""
        assert self._process.stdout is not None
        async with asyncio.timeout(GUARD_SECONDS):
            words = (await self._process.stdout.readline()).decode().split()
        self.said.append(words)
        return words

    async def until(self, first: str, wanted: Callable[[list[str]], bool] = lambda _words: True) -> list[str]:
        """The next line that begins so."""
        while words := await self.line():
            if words[0] == first and wanted(words):
                return words
        raise AssertionError(f"no {first!r} before the end: {self.said[-3:]}")

    async def rest(self) -> int:
        """Read to the end; the exit code."""
        while await self.line():
            pass
        return await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    async def end(self) -> None:
        """Kill it, if it is there."""
        if self._process.returncode is None:
            self._process.kill()
            await self.rest()

    def told(self, what: str) -> set[str]:
        """The operations of which it has said so."""
        return {words[1] for words in self.said if len(words) == 2 and words[0] == what}


Start = Callable[..., Awaitable[Process]]
"""Takes the journal, `lease_seconds` and a prefix."""


@asynccontextmanager
async def processes() -> AsyncIterator[Start]:
    started: list[Process] = []

    async def start(path: Path, lease_seconds: float, prefix: str = "") -> Process:
        command = [
            "-m",
            "tests.scheduler.journal_process",
            str(path),
            str(lease_seconds),
            *([prefix] if prefix else []),
        ]
        process = Process(
            await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
        )  # fmt: skip
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            await process.end()


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with processes() as start:
        yield start


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scheduler.sqlite3"


async def _operations(reader: Process) -> dict[str, str]:
    """What a process finds that takes over and changes nothing."""
    await reader.until("all")
    return {words[1]: words[2] for words in reader.said if words[0] == "operation"}


async def test_who_is_killed_has_lost_nothing_that_it_told_anyone(path: Path, start: Start) -> None:
    told, completed, generations = set[str](), set[str](), []
    for number in range(3):
        process = await start(path, LONG_SECONDS, f"run{number}")
        generations.append(int((await process.until("leads"))[1]))
        for _ in range(100 + 77 * number):
            await process.until("released")
        process.send(signal.SIGKILL)
        await process.rest()  # what was told before it died
        told |= process.told("released")
        completed |= process.told("completed")
    reader = await start(path, LONG_SECONDS)
    found = await _operations(reader)
    assert len(told) >= 3 * 100
    assert completed
    assert told - found.keys() == set()
    assert {name for name in completed if found[name] != "COMPLETED"} == set()
    assert generations == sorted(set(generations))


async def test_one_stands_by_and_leads_as_soon_as_the_leader_is_dead(path: Path, start: Start) -> None:
    first = await start(path, LONG_SECONDS, "first")
    await first.until("leads")
    second = await start(path, LONG_SECONDS)
    waiting = asyncio.create_task(second.until("leads"))
    for _ in range(50):
        await first.until("released")
    assert not waiting.done()
    first.send(signal.SIGKILL)
    await first.rest()
    assert int((await waiting)[1]) > 0  # although the lease has not run out
    assert first.told("released") <= (await _operations(second)).keys()


async def test_a_leader_that_hangs_is_replaced_and_says_nothing_when_it_wakes_up(path: Path, start: Start) -> None:
    first = await start(path, SHORT_SECONDS)
    await first.until("all")
    first.send(signal.SIGSTOP)
    second = await start(path, SHORT_SECONDS, "second")
    await second.until("leads")
    for _ in range(50):
        await second.until("released")
    first.send(signal.SIGCONT)
    lost = await first.until("lost")
    assert lost[1:3] == ["second", "leads"]
    assert await first.rest() == 3
    await second.until("released")  # the second has the lock now or soon, and is not disturbed
    second.send(signal.SIGKILL)
    await second.rest()
    third = await start(path, SHORT_SECONDS)
    assert second.told("released") <= (await _operations(third)).keys()


async def test_a_leader_that_is_stopped_in_the_midst_of_its_work_says_nothing_wrong(path: Path, start: Start) -> None:
    first = await start(path, SHORT_SECONDS, "first")
    for _ in range(50):
        await first.until("released")
    first.send(signal.SIGSTOP)
    second = await start(path, SHORT_SECONDS)
    waiting = asyncio.create_task(second.until("all"))
    # Stopped inside a commit it holds the lock of SQLite, and the second waits until it goes on: both ends are right.
    await asyncio.wait([waiting], timeout=6 * SHORT_SECONDS)
    first.send(signal.SIGCONT)
    if waiting.done():
        assert await first.rest() == 3
    else:
        first.send(signal.SIGKILL)
        await first.rest()
    await waiting
    found = {words[1] for words in second.said if words[0] == "operation"}
    assert first.told("released") <= found


async def test_the_lock_of_one_who_leads_without_it_is_taken_later(path: Path) -> None:
    silent = Journal.open(path)
    assert silent.take_over(silent.tenure(), "silent", "", locked=True)
    held = os.open(lock_path(path), os.O_CREAT | os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    async with lead(path, holder="second", lease_seconds=0.05) as journal:
        assert not journal.locked
        os.close(held)
        async with asyncio.timeout(GUARD_SECONDS):
            while not journal.locked:  # noqa: ASYNC110 - a file's lock tells nobody
                await asyncio.sleep(0)
    silent.close()


async def test_who_waits_is_told_who_leads(path: Path) -> None:
    told: list[Tenure | None] = []
    async with lead(path, holder="first", address="here:1", lease_seconds=LONG_SECONDS):

        async def second() -> None:
            async with lead(path, holder="second", lease_seconds=LONG_SECONDS, waits=told.append):
                raise AssertionError("two lead")

        waiting = asyncio.create_task(second())
        async with asyncio.timeout(GUARD_SECONDS):
            while not told:  # noqa: ASYNC110 - it polls as well
                await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert told[0] is not None
    assert (told[0].holder, told[0].address) == ("first", "here:1")
    assert read_tenure(path) == told[0]


async def test_a_place_that_cannot_be_used_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalUnusable, match="file"):
        async with lead(tmp_path / "file" / "journal", holder="first", lease_seconds=1.0):
            raise AssertionError("it leads")


def test_a_holder_counts_as_silent_only_after_a_whole_lease_without_a_change() -> None:
    def row(renewals: int) -> Tenure:
        return Tenure(1, "first", "", True, renewals)

    watched = Watched(lease_seconds=5.0)
    assert not watched.is_silent(0.0)
    watched.look(None, 0.0)
    assert not watched.is_silent(100.0)  # nobody has ever led, which the lock decides
    watched.look(row(1), 100.0)
    watched.look(row(1), 104.0)
    assert not watched.is_silent(104.9)
    watched.look(row(2), 104.9)
    assert not watched.is_silent(105.0)
    watched.look(None, 107.0)  # a moment in which the file could not be read changes nothing
    assert not watched.is_silent(109.8)
    assert watched.is_silent(109.9)
