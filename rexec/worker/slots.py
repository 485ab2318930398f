"""The room for commands that run at once: an action takes one slot or several, and they come in the order of asking."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """So many slots. First come, first served: else an action that needs all of them would wait for ever among small ones."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, count: int) -> AsyncIterator[None]:
        """Have `count` slots, at most `total`, until the end of the block."""
        if not 1 <= count <= self.total:
            raise ValueError(f"{count} slots, expected 1 to {self.total}")
        if self._waiting or count > self.free:
            await self._wait(count)
        else:
            self.free -= count
        try:
            yield
        finally:
            self._give_back(count)

    async def _wait(self, count: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(count)  # the turn came in the moment of the cancellation
            else:
                self._waiting.remove((count, turn))
                self._give_back(0)  # who stood behind it may need less
            raise

    def _give_back(self, count: int) -> None:
        self.free += count
        while self._waiting and self._waiting[0][0] <= self.free:
            wanted, turn = self._waiting.popleft()
            self.free -= wanted
            turn.set_result(None)
