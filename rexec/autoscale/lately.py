"""How many workers of each pool were wanted lately, so that a queue that empties for a moment cancels nothing that starts.

The policy itself remembers nothing. Whoever asks it notes each decision's `wanted` here, and gives the highest of the last
seconds back with the next question (PoolView.lately_wanted).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

WINDOW_SECONDS: Final = 15.0
"""A build that waits for one action to end often has nothing in the queue for so long, and then a lot."""


class Lately:
    """The highest number of workers wanted of each pool within the window. Times are monotonic seconds and never go back."""

    def __init__(self, window_seconds: float = WINDOW_SECONDS) -> None:
        self._window_seconds = window_seconds
        self._wanted: dict[str, deque[tuple[float, int]]] = {}
        """Per pool, oldest first; only those that no later one reaches, so numbers fall from left to right."""

    def note(self, pool: str, wanted: int, now: float) -> None:
        """A decision for a pool wanted so many."""
        seen = self._wanted.setdefault(pool, deque())
        while seen and seen[-1][1] <= wanted:
            seen.pop()
        seen.append((now, wanted))

    def wanted(self, pool: str, now: float) -> int:
        """The most that was wanted within the window; 0 of a pool that no decision was made for."""
        seen = self._wanted.get(pool)
        if not seen:
            return 0
        # The last one holds until the next is noted, however long ago it was.
        while len(seen) > 1 and seen[0][0] < now - self._window_seconds:
            seen.popleft()
        return seen[0][1]

    def keep(self, pools: Iterable[str]) -> None:
        """Forget all other pools."""
        kept = set(pools)
        for name in [name for name in self._wanted if name not in kept]:
            del self._wanted[name]
