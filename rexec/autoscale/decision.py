"""What the policy says about one pool (rexec/autoscale/policy.py): a value for the loop to act on."""

from __future__ import annotations

import msgspec


class PoolDecision(msgspec.Struct, frozen=True):
    """What should become of a pool now."""

    target: int
    """Workers that there should be, those that start included; those that leave are not."""
    start: int = 0
    """How many to ask for."""
    leave: tuple[str, ...] = ()
    """READY workers without anything to do that should go, the longest idle first."""
    cancel: tuple[str, ...] = ()
    """STARTING workers that nobody needs any more, the youngest first."""
    wanted: int = 0
    """Workers that have something to do or would get it, as far as limits let the pool have them, and never fewer than its
    `min`. What rexec/autoscale/lately.py remembers."""
    missing: int = 0
    """Workers more that waiting work would be given, were it not for limits and failures. Work that fits several pools is
    counted at its first choice."""
    reason: str = ""
    """Why, for people: "8 wanted: 412 slot-seconds wait, 20s allowed"."""
