"""What the policy looks at: pools, what waits, and the workers there are. Values only; times are durations up to now."""

from __future__ import annotations

from enum import StrEnum

import msgspec

Pairs = frozenset[tuple[str, str]]
"""Platform properties, (name, value)."""


class Offer(msgspec.Struct, frozen=True):
    """What a worker of a pool has."""

    pairs: Pairs = frozenset()
    """A value may be "*": every value."""
    instance_names: frozenset[str] = frozenset()
    """Instances that it serves; empty: all."""
    slots: int = 1
    cpu_millis: int = 0
    """0: not known, and so no limit."""
    memory_bytes: int = 0
    """0: not known, and so no limit."""


class Waiting(msgspec.Struct, frozen=True):
    """Tasks that want the same of a worker and belong to the same tenant."""

    pairs: Pairs
    instance_name: str
    tenant: str
    slots: int
    """Of one task; cpu_millis and memory_bytes likewise."""
    cpu_millis: int
    memory_bytes: int
    tasks: int
    """Those that a worker would help: tasks at a limit of their tenant, user or invocation are left out."""
    slot_seconds: float
    """Expected of all together."""
    longest_seconds: float
    oldest_seconds: float


class MemberState(StrEnum):
    """Where a worker of a pool is in its life."""

    STARTING = "starting"
    """Asked for, and not attached yet."""
    READY = "ready"
    LEAVING = "leaving"
    """Drained, or being ended."""
    AWAY = "away"
    """Its stream is broken; it may come back."""


class Member(msgspec.Struct, frozen=True):
    """One worker of a pool, from the moment it was asked for."""

    name: str
    pool: str
    state: MemberState
    slots: int
    busy_slots: int = 0
    idle_seconds: float = 0.0
    """Since it had something to do; 0 if it has. Of one that starts: 0."""
    age_seconds: float = 0.0
    """Since it was asked for."""
    rest_seconds: float = 0.0
    """Until what it runs is expected to have ended."""
    tenants: tuple[tuple[str, int], ...] = ()
    """Whose tasks its busy slots run."""


class PoolView(msgspec.Struct, frozen=True):
    """A pool as the policy sees it."""

    name: str
    family: str
    """The entry of the configuration it comes from: pools of one family share `family_max` (a pool for each container image)."""
    offer: Offer
    min: int
    max: int
    """Workers."""
    family_max: int
    target_wait_seconds: float
    """How long work may wait for want of workers."""
    idle_seconds: float
    """How long a worker may have nothing to do before it goes."""
    start_seconds: float
    """How long a worker takes to come."""
    price_per_hour: float = 0.0
    """Of one worker."""
    startable: int = 1_000_000
    """How many may be started now, after failures and as far as money goes; see `held_back`."""
    held_back: str = ""
    """Why `startable` is what it is, for people."""
    lately_wanted: int = 1_000_000
    """The most workers that decisions of the last seconds wanted (rexec/autoscale/lately.py): so many are not cancelled while
    they start. Unless it is given none are."""
