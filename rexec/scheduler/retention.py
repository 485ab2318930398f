"""How long completed operations are remembered: for a time, and up to a number."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator


class Retention:
    """The names of completed operations, oldest first. Some may have been forgotten by request since."""

    def __init__(self, retain_seconds: float, max_operations: int) -> None:
        self._retain_seconds = retain_seconds
        self._max_operations = max_operations
        self._completed: deque[tuple[float, str]] = deque()

    def add(self, name: str, now: float) -> None:
        """The operation completed now."""
        self._completed.append((now + self._retain_seconds, name))

    def first(self) -> float | None:
        """When the oldest is to be forgotten, None if there is none."""
        return self._completed[0][0] if self._completed else None

    def pop_due(self, now: float) -> Iterator[str]:
        """Take out what is too old by now, and the oldest of what is too many."""
        while self._completed and (
            self._completed[0][0] <= now or len(self._completed) > self._max_operations
        ):  # fmt: skip
            yield self._completed.popleft()[1]
