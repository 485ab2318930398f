"""How many workers something lets a pool start now, and why: failures, money, a number of workers."""

from __future__ import annotations

from typing import Final

import msgspec


class Hold(msgspec.Struct, frozen=True):
    """One limit on starting workers, as the policy takes it (PoolView.startable and held_back)."""

    startable: int
    why: str = ""
    """For people. It changes only when the limit does, so that nobody is told the same again and again."""


FREE: Final = Hold(1_000_000)
"""Nothing is in the way."""


def tightest(*holds: Hold) -> Hold:
    """The one that lets the fewest start; of equal ones the first."""
    return min(holds, key=lambda hold: hold.startable, default=FREE)
