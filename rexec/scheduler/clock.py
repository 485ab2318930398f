"""Time, as the asynchronous shell sees it. Tests put a clock of their own in its place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is due at some time."""

    def cancel(self) -> None:
        """Do not make the call. Harmless after it was made."""
        ...


class Clock(Protocol):
    """The time, and calls at a given time."""

    def monotonic(self) -> float:
        """Seconds that never go back; the zero point means nothing."""
        ...

    def wall(self) -> float:
        """Seconds since 1970 in UTC, for timestamps that people read."""
        ...

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` when `monotonic` has reached `when`."""
        ...


class SystemClock:
    """The event loop's own time."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return time.time()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_at(when, callback)
