"""How long an agent waits before it opens the next stream: longer each time, and a random part of it, so that the workers of a
scheduler that was started again do not all come at once."""

from __future__ import annotations

import random

from rexec.worker.settings import WorkerSettings


class Reconnect:
    """Counts the attempts that failed."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._failed_attempts = 0

    def attached(self) -> None:
        """The last attempt was a success."""
        self._failed_attempts = 0

    def pause_seconds(self, *, refused: bool) -> float:
        """Before the next attempt. Nothing changes by asking often where it was refused."""
        settings = self._settings
        longest = min(
            settings.reconnect_min_seconds * 2.0 ** min(self._failed_attempts, 30), settings.reconnect_max_seconds
        )
        self._failed_attempts += 1
        if refused:
            return settings.reconnect_max_seconds * random.uniform(0.5, 1.0)
        return longest * random.random()
