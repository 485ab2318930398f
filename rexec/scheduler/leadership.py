"""Who leads: of all processes that could be the scheduler, the one that may write to the journal.

Two things say so. The lock of a file beside the journal (flock) is let go of by the kernel the moment its holder dies: whoever
waits takes over at once. A holder that hangs or is stopped keeps the lock, and so the journal has a row as well (`Tenure`), with
a figure that rises while the holder lives; when it stands still for `lease_seconds` by the clock of whoever waits, that one takes
over without the lock. Clocks of two machines are never compared.

Taking over raises the generation in that row. Every commit asks for it first, so the old leader cannot write any more, and as
nothing leaves before it is committed (rexec/scheduler/group_commit.py), it cannot say anything either: it ends.

What is left is a leader that was stopped in the middle of a commit, for it has the lock inside SQLite and nobody can write: then
somebody has to end that process, as Kubernetes does when its probes fail.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from cas.file_lock import lock_file
from rexec.scheduler.journal import Journal, JournalUnusable, Tenure, read_tenure

log = structlog.get_logger()

POLL_SECONDS: Final = 0.1
"""How often whoever waits tries the lock: a system call."""

READS_A_LEASE: Final = 10
"""How often the row is read within `lease_seconds`."""


def lock_path(journal: Path) -> Path:
    """The file whose lock the leader has."""
    return journal.with_name(f"{journal.name}.lock")


@dataclass(slots=True)
class Watched:
    """The row of another process, as one that waits sees it. Time is an argument."""

    lease_seconds: float
    _tenure: Tenure | None = None
    _changed_at: float = field(default=float("-inf"))

    def look(self, tenure: Tenure | None, now: float) -> None:
        """This is the row now."""
        if tenure is not None and tenure != self._tenure:
            self._tenure, self._changed_at = tenure, now

    def is_silent(self, now: float) -> bool:
        """Whether the holder has shown no sign of life for so long that it counts as gone."""
        return self._tenure is not None and now >= self._changed_at + self.lease_seconds


@asynccontextmanager
async def lead(
    path: Path,
    *,
    holder: str,
    address: str = "",
    lease_seconds: float,
    waits: Callable[[Tenure | None], None] = lambda _tenure: None,
) -> AsyncIterator[Journal]:
    """Wait until this process leads; then the journal is its own until the block ends or a write raises Fenced.

    `holder` names this process for people and `address` is where it is reached. `waits` is called, once, with who leads if
    somebody else does. Raises JournalUnusable.
    """
    descriptor = -1
    try:
        journal, descriptor = await _won(path, holder, address, lease_seconds, waits)
        log.info("leads", journal=str(path), generation=journal.generation, holder=holder)
        tasks = asyncio.TaskGroup()
        await tasks.__aenter__()
        # One who took over from a leader that hangs gets the lock when that one ends.
        locking = tasks.create_task(_lock_later(path, journal)) if descriptor < 0 else None
        try:
            yield journal
        finally:
            if locking is not None:
                if locking.done():
                    descriptor = locking.result()
                locking.cancel()
            # Not told of the block's own failure: it would come out inside an ExceptionGroup.
            await tasks.__aexit__(None, None, None)
            await asyncio.to_thread(journal.close)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


async def _won(
    path: Path, holder: str, address: str, lease_seconds: float, waits: Callable[[Tenure | None], None]
) -> tuple[Journal, int]:
    """The journal taken over, and the descriptor of the lock, -1 without it."""
    loop = asyncio.get_running_loop()
    watched = Watched(lease_seconds)
    read_at = float("-inf")
    tenure: Tenure | None = None
    is_told = False
    while True:
        descriptor = _locked(path)
        now = loop.time()
        if descriptor >= 0 or now >= read_at + lease_seconds / READS_A_LEASE:
            read_at = now
            tenure = await asyncio.to_thread(read_tenure, path)
            watched.look(tenure, loop.time())
        silent = watched.is_silent(loop.time())
        # Whoever has the lock and finds that the leader does not need it must wait like anybody else.
        if silent or (descriptor >= 0 and (tenure is None or tenure.locked)):
            seen = None if descriptor >= 0 else tenure
            journal = await asyncio.to_thread(_taken_over, path, holder, address, seen)
            if journal is not None:
                if silent and descriptor < 0:
                    log.warning("takes over from a scheduler that is silent", holder=tenure.holder if tenure else "")
                return journal, descriptor
        if descriptor >= 0:
            os.close(descriptor)
        if not is_told:
            is_told = True
            waits(tenure)
        await asyncio.sleep(POLL_SECONDS)


def _locked(path: Path) -> int:
    """A descriptor that holds the lock, -1 if somebody else does. Raises JournalUnusable."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return lock_file(lock_path(path))
    except BlockingIOError:
        return -1
    except OSError as reason:
        raise JournalUnusable(f"the lock of the scheduler's journal {path} cannot be made: {reason}") from reason


def _taken_over(path: Path, holder: str, address: str, seen: Tenure | None) -> Journal | None:
    """The journal, if nobody has written to it since `seen`, which is None for who has the lock. Raises JournalUnusable if
    nobody else can be the reason."""
    locked = seen is None
    try:
        journal = Journal.open(path, alone=locked)
    except JournalUnusable:
        if locked:
            raise
        return None  # the leader that hangs may have it in use
    try:
        if journal.take_over(seen or journal.tenure(), holder, address, locked=locked):
            return journal
    except sqlite3.Error as reason:
        journal.close()
        if locked:
            raise JournalUnusable(f"the scheduler's journal {path} cannot be written: {reason}") from reason
        return None
    journal.close()
    return None


async def _lock_later(path: Path, journal: Journal) -> int:
    while True:
        descriptor = _locked(path)
        if descriptor >= 0:
            journal.locked = True  # said with the next commit
            return descriptor
        await asyncio.sleep(POLL_SECONDS)
