"""Autoscalers that follow the queue: what they are told and when, and what they say.

What waits and who works is put together (rexec/scheduler/demand.py) only while somebody follows, once for all who do: within
COALESCE_SECONDS after a change if nothing was told lately, and less often while one change follows the other. Whoever reads
slowly gets the latest state and misses those before.

What autoscalers say of their pools goes to rexec/scheduler/pools.py; workers that they name are drained as by an operator, and
those whose machines have ended are not waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

import structlog

from cas.errors import MalformedRequest, ResourceExhausted, SchedulerStops, StatusError
from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.scheduler import events as e
from rexec.scheduler.clock import Clock, Timer
from rexec.scheduler.demand import demand_of
from rexec.scheduler.drains import MAX_GRACE_SECONDS
from rexec.scheduler.pool import read_pools
from rexec.scheduler.pools import KEPT_SECONDS
from rexec.scheduler.state import QueueState

log = structlog.get_logger()

COALESCE_SECONDS: Final = 0.02
"""What changes together is told together."""
LEAST_SECONDS: Final = 0.5
"""Between two messages while things change."""
LEAST_MORE_WORK_SECONDS: Final = 0.1
"""The same when more waits than was told."""
MOST_SECONDS: Final = 5.0
"""Between two messages when nothing changes."""
MOST_SHARE: Final = 0.05
"""Of the time of the process that is spent on putting messages together."""

MAX_FOLLOWERS: Final = 100
MAX_NAMES: Final = 1000
"""Of workers, in one message."""
MAX_REASON_CHARACTERS: Final = 300
STEP: Final = 25
"""Workers drained before others get their turn."""

_QUIET = frozenset({e.Credit, e.Progress, e.Record, e.WaiterJoined, e.Forget})
"""Events that change nothing of what is told."""


class Autoscaling:
    """All that follow one queue."""

    def __init__(
        self,
        state: Callable[[], QueueState],
        clock: Clock,
        drain: Callable[[str, float, str], object],
        ended: Callable[[str], None],
    ) -> None:
        """`drain` has the worker of an id leave within so many seconds, for a reason; `ended` gives up one that is away."""
        self._state = state
        self._clock = clock
        self._drain = drain
        self._ended = ended
        self._followers: set[Follower] = set()
        self._timer: Timer | None = None
        self._due = float("inf")
        self._made_at = float("-inf")
        self._least_seconds = LEAST_MORE_WORK_SECONDS
        self._queued = 0
        """Queued operations when the last message was made."""
        self._closed = False
        self.latest = autoscaling_pb2.ToAutoscaler()
        """Shared: never change it."""

    @property
    def followed(self) -> bool:
        """Whether anybody wants to know."""
        return bool(self._followers)

    @property
    def closed(self) -> bool:
        """Whether the scheduler stops."""
        return self._closed

    def follow(self) -> Follower:
        """Somebody follows from now on, until he is closed. Raises SchedulerStops, and ResourceExhausted if too many do."""
        if self._closed:
            raise SchedulerStops()
        if len(self._followers) >= MAX_FOLLOWERS:
            raise ResourceExhausted(f"{MAX_FOLLOWERS} autoscalers follow already, the most allowed")
        follower = Follower(self)
        self._followers.add(follower)
        if self._clock.monotonic() > self._made_at + LEAST_MORE_WORK_SECONDS:
            self._make()
        elif len(self._followers) == 1:
            # Nobody has been told of what has changed since it was made.
            self._wake_at(self._made_at + self._least_seconds)
        return follower

    def glance(self) -> autoscaling_pb2.ToAutoscaler:
        """The state now, for one who does not follow: a moment old if somebody has just asked. Shared: never change it. Raises
        SchedulerStops."""
        if self._closed:
            raise SchedulerStops()
        if self._clock.monotonic() >= self._made_at + self._least_seconds:
            self._make()
        return self.latest

    def stirred(self, event: e.Event) -> None:
        """The queue has taken an event. To be called only while somebody follows."""
        if type(event) in _QUIET:
            return
        more = self._state().queued_operations > self._queued
        spaced = self._made_at + (self._least_seconds if more else max(LEAST_SECONDS, self._least_seconds))
        self._wake_at(max(self._clock.monotonic() + COALESCE_SECONDS, spaced))

    def close(self) -> None:
        """The scheduler stops: the followers' streams end with UNAVAILABLE."""
        self._closed = True
        self._no_timer()
        for follower in self._followers:
            follower.wake()

    # What is told

    def _wake_at(self, when: float) -> None:
        if when < self._due:
            self._no_timer()
            self._due = when
            self._timer = self._clock.call_at(when, self._make)

    def _no_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = float("inf")

    def _make(self) -> None:
        self._no_timer()
        state, now = self._state(), self._clock.monotonic()
        if self._followers:
            self._wake_at(now + MOST_SECONDS)
        self._made_at, self._queued = now, state.queued_operations
        self.latest = demand_of(state, now)
        self._least_seconds = max(LEAST_MORE_WORK_SECONDS, (self._clock.monotonic() - now) / MOST_SHARE)
        for follower in self._followers:
            follower.wake()

    # What is said

    async def told(self, follower: Follower, message: autoscaling_pb2.FromAutoscaler) -> None:
        """What a follower says. Raises MalformedRequest."""
        match message.WhichOneof("message"):
            case "pools":
                self._state().fleet.pools.tell(follower, read_pools(message.pools))
            case "leave":
                await self._leave(message.leave)
            case "ended":
                await self._end(message.ended.names)
            case _:
                pass  # something that a newer autoscaler says

    async def _leave(self, leave: autoscaling_pb2.Leave) -> None:
        _require_few(leave.names)
        grace = leave.grace_seconds
        if not 0 <= grace <= MAX_GRACE_SECONDS:
            raise MalformedRequest(f"grace_seconds is {grace}, expected 0 to {MAX_GRACE_SECONDS:g}")
        if len(leave.reason) > MAX_REASON_CHARACTERS:
            raise MalformedRequest(
                f"a reason of {len(leave.reason)} characters, expected at most {MAX_REASON_CHARACTERS}"
            )
        by_name = self._state().fleet.by_name
        meant = [by_name[name] for name in dict.fromkeys(leave.names) if name in by_name]
        chosen = [worker for worker in meant if not (leave.only_idle and worker.leases)]
        reason = f"drained: {leave.reason}" if leave.reason else "drained by the autoscaler"
        if chosen:
            names = ", ".join(worker.name for worker in chosen[:10])
            log.info("workers are drained", workers=len(chosen), names=names, grace_seconds=grace, reason=reason)
        for number, worker in enumerate(chosen):
            # One that has got something to do while others were drained is not idle any more.
            if not (leave.only_idle and worker.leases):
                self._drain(worker.worker_id, grace, reason)
            if number % STEP == STEP - 1:
                await asyncio.sleep(0)

    async def _end(self, names: Sequence[str]) -> None:
        _require_few(names)
        by_name = self._state().fleet.by_name
        for number, name in enumerate(dict.fromkeys(names)):
            worker = by_name.get(name)
            if worker is not None and worker.connected:
                log.warning("a worker is connected whose machine is said to have ended; it is left alone", worker=name)
            elif worker is not None:
                log.info("the machine of a worker has ended", worker=name, leases=len(worker.leases))
                self._ended(worker.worker_id)
            if number % STEP == STEP - 1:
                await asyncio.sleep(0)

    def left(self, follower: Follower) -> None:
        """The follower is gone. Its pools are remembered for a while. Harmless the second time."""
        if follower not in self._followers:
            return
        self._followers.discard(follower)
        if not self._followers:
            self._no_timer()
        pools, now = self._state().fleet.pools, self._clock.monotonic()
        pools.left(follower, now)
        self._clock.call_at(now + KEPT_SECONDS, lambda: pools.forget_due(self._clock.monotonic()))


def _require_few(names: Sequence[str]) -> None:
    if len(names) > MAX_NAMES:
        raise MalformedRequest(f"{len(names)} names, expected at most {MAX_NAMES}")


class Follower:
    """One autoscaler: what it is told, and what it says. Made by `Autoscaling.follow`."""

    def __init__(self, autoscaling: Autoscaling) -> None:
        self._autoscaling = autoscaling
        self._news = asyncio.Event()
        self._news.set()
        self._ended = False
        self._failure: StatusError | None = None

    async def snapshots(self) -> AsyncGenerator[autoscaling_pb2.ToAutoscaler, None]:
        """The state now, at every change, and every few seconds without one; of several that have not been read only the
        latest. To be called once, and closed (contextlib.aclosing), which ends the following. Messages are shared: never
        change them. Raises SchedulerStops, and the failure that `end` was told."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                if self._autoscaling.closed:
                    raise SchedulerStops()
                if self._failure is not None:
                    raise self._failure
                yield self._autoscaling.latest
                if self._ended:
                    return
        finally:
            self.close()

    async def tell(self, message: autoscaling_pb2.FromAutoscaler) -> None:
        """Say which pools there are, whom to drain, or who has ended. Raises MalformedRequest."""
        await self._autoscaling.told(self, message)

    def end(self, failure: StatusError | None = None) -> None:
        """`snapshots` is to end, with a failure or without."""
        self._ended, self._failure = True, failure
        self._news.set()

    def close(self) -> None:
        """Follow no more. Harmless the second time."""
        self._autoscaling.left(self)

    def wake(self) -> None:
        """There is something new."""
        self._news.set()
