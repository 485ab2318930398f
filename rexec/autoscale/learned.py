"""What is known of a pool's workers only once some have come: what they offer, and how long they take.

Workers find out about their machine what no configuration says (compilers, cores), so a pool is believed to offer what its
workers have offered, also while it has none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from rexec.autoscale.view import Offer

REMEMBERED: Final = 8
"""Starts of which the mean is taken: a node that had to come first is no longer believed after so many that had not."""


class Learned:
    """Of each pool, by its name."""

    def __init__(self) -> None:
        self._offers: dict[str, Offer] = {}
        self._starts: dict[str, deque[float]] = {}

    def attached(self, pool: str, offers: Sequence[Offer]) -> None:
        """These are the offers of the workers that a pool has now, at least one. What not all of them have is not learned: the
        next one might not have it either."""
        pairs = frozenset[tuple[str, str]].intersection(*(offer.pairs for offer in offers))
        first = offers[0]
        self._offers[pool] = Offer(
            pairs=pairs,
            instance_names=first.instance_names,
            slots=first.slots,
            cpu_millis=min(offer.cpu_millis for offer in offers),
            memory_bytes=min(offer.memory_bytes for offer in offers),
        )

    def started(self, pool: str, seconds: float) -> None:
        """A worker has come so long after it was asked for."""
        self._starts.setdefault(pool, deque(maxlen=REMEMBERED)).append(seconds)

    def offer(self, pool: str) -> Offer | None:
        """What its workers offered; None before any has come."""
        return self._offers.get(pool)

    def start_seconds(self, pool: str, otherwise: float) -> float:
        """How long its workers took lately, on the mean."""
        starts = self._starts.get(pool)
        return sum(starts) / len(starts) if starts else otherwise

    def keep(self, pools: Iterable[str]) -> None:
        """Forget all other pools."""
        kept = set(pools)
        for known in (self._offers, self._starts):
            for name in [name for name in known if name not in kept]:
                del known[name]
