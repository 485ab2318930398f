"""Which pools can run which work, and how much of it one of their workers takes at once.

The rule for properties is the scheduler's own (REAPI, Platform): every pair that is asked for must be offered, by its value
or by "*".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from rexec.autoscale.view import Offer, PoolView, Waiting

ANY_VALUE: Final = "*"
"""A worker that offers a name with this takes every value of it."""


def fits(waiting: Waiting, offer: Offer) -> bool:
    """Whether a worker with nothing else to do could run one of these tasks."""
    return tasks_at_once(waiting, offer) > 0


def tasks_at_once(waiting: Waiting, offer: Offer) -> int:
    """How many of these tasks one worker runs at once: by slots, cores and memory, whichever is used up first. 0: none, for
    they ask for properties that it has not, or one alone is larger than it."""
    if offer.instance_names and waiting.instance_name not in offer.instance_names:
        return 0
    if not all(pair in offer.pairs or (pair[0], ANY_VALUE) in offer.pairs for pair in waiting.pairs):
        return 0
    most = offer.slots // max(1, waiting.slots)
    if offer.cpu_millis and waiting.cpu_millis > 0:
        most = min(most, offer.cpu_millis // waiting.cpu_millis)
    if offer.memory_bytes and waiting.memory_bytes > 0:
        most = min(most, offer.memory_bytes // waiting.memory_bytes)
    return most


def slots_taken(waiting: Waiting, offer: Offer) -> float:
    """What one of these tasks takes up of a worker that it fits, as slots: more than it asks for, if its cores or its memory
    keep others out of the rest."""
    return offer.slots / tasks_at_once(waiting, offer)


class Offers:
    """Pools by what they offer, so that work is compared with few of them: clients make a pool for each image they ask for."""

    def __init__(self, pools: Sequence[PoolView]) -> None:
        self._pools = pools
        self._by_pair: dict[tuple[str, str], list[int]] = defaultdict(list)
        for place, pool in enumerate(pools):
            for pair in pool.offer.pairs:
                self._by_pair[pair].append(place)

    def possible(self, waiting: Waiting) -> Sequence[PoolView]:
        """Those that may fit, all that fit among them, in their order."""
        if not waiting.pairs:
            return self._pools
        offering = (
            (self._by_pair.get(pair, ()), self._by_pair.get((pair[0], ANY_VALUE), ())) for pair in waiting.pairs
        )
        this, any_value = min(offering, key=lambda places: len(places[0]) + len(places[1]))
        return [self._pools[place] for place in sorted({*this, *any_value})]


def cheapest_first(waiting: Waiting, pools: Sequence[PoolView]) -> list[PoolView]:
    """The pools that fit, by what one of these tasks costs there for a while; of equal ones the first of the configuration.

    That is the price of a slot, unless cores or memory let a worker take fewer tasks than it has slots.
    """
    fitting = [(pool.price_per_hour / most, pool) for pool in pools if (most := tasks_at_once(waiting, pool.offer))]
    return [pool for _price, pool in sorted(fitting, key=lambda entry: entry[0])]
