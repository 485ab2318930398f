"""A frontend's connection to the scheduler, kept up: made again when it breaks, with the first of several schedulers that
answers.

While every scheduler refuses this frontend, nothing waits for one: whoever asks is told why at once.

A scheduler that takes over has a higher generation than the one before (frontends.proto, FrontendWelcome), so that one which
was replaced and does not know it is left alone. One that is silent counts as gone, even though the system still holds
its end of the connection open.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, Self

import structlog

from cas.errors import SchedulerStops, Unavailable
from protos.rexec.scheduler.v1 import frontends_pb2
from rexec.scheduler.clock import Clock
from rexec.scheduler.scheduler_link import Dial, LinkBroken, Refused, SchedulerLink

log = structlog.get_logger()

PAUSE_SECONDS: Final = 0.05
"""Between two attempts to connect; doubled up to MAX_PAUSE_SECONDS while they fail."""

MAX_PAUSE_SECONDS: Final = 1.0

REFUSED_PAUSE_SECONDS: Final = 5.0
"""Between two attempts while every scheduler refuses this frontend: somebody has to change something first."""

WELCOME_SECONDS: Final = 5.0
"""How long a scheduler may take to say who it is."""

MAX_TOLD: Final = 10
"""Reasons that the log is told of while there is no connection."""

SILENT_HEARTBEATS: Final = 5
"""A scheduler that has missed so many heartbeats counts as gone."""

BATCH_BYTES: Final = 1 << 20
"""A message is sent when it has so many bytes; the last request may make it larger."""

BATCH_REQUESTS: Final = 5_000


class Connection:
    """To be entered before it is used. `repeat` says what has to be asked at the beginning of each connection, and `take` is
    given what comes; it lets no exception out. `refused` is told each time that the last of the schedulers refuses."""

    def __init__(
        self,
        dials: Sequence[Dial],
        hello: frontends_pb2.FrontendHello,
        clock: Clock,
        wait_seconds: float,
        repeat: Callable[[], Iterable[frontends_pb2.FrontendRequest]],
        take: Callable[[frontends_pb2.FrontendAnswer], None],
        refused: Callable[[Unavailable], None],
    ) -> None:
        if not dials:
            raise ValueError("no scheduler is named")
        self._dials = tuple(dials)
        self._hello = hello
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._repeat = repeat
        self._take = take
        self._refused = refused
        self._unsent: deque[frontends_pb2.FrontendRequest] = deque()
        """For the present connection."""
        self._to_send = asyncio.Event()
        self.link: SchedulerLink | None = None
        """None while there is none."""
        self.place = 0
        """Which of the schedulers is the one to talk to, as far as is known: its index among the dials."""
        self._trouble = "it has not answered yet"
        self._refusals: dict[int, str] = {}
        """What those schedulers said that refused at the last attempt, by index among the dials."""
        self._told: set[str] = set()
        """The troubles that the log has since there was a connection."""
        self._changed = asyncio.Event()
        """Set at every change of `link` and at each refusal by all, and then replaced."""
        self._generation = 0
        self._heard_at = 0.0
        self._silence_seconds = 0.0
        self.closed = False
        """Whether no further connection will be made."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._stay_connected(), name="connection to the scheduler")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True
        self._link_is(None)
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def trouble(self) -> str:
        """Why there is no connection to a scheduler, in words; "" if there is one."""
        return "" if self.link is not None else f"not connected to a scheduler: {self._trouble}"

    def refusal(self) -> Unavailable | None:
        """What to answer with if every scheduler refuses this frontend. One that is away may yet have it."""
        if self.link is not None or len(self._refusals) < len(self._dials):
            return None
        return Unavailable("; ".join(self._refusals.values()), REFUSED_PAUSE_SECONDS)

    async def up(self, within_seconds: float | None = None) -> SchedulerLink:
        """The connection, for calls that are not the interface's own; waits no longer than `within_seconds`. Raises
        Unavailable if there is none for long."""
        wait_seconds = self._wait_seconds if within_seconds is None else min(self._wait_seconds, within_seconds)
        give_up = self._clock.monotonic() + wait_seconds
        while self.link is None:
            if self.closed:
                raise SchedulerStops()
            refusal = self.refusal()
            if refusal is not None:
                raise refusal
            if self._clock.monotonic() >= give_up:
                raise self.unreached(wait_seconds)
            await self.change(give_up)
        return self.link

    async def change(self, until: float) -> None:
        """Until the connection is made, broken or refused, or it is `until`."""
        changed = self._changed
        timer = self._clock.call_at(until, changed.set)
        try:
            await changed.wait()
        finally:
            timer.cancel()
            if changed is self._changed and changed.is_set():
                self._changed = asyncio.Event()

    def _link_is(self, link: SchedulerLink | None) -> None:
        self.link = link
        self._has_changed()

    def _has_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def unreached(self, wait_seconds: float | None = None) -> Unavailable:
        waited_seconds = self._wait_seconds if wait_seconds is None else wait_seconds
        return Unavailable(f"no scheduler has answered for {waited_seconds:.3g} s: {self._trouble}")

    def put(self, request: frontends_pb2.FrontendRequest) -> None:
        """Send it if there is a connection. At the next one `repeat` is asked."""
        if self.link is not None:
            self._unsent.append(request)
            self._to_send.set()

    async def _stay_connected(self) -> None:
        pause = PAUSE_SECONDS
        # Asked each time: a task group that fails at the moment at which it is cancelled raises its failure alone.
        while not self.closed:
            was_linked, refused = False, ""
            try:
                async with self._dials[self.place]() as link:
                    await self._welcomed(link)
                    was_linked = True
                    self._told.clear()
                    self._refusals.clear()
                    pause = PAUSE_SECONDS
                    await self._converse(link)
            except* LinkBroken as group:
                broken = _first(group)
                refused = str(broken) if isinstance(broken, Refused) else ""
                self._tell(broken, was_linked)
            except* Exception:
                self._trouble = "a fault of this frontend; its log says more"
                log.exception("connection to the scheduler failed")
            finally:
                self._unsent.clear()
                if self.link is not None:
                    self._link_is(None)
            self._note(refused)
            await self.pause(pause if self.refusal() is None else REFUSED_PAUSE_SECONDS)
            if not was_linked:
                pause = min(pause * 2, MAX_PAUSE_SECONDS)
                self.place = (self.place + 1) % len(self._dials)

    def _note(self, refused: str) -> None:
        """What this scheduler's refusal is, "" if it did not refuse; whoever waits learns it if no other may answer."""
        if not refused:
            self._refusals.pop(self.place, None)
            return
        self._refusals[self.place] = refused
        refusal = self.refusal()
        if refusal is not None:
            self._refused(refusal)
            self._has_changed()

    def _tell(self, broken: Exception, was_linked: bool) -> None:
        """One line when the connection is lost and one for each reason why there is no other, not for each attempt."""
        self._trouble = str(broken)
        if was_linked:
            log.warning("connection to the scheduler lost", reason=self._trouble)
        elif self._trouble not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(self._trouble)
            log.warning("scheduler not reached, will try again", reason=self._trouble)
        else:
            log.debug("scheduler not reached", reason=self._trouble)

    async def pause(self, seconds: float) -> None:
        over = asyncio.Event()
        timer = self._clock.call_at(self._clock.monotonic() + seconds, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    async def _welcomed(self, link: SchedulerLink) -> None:
        try:
            async with asyncio.timeout(WELCOME_SECONDS):
                await link.send(frontends_pb2.FromFrontend(hello=self._hello))
                message = await link.receive()
        except TimeoutError:
            raise LinkBroken(f"it has not said who it is for {WELCOME_SECONDS:g} s") from None
        if not message.HasField("welcome"):
            raise LinkBroken("it answers with something else than who it is")
        welcome = message.welcome
        if welcome.generation < self._generation:
            raise LinkBroken(
                f"{welcome.scheduler_name!r:.100} is of generation {welcome.generation}, and {self._generation} has been seen:"
                " another one has taken over; if the journal was removed, restart this frontend"
            )
        self._generation = welcome.generation
        self._silence_seconds = SILENT_HEARTBEATS * max(1, min(welcome.heartbeat_interval.seconds, 60))
        self._heard_at = self._clock.monotonic()
        self._unsent.extend(self._repeat())
        self._to_send.set()
        log.info(
            "connected to the scheduler",
            scheduler=welcome.scheduler_name[:100],
            generation=welcome.generation,
            repeated=len(self._unsent),
        )
        self._link_is(link)

    async def _converse(self, link: SchedulerLink) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send(link))
            tasks.create_task(self._receive(link))
            tasks.create_task(self._notice_silence())

    async def _send(self, link: SchedulerLink) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while self._unsent:
                message = frontends_pb2.FromFrontend()
                size_bytes = 0
                while self._unsent and size_bytes < BATCH_BYTES and len(message.requests) < BATCH_REQUESTS:
                    request = self._unsent.popleft()
                    message.requests.append(request)
                    size_bytes += request.ByteSize()
                await link.send(message)

    async def _receive(self, link: SchedulerLink) -> None:
        while True:
            message = await link.receive()
            self._heard_at = self._clock.monotonic()
            for answer in message.answers:
                self._take(answer)

    async def _notice_silence(self) -> None:
        while True:
            due = self._heard_at + self._silence_seconds
            left = due - self._clock.monotonic()
            if left <= 0:
                raise LinkBroken(f"nothing heard for {self._silence_seconds:g} s")
            await self.pause(left)


def _first(group: BaseExceptionGroup[LinkBroken]) -> Exception:
    for failure in group.exceptions:
        return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
    raise AssertionError("a group holds something")
