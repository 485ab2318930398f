"""What pools and tenants have cost since midnight UTC, small enough to be stored as text after every minute.

A worker costs its pool's price from the moment it was asked for until it is gone, whether it runs anything or not. A tenant
pays for the part of a worker's slots that runs his tasks, so what is idle costs nobody but the pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

from rexec.autoscale.view import Member, PoolView

HOUR_SECONDS: Final = 3600.0
DAY_SECONDS: Final = 86_400.0

MOST: Final = 1e12
"""No date and no sum is larger."""

MOST_TENANTS: Final = 10_000
"""More are not told apart: the names come from outside."""


class _Stored(msgspec.Struct, frozen=True):
    """The text's form."""

    at: float
    """Seconds since 1970: up to then everything is counted."""
    pools: dict[str, float]
    tenants: dict[str, float]


class Spending:
    """Counts money. Times are seconds since 1970, for days are theirs. After a clock was set back all is counted from what it
    shows then, for workers go on costing; what was spent before stays spent until midnight."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._pools: dict[str, float] = {}
        """By family: a pool that was made for an image belongs to the one of the configuration."""
        self._tenants: dict[str, float] = {}

    @property
    def total(self) -> float:
        """Of all pools."""
        return sum(self._pools.values())

    def of_pool(self, family: str) -> float:
        """Of one entry of the configuration."""
        return self._pools.get(family, 0.0)

    def of_tenant(self, tenant: str) -> float:
        """Of the slots that ran a tenant's tasks."""
        return self._tenants.get(tenant, 0.0)

    def note(self, pools: Iterable[PoolView], members: Iterable[Member], now: float) -> None:
        """Count the time since the last call for these workers, and not more of it than each is old.

        A gap, such as that of a restart, is counted for workers that there are after it. What was spent before midnight is
        forgotten.
        """
        if now <= self._at:
            self._at = now
            return
        midnight = math.floor(now / DAY_SECONDS) * DAY_SECONDS
        if self._at < midnight:
            self._pools.clear()
            self._tenants.clear()
        elapsed = now - max(self._at, midnight)
        self._at = now
        known = {pool.name: pool for pool in pools if pool.price_per_hour > 0}
        for member in members:
            pool = known.get(member.pool)
            if pool is None:
                continue
            cost = pool.price_per_hour / HOUR_SECONDS * min(elapsed, max(0.0, member.age_seconds))
            self._pools[pool.family] = self._pools.get(pool.family, 0.0) + cost
            slots = max(1, member.slots, sum(taken for _tenant, taken in member.tenants))
            for tenant, taken in member.tenants:
                if tenant in self._tenants or len(self._tenants) < MOST_TENANTS:
                    self._tenants[tenant] = self._tenants.get(tenant, 0.0) + cost * taken / slots

    def with_more(self, later: Spending) -> Spending:
        """This and what was counted since by another one, which is where the next time that is counted begins."""
        if not later._pools:
            return self
        both = Spending(later._at)
        for told, more, sums in (
            (self._pools, later._pools, both._pools),
            (self._tenants, later._tenants, both._tenants),
        ):
            sums.update(told)
            for name, cost in more.items():
                sums[name] = sums.get(name, 0.0) + cost
        return both

    def to_text(self) -> str:
        """For `from_text`, as JSON."""
        return msgspec.json.encode(_Stored(self._at, self._pools, self._tenants)).decode()

    @classmethod
    def from_text(cls, text: str, now: float) -> Spending:
        """Go on from what was stored. Raises ValueError if it is damaged.

        What was stored on another day counts nothing once the first workers are noted; what says that it comes from the future
        is taken to be of now.
        """
        try:
            stored = msgspec.json.decode(text, type=_Stored)
        except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError) as e:
            raise ValueError(f"stored spending is {text[:80]!r}, expected JSON with at, pools and tenants: {e}") from e
        if not all(0 <= number <= MOST for number in (stored.at, *stored.pools.values(), *stored.tenants.values())):
            raise ValueError(f"stored spending is {text[:80]!r}, expected no negative number and none above {MOST:g}")
        spending = cls(min(stored.at, now))
        if math.floor(stored.at / DAY_SECONDS) == math.floor(now / DAY_SECONDS) or stored.at > now:
            spending._pools = dict(stored.pools)
            spending._tenants = dict(stored.tenants)
        return spending
