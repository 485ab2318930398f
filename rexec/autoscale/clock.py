"""Time, as the loop sees it. Tests put a clock of their own in its place."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Two times and a pause."""

    def monotonic(self) -> float:
        """Seconds that never go back; the zero point means nothing."""
        ...

    def wall(self) -> float:
        """Seconds since 1970: machines are as old as that says, for they outlive this process."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return so much later."""
        ...


class SystemClock:
    """The real one."""

    def monotonic(self) -> float:
        """See Clock."""
        return time.monotonic()

    def wall(self) -> float:
        """See Clock."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """See Clock."""
        await asyncio.sleep(seconds)
