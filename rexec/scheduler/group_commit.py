"""Nothing leaves before it is durable: what is to leave waits here for the commit that covers it.

All that has changed while one commit was under way goes into the next one, so under load a commit carries many actions, and
without load an action waits for nobody. What is small is written on the event loop, because a hop to a thread and back costs
several times what it takes to hand some kilobytes to the system; what is large, and everything for a while after the disk has
been slow, is written by a thread.

When the journal cannot be written (a full disk) the same rows are tried again and again, and what depends on them stays where
it is: nobody is told what might be forgotten. Who waits for an answer that can be given as a failure is given one at once, and
so are all who ask for more until a commit succeeds; what runs goes on running.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from cas.errors import SchedulerStops, StatusError, StoreFull, Unavailable
from rexec.scheduler.journal import Fenced, Journal, is_damage, is_full
from rexec.scheduler.observer import Observer, Unobserved
from rexec.scheduler.rows import Batch
from rexec.scheduler.way_out import Release

log = structlog.get_logger()

INLINE_ROWS: Final = 24
"""A batch of so many rows takes a fifth of a millisecond."""

SLOW_SECONDS: Final = 0.03
"""A small batch that took longer says that the disk is busy."""

SLOW_FOR_SECONDS: Final = 5.0

RETRY_SECONDS: Final = 0.5
"""Between two attempts to write what could not be written."""

SAY_AGAIN_SECONDS: Final = 60.0
"""Between two lines in the log about the same trouble."""

FLUSH_SECONDS: Final = 5.0
"""How long the end of the process may take to write what is left."""


class Source(Protocol):
    """What is to be written."""

    def __bool__(self) -> bool:
        """Whether there is anything."""
        ...

    def concern(self, operation_name: str) -> bool:
        """Whether something of this operation is in it."""
        ...

    def names(self) -> frozenset[str]:
        """The operations of which something is in it."""
        ...

    def take(self) -> Batch:
        """Take it out."""
        ...

    def hurry(self) -> None:
        """What is taken next is the last."""
        ...


@dataclass(slots=True)
class _Group:
    """What one commit covers."""

    batch: Batch
    names: frozenset[str]
    releases: deque[Release] = field(default_factory=deque)


class GroupCommit:
    """The way out for all effects. Belongs to the event loop."""

    def __init__(
        self,
        journal: Journal,
        source: Source,
        *,
        renew_seconds: float,
        trust_seconds: float,
        observer: Observer | None = None,
    ) -> None:
        """The journal is written to every `renew_seconds` at least. A commit that took longer than `trust_seconds` says
        nothing of who leads now, and another one is made before anything leaves."""
        self._observer: Observer = observer or Unobserved()
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set, with the reason, when the journal is another process's, or not to be used any more."""
        self.commits = 0
        self._journal = journal
        self._source = source
        self._renew_seconds = renew_seconds
        self._trust_seconds = trust_seconds
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._side = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._slow_until = float("-inf")
        self._is_moving = False
        self._under_way: _Group | None = None
        self._next: deque[Release] = deque()
        """What waits for the commit after that."""
        self._answers: dict[asyncio.Future[None], bool] = {}
        """Those who wait, and whether they would rather have a failure."""
        self.trouble: StatusError | None = None
        self._told_at = float("-inf")
        self._is_cut = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._renewal = self._loop.call_later(renew_seconds, self._renew)

    def require(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    def after(self, release: Release) -> None:
        if self._closed:
            return
        if self._source or self._next:
            self._next.append(release)
            self._soon()
        elif self._under_way is not None:
            self._under_way.releases.append(release)
        else:
            release()

    def covers(self, operation_name: str) -> bool:
        if self._source.concern(operation_name):
            return False
        return self._under_way is None or operation_name not in self._under_way.names

    def changed(self) -> None:
        if not self._closed and self._source:
            self._soon()

    async def durable(self, operation_name: str, *, rather_fail: bool = False) -> None:
        if self.covers(operation_name):
            return
        if self._closed:
            raise SchedulerStops()
        if rather_fail:
            self.require()
        answer: asyncio.Future[None] = self._loop.create_future()
        self._answers[answer] = rather_fail
        self.after(lambda: None if answer.done() else answer.set_result(None))
        try:
            await answer
        finally:
            del self._answers[answer]

    def also(self, batch: Batch) -> None:
        """Write this with the next commit; only before anything has changed."""
        self._under_way = _Group(batch, frozenset())
        self._idle.clear()
        self._write()

    # Commits

    def _soon(self) -> None:
        if self._under_way is None and not self._is_cut:
            self._is_cut = True
            self._idle.clear()
            self._loop.call_soon(self._cut)

    def _cut(self) -> None:
        """Write all that has changed until now; called between two events."""
        self._is_cut = False
        releases, self._next = self._next, deque()
        names = self._source.names()
        try:
            batch = self._source.take()
        except Exception as reason:
            log.exception("what is to be written to the scheduler's journal cannot be put into words")
            self._lose(f"changes cannot be written down: {reason}")
            return
        self._under_way = _Group(batch, names, releases)
        self._write()

    def _write(self) -> None:
        group = self._under_way
        assert group is not None, "only what has been cut is written"
        began_at = self._loop.time()
        if len(group.batch) <= INLINE_ROWS and began_at >= self._slow_until:
            failure: BaseException | None = None
            try:
                self._journal.write(group.batch)
            except Exception as reason:  # noqa: BLE001 - as from the thread: whatever it is, nothing leaves
                failure = reason
            if self._loop.time() > began_at + SLOW_SECONDS:
                self._slow_until = self._loop.time() + SLOW_FOR_SECONDS
            self._written(failure, began_at)
        else:
            writing = self._loop.run_in_executor(self._thread, self._journal.write, group.batch)
            writing.add_done_callback(lambda done: self._written(done.exception(), began_at))

    def _written(self, failure: BaseException | None, began_at: float) -> None:
        group = self._under_way
        if group is None or self.lost.done():
            return
        if isinstance(failure, Fenced):
            self._lose(str(failure))
        elif isinstance(failure, sqlite3.DatabaseError) and is_damage(failure):
            self._lose(f"the scheduler's journal {self._journal.path} is damaged: {failure}")
        elif isinstance(failure, sqlite3.Error):
            self._fail(failure)
        elif failure is not None:
            log.error("the scheduler's journal cannot be written", exc_info=failure)
            self._lose(f"the scheduler's journal {self._journal.path} cannot be written: {failure}")
        elif self._loop.time() - began_at > self._trust_seconds:
            # This process may have been stopped in between, and another one leads by now: ask before anything leaves.
            group.batch = Batch()
            self._write()
        else:
            self._observer.journal_committed(self._loop.time() - began_at, len(group.batch))
            self._succeed(group)

    def _succeed(self, group: _Group) -> None:
        self.commits += 1
        if self.trouble is not None:
            self.trouble = None
            self._told_at = float("-inf")
            log.warning("the scheduler's journal can be written again", path=str(self._journal.path))
        while group.releases:  # what is released may add to them
            group.releases.popleft()()
        self._under_way = None
        if self._source or self._next:
            self._soon()
        else:
            self._idle.set()
        if self._journal.wants_checkpoint and not self._is_moving:
            self._is_moving = True
            moving = self._loop.run_in_executor(self._side, self._journal.checkpoint)
            moving.add_done_callback(self._moved)

    def _moved(self, _moving: asyncio.Future[None]) -> None:
        self._is_moving = False
        if not self._closed:
            self._thread.submit(self._journal.curb_log)

    def _fail(self, reason: sqlite3.Error) -> None:
        if is_full(reason):
            self.trouble = StoreFull("no room on the scheduler's disk for its journal; nothing new is taken on")
        else:
            self.trouble = Unavailable("the scheduler's journal cannot be written; nothing new is taken on")
        now = self._loop.time()
        if now >= self._told_at + SAY_AGAIN_SECONDS:
            self._told_at = now
            log.error(
                "the scheduler's journal cannot be written: nothing new is taken on, results wait, what runs goes on",
                path=str(self._journal.path),
                reason=str(reason),
            )
        for answer, rather_fail in self._answers.items():
            if rather_fail and not answer.done():
                answer.set_exception(self.trouble)
        self._loop.call_later(RETRY_SECONDS, self._again)

    def _again(self) -> None:
        if not self.lost.done() and self._under_way is not None:
            self._write()

    def _renew(self) -> None:
        if self._closed:
            return
        self._renewal = self._loop.call_later(self._renew_seconds, self._renew)
        self._soon()

    def give_up(self, reason: str) -> None:
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        """Nothing that waits may leave any more."""
        self._closed = True
        self._under_way = None
        self._next.clear()
        self._renewal.cancel()
        self._idle.set()
        if not self.lost.done():
            self.lost.set_result(reason)
        self._stop_answers()

    def _stop_answers(self) -> None:
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(SchedulerStops())

    # The end

    async def close(self) -> None:
        """Write what is left, if that can be done within `FLUSH_SECONDS`, and let the thread go."""
        self._renewal.cancel()
        if not self._closed:
            self._source.hurry()
            self._soon()
            try:
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._idle.wait()
            except TimeoutError:
                log.error(
                    "the scheduler ends and its last changes are not in the journal", path=str(self._journal.path)
                )
        self._closed = True
        self._under_way = None
        self._stop_answers()
        await asyncio.to_thread(self._thread.shutdown, wait=True)
        await asyncio.to_thread(self._side.shutdown, wait=True)
