"""What the log is told of streams that do not come about: enough to see why, and not a line for each attempt."""

from __future__ import annotations

from rexec.worker.link import LinkBroken, NotReached, Refused

UNREACHED_SECONDS = 1.0
"""A server that is away for less, as at its restart, is nothing to write of."""

TOLD_SECONDS = 60.0
"""The same trouble is written of again after this."""

MAX_REASONS = 16
"""Different reasons told within TOLD_SECONDS; one beyond them, of a text that is never the same twice, waits for its turn."""


class Trouble:
    """The trouble that an agent has had since it was attached last. Times are monotonic, in seconds."""

    def __init__(self) -> None:
        self._unreached_since: float | None = None
        self._told_at: dict[str, float] = {}
        """By reason. Several, because each of several schedulers in turn has its own."""

    def over(self) -> None:
        """The agent is attached."""
        self._unreached_since = None
        self._told_at.clear()

    def news(self, broken: LinkBroken, now: float) -> str:
        """The event to write of `broken`; empty if nothing needs to be said now."""
        reason = str(broken)
        if isinstance(broken, NotReached):
            if self._unreached_since is None:
                self._unreached_since = now
            if now - self._unreached_since < UNREACHED_SECONDS:
                return ""
        self._told_at = {told: at for told, at in self._told_at.items() if now - at < TOLD_SECONDS}
        if reason in self._told_at or len(self._told_at) >= MAX_REASONS:
            return ""
        self._told_at[reason] = now
        match broken:
            case NotReached():
                return "cannot reach the server; trying again"
            case Refused():
                return "the server refuses this worker; trying again"
            case _:
                return "no stream to the scheduler"
