"""Outlasting a store that is not reached: what an action has made is worth more than a few minutes of waiting.

The store's own client tries each call again for a while (cas/remote.py); this is for what takes longer than that, such as the
restart of a server on another machine. The slot has been given back by then, and the agent takes no more leases than it
has room for, so that nothing piles up but the outputs of what ran already.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from cas.errors import Code, StatusError

_log = structlog.get_logger()
_T = TypeVar("_T")

FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 10.0
"""Between two attempts; the real ones are random below it, so that a thousand workers do not come back in one instant."""


class Outage:
    """How one agent bears with its store."""

    def __init__(
        self,
        patience_seconds: float,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience_seconds = patience_seconds
        self._pause = pause
        self._clock = clock

    async def outlast(
        self, what: str, attempt: Callable[[], Awaitable[_T]], is_worth_waiting: Callable[[], bool] = lambda: True
    ) -> _T:
        """Do it, again and again while it fails with UNAVAILABLE, it `is_worth_waiting`, and patience lasts.

        Raises the last failure then, and every other failure at once. `what` is for the log.
        """
        failed_at: float | None = None
        longest = FIRST_PAUSE_SECONDS
        while True:
            try:
                done = await attempt()
            except StatusError as failure:
                now = self._clock()
                if failure.code is not Code.UNAVAILABLE or not is_worth_waiting():
                    raise
                if failed_at is None:
                    failed_at = now
                    _log.warning(
                        "the store is not reached; trying again", what=what, for_seconds=self._patience_seconds,
                        reason=str(failure),
                    )  # fmt: skip
                pause = longest * random.uniform(0.5, 1.0)
                if now + pause - failed_at > self._patience_seconds:
                    raise
                await self._pause(pause)
                longest = min(longest * 2, LONGEST_PAUSE_SECONDS)
            else:
                if failed_at is not None:
                    _log.info(
                        "the store is reached again", what=what, after_seconds=round(self._clock() - failed_at, 1)
                    )
                return done
