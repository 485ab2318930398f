"""How long completed operations are remembered: for a time, up to a number, and up to a size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator


class Retention:
    """The names of completed operations, oldest first. Some may have been forgotten by request since."""

    def __init__(self, retain_seconds: float, max_operations: int, max_bytes: int) -> None:
        self._retain_seconds = retain_seconds
        self._max_operations = max_operations
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._completed: deque[tuple[float, str, int]] = deque()

    def add(self, name: str, now: float, size_bytes: int) -> None:
        """The operation completed now; `size_bytes` is what its outcome takes."""
        self._held_bytes += size_bytes
        self._completed.append((now + self._retain_seconds, name, size_bytes))

    def first(self) -> float | None:
        """When the oldest is to be forgotten, None if there is none."""
        return self._completed[0][0] if self._completed else None

    def pop_due(self, now: float) -> Iterator[str]:
        """Take out what is too old by now, and the oldest of what is too many."""
        while self._completed and (self._completed[0][0] <= now or self._too_much()):
            _, name, size_bytes = self._completed.popleft()
            self._held_bytes -= size_bytes
            yield name

    def _too_much(self) -> bool:
        """The youngest is kept whatever its size: its client is about to read it."""
        held = len(self._completed)
        return held > self._max_operations or (held > 1 and self._held_bytes > self._max_bytes)
