"""Two workers that live under one name.

A worker that restarts takes over its name at once, even if the connection of the one before looks alive still. But two that
are both alive would take it from each other for ever, and lose everything they run each time. So a session that has been
replaced does not get its name back while its successor is connected, and once the name has changed hands twice between
connected workers within `contested_seconds`, newcomers are refused as well. Whoever is connected then stays.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from cas.errors import AlreadyExists
from rexec.scheduler.task import Worker

MAX_NAMES: Final = 10_000
"""Names and sessions that are remembered, the last ones."""
CHANGES: Final = 2


class ContestedNames:
    """Who took over whose name lately, while both were connected."""

    def __init__(self) -> None:
        self._replaced: OrderedDict[str, None] = OrderedDict()
        """Sessions."""
        self._changes: OrderedDict[str, deque[float]] = OrderedDict()
        """When each name changed hands."""

    def take_over(self, worker_id: str, holder: Worker, within_seconds: float, now: float) -> None:
        """A session wants the name of a worker that is connected. Raises AlreadyExists; then nothing has changed."""
        changes = self._changes.get(holder.name, deque())
        contested = len(changes) == CHANGES and now - changes[0] <= within_seconds
        if contested or worker_id in self._replaced:
            raise AlreadyExists(
                f"another worker named {holder.name!r} is connected and lives; give each worker a name of its own"
                " ([worker] name)"
            )
        self._replaced[holder.worker_id] = None
        self._changes.setdefault(holder.name, deque(maxlen=CHANGES)).append(now)
        self._changes.move_to_end(holder.name)
        for table in (self._replaced, self._changes):
            while len(table) > MAX_NAMES:
                table.popitem(last=False)
