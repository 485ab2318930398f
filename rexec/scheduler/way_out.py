"""Where effects leave the process: after the journal has what they follow from, or at once if there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cas.errors import StatusError

Release = Callable[[], None]
"""Lets something out. Must return at once."""


class WayOut(Protocol):
    """Where effects leave the process."""

    trouble: StatusError | None
    """Why nothing can be written now, None if it can."""

    def require(self) -> None:
        """Raises StoreFull or Unavailable if nothing can be written now."""
        ...

    def after(self, release: Release) -> None:
        """Call `release` once all that has happened so far is durable; at once if it is. In the order of the calls."""
        ...

    def covers(self, operation_name: str) -> bool:
        """Whether all that is known of the operation is durable."""
        ...

    def changed(self) -> None:
        """There is something to be written."""
        ...

    async def durable(self, operation_name: str, *, rather_fail: bool = False) -> None:
        """Return once all that is known of the operation is durable.

        With `rather_fail`, raises StoreFull or Unavailable if that cannot be done now. Raises Unavailable when this process
        may not write any more.
        """
        ...

    def give_up(self, reason: str) -> None:
        """Write and let out nothing more: what has changed since the last commit is not to be trusted."""
        ...

    async def close(self) -> None:
        """Write what is left."""
        ...


class AtOnce:
    """The way out without a journal: everything leaves when it happens."""

    def __init__(self) -> None:
        self.trouble: StatusError | None = None

    def require(self) -> None:
        """Nothing is ever in the way."""

    def after(self, release: Release) -> None:
        release()

    def covers(self, operation_name: str) -> bool:
        return True

    def changed(self) -> None:
        """Nothing is written."""

    async def durable(self, operation_name: str, *, rather_fail: bool = False) -> None:
        """Nothing to wait for."""

    def give_up(self, reason: str) -> None:
        """Everything has left."""

    async def close(self) -> None:
        """Nothing is left."""
