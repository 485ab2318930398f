"""Workers that somebody kills soon after they have come, one after the other.

One that is killed says nothing of the next one: it is replaced at once. When each is killed as soon as it has come, by the kernel
for the memory that it takes at its start or by whoever cleans up a cluster, asking for more is of no use now.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

FREE: Final = 4
"""So many may be killed in a row."""


class EarlyEnds:
    """By pool, in a row."""

    def __init__(self) -> None:
        self._ended: dict[str, int] = {}

    def ended(self, pool: str) -> str:
        """A worker was killed soon after it had come; why the pool should be held back, for people, empty if it should not."""
        self._ended[pool] = times = self._ended.get(pool, 0) + 1
        return f"{times} workers in a row were killed soon after they had come" if times > FREE else ""

    def stayed(self, pool: str) -> None:
        """A worker has been there for long enough."""
        self._ended.pop(pool, None)

    def keep(self, pools: Collection[str]) -> None:
        """Forget all others."""
        for name in [name for name in self._ended if name not in pools]:
            del self._ended[name]
