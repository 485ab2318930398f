"""What autoscalers have told of their pools, and which of them is there for an action that waits.

Each autoscaler tells all of its pools over its stream, again and again. When the stream ends they are remembered for a while:
an autoscaler that is started anew must not have actions refused that wait for its pools. Of two that tell a pool of the same
name the one that told last counts, and one that is gone counts less than one that is here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from enum import IntEnum
from typing import Final

import msgspec

from rexec.scheduler.fit import Fit
from rexec.scheduler.platform import ANY_VALUE, Offer, Requirement
from rexec.scheduler.pool import Pool
from rexec.scheduler.price import HOUR_SECONDS
from rexec.scheduler.summary import shortened

KEPT_SECONDS: Final = 60.0
"""How long pools are remembered after the stream that told them has ended."""

MAX_KEPT_STREAMS: Final = 8
"""Of streams that have ended, as many are remembered: an autoscaler that comes and goes must not fill the memory."""

MAX_REMEMBERED: Final = 4096
"""Answers that are kept until pools change."""

MAX_NAMED_PATTERNS: Final = 10
"""In the text of a refusal."""


class Prospect(IntEnum):
    """What actions that wait for a pool can hope for; the best first."""

    GROWING = 0
    """It is to have more workers than it has."""
    ABLE = 1
    """It may grow, and is not told to."""
    HAMPERED = 2
    """It is to grow, and something is in the way."""
    FULL = 3
    """It has as many workers as it may have."""
    STUCK = 4
    """Something keeps it from growing."""
    AWAY = 5
    """Its autoscaler is not there."""


def prospect_of(pool: Pool) -> Prospect:
    """How the pool stands."""
    if pool.away:
        return Prospect.AWAY
    if pool.target > pool.ready:
        return Prospect.HAMPERED if pool.problem else Prospect.GROWING
    if pool.problem:
        return Prospect.STUCK
    return Prospect.FULL if pool.ready >= pool.max else Prospect.ABLE


def grows_for(fit: Fit, pools: Pools) -> bool:
    """Whether tasks of the fit wait for a worker that is, or should be, on its way."""
    pool = pools.pool_for(fit)
    if pool is None:
        return False
    prospect = prospect_of(pool)
    # One that has no worker at all is to get some, even if its autoscaler has not heard of the task so far.
    return prospect in (Prospect.GROWING, Prospect.HAMPERED) or (
        prospect is Prospect.ABLE and not fit.workers and not pool.ready
    )


class Pools:
    """Of all autoscalers."""

    def __init__(self) -> None:
        self.generation = 0
        """Another number after each change."""
        self._told: dict[Hashable, tuple[Pool, ...]] = {}
        """By stream, the one that told last at the end."""
        self._left_at: dict[Hashable, float] = {}
        """Streams that have ended, the longest ago first."""
        self._by_name: dict[str, Pool] = {}
        self._names: frozenset[str] = frozenset()
        self._restricted: dict[str, tuple[Pool, ...]] = {}
        self._places: dict[tuple[str, str], list[int]] = {}
        """Of the pools that offer a pair, in `_in_order`."""
        self._restricted_places: dict[str, list[int]] = {}
        """Of those with a pattern for a name."""
        self._in_order: tuple[Pool, ...] = ()
        self._prices: dict[Offer, float] = {}
        self._sizes: dict[Requirement, int] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._by_name.values())

    # What is told

    def tell(self, stream: Hashable, pools: Sequence[Pool]) -> None:
        """These are the pools of the stream from now on."""
        before = self._told.pop(stream, None)
        self._told[stream] = tuple(pools)
        names = {pool.name for pool in pools}
        for ended in list(self._left_at):
            if names.issuperset(pool.name for pool in self._told[ended]):
                self._forget(ended)
        if before != self._told[stream] or len(self._told) > 1:
            self._changed()

    def left(self, stream: Hashable, now: float) -> None:
        """The stream has ended."""
        if stream in self._told:
            self._left_at[stream] = now
            while len(self._left_at) > MAX_KEPT_STREAMS:
                self._forget(next(iter(self._left_at)))
            self._changed()

    def forget_due(self, now: float) -> None:
        """Forget the pools of streams that ended too long ago by now."""
        due = [stream for stream, left_at in self._left_at.items() if left_at + KEPT_SECONDS <= now]
        for stream in due:
            self._forget(stream)
        if due:
            self._changed()

    def _forget(self, stream: Hashable) -> None:
        del self._told[stream], self._left_at[stream]

    def _changed(self) -> None:
        self.generation += 1
        self._by_name = {}
        for here in (False, True):
            for stream, pools in self._told.items():
                if (stream not in self._left_at) is here:
                    for pool in pools:
                        self._by_name[pool.name] = pool if here else msgspec.structs.replace(pool, away=True)
        names: set[str] = set()
        restricted: dict[str, list[Pool]] = {}
        for pool in self:
            names |= pool.offer.names
            for name in dict.fromkeys(pattern.name for pattern in pool.patterns):
                restricted.setdefault(name, []).append(pool)
        self._names = frozenset(names.union(restricted))
        self._restricted = {name: tuple(pools) for name, pools in restricted.items()}
        self._in_order = tuple(self)
        self._places, self._restricted_places = {}, {}
        for place, pool in enumerate(self._in_order):
            for pair in pool.offer.pairs:
                self._places.setdefault(pair, []).append(place)
            for name in {pattern.name for pattern in pool.patterns}:
                self._restricted_places.setdefault(name, []).append(place)
        self._prices.clear()
        self._sizes.clear()

    # What it means for actions

    @property
    def names(self) -> frozenset[str]:
        """Of the platform properties that workers of pools meet."""
        return self._names

    def refused(self, requirement: Requirement) -> Iterator[tuple[str, str]]:
        """The properties of which pools take only what fits their patterns, and whose value fits none."""
        if self._restricted:
            for name, value in sorted(requirement.pairs):
                if name in self._restricted and not any(
                    pool.takes(name, value) for pool in self if pool.offer.serves(requirement.instance_name)
                ):
                    yield name, value

    def patterns(self, name: str) -> str:
        """What pools take of a property, for a person."""
        found = [
            f"pool {pool.name} takes {shortened(pattern.pattern, 100)}"
            for pool in self._restricted.get(name, ())
            for pattern in pool.patterns
            if pattern.name == name
        ]
        more = f", and {len(found) - MAX_NAMED_PATTERNS} more" if len(found) > MAX_NAMED_PATTERNS else ""
        return ", ".join(found[:MAX_NAMED_PATTERNS]) + more

    def pool_for(self, fit: Fit) -> Pool | None:
        """The pool from which the tasks of the fit may hope most. Found anew only after a change."""
        if not self._by_name:
            return None
        if fit.pool[0] != self.generation:
            able = [pool for pool in self._fitting(fit.requirement) if pool.holds(fit.need)]
            fit.pool = self.generation, min(able, key=prospect_of, default=None)
        return fit.pool[1]

    def largest(self, requirement: Requirement) -> Pool | None:
        """The pool with the largest workers of those that meet the requirement, however large it is."""
        able = self._fitting(requirement)
        return max(able, key=lambda pool: (pool.slots, pool.offer.cpu_millis, pool.offer.memory_bytes), default=None)

    def least_memory_bytes(self, requirement: Requirement) -> int:
        """The least memory that a worker has of a pool that meets the requirement; 0 if it is not known."""
        size = self._sizes.get(requirement)
        if size is None:
            sizes = [pool.offer.memory_bytes for pool in self._fitting(requirement) if pool.offer.memory_bytes]
            if len(self._sizes) >= MAX_REMEMBERED:
                self._sizes.clear()
            size = self._sizes[requirement] = min(sizes, default=0)
        return size

    def _fitting(self, requirement: Requirement) -> list[Pool]:
        """Those that meet the requirement, in order. Few are looked at: clients make a pool for each image they ask for."""
        if not requirement.pairs:
            return [pool for pool in self._in_order if pool.fits(requirement)]
        lists = (
            (
                self._places.get(pair, ()),
                self._places.get((pair[0], ANY_VALUE), ()),
                self._restricted_places.get(pair[0], ()),
            )
            for pair in requirement.pairs
        )
        fewest = min(lists, key=lambda places: sum(map(len, places)))
        found = (self._in_order[place] for place in sorted({place for places in fewest for place in places}))
        return [pool for pool in found if pool.fits(requirement)]

    @property
    def have_prices(self) -> bool:
        """Whether any of them says what it costs."""
        return any(pool.price_per_hour > 0 for pool in self)

    def slot_second(self, offer: Offer) -> float:
        """What a slot of a worker with this offer costs a second: that of the pool with the most properties of those whose
        properties it all offers; 0 if there is none."""
        price = self._prices.get(offer)
        if price is None:
            theirs = [pool for pool in self if pool.price_per_hour > 0 and _belongs(offer, pool)]
            pool = max(theirs, key=lambda pool: len(pool.offer.pairs), default=None)
            price = 0.0 if pool is None else pool.price_per_hour / pool.slots / HOUR_SECONDS
            if len(self._prices) >= MAX_REMEMBERED:
                self._prices.clear()
            self._prices[offer] = price
        return price


def _belongs(offer: Offer, pool: Pool) -> bool:
    """Whether a worker with this offer may be of the pool: the value of a pattern is known only once it is asked for."""
    return pool.offer.pairs <= offer.pairs and all(
        any(name == restricted and pool.takes(name, value) for name, value in offer.pairs)
        for restricted in {pattern.name for pattern in pool.patterns}
    )
