"""What actions require and workers offer, and whether the two meet (REAPI, Platform).

A requirement is a set of (name, value) pairs that must all be offered; a name that occurs twice asks for both values. An
offer gives each name a set of values. Everything here is a value: tasks with equal requirements share one line of the
queue, workers with equal offers share one pool.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

Pairs = frozenset[tuple[str, str]]

ANY_VALUE: Final = "*"
"""A worker that offers a name with this takes every value of it: unixUID=*, for instance."""


class Requirement(msgspec.Struct, frozen=True, cache_hash=True):
    """What a worker must have to run an action."""

    instance_name: str = ""
    pairs: Pairs = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """The property names that are asked for."""
        return frozenset(name for name, _value in self.pairs)

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in sorted(self.pairs)) or "any platform"


class Offer(msgspec.Struct, frozen=True, cache_hash=True):
    """What a worker has. Workers with equal offers form one pool."""

    pairs: Pairs = frozenset()
    instance_names: frozenset[str] = frozenset()
    """Instances that the worker serves; empty: all."""
    cpu_millis: int = 0
    """Thousandths of a core that its actions share; 0: they are not counted."""
    memory_bytes: int = 0
    """Memory that its actions share; 0: it is not counted."""

    @property
    def names(self) -> frozenset[str]:
        """The property names that are offered."""
        return frozenset(name for name, _value in self.pairs)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in sorted(self.pairs)) or "nothing"

    def serves(self, instance_name: str) -> bool:
        """Whether actions of the instance may run here."""
        return not self.instance_names or instance_name in self.instance_names

    def covers(self, other: Offer) -> bool:
        """Whether everything that runs on the other runs here, slots left aside."""
        serves_all = not self.instance_names or (other.instance_names and other.instance_names <= self.instance_names)
        return (
            bool(serves_all)
            and self.cpu_millis >= other.cpu_millis
            and self.memory_bytes >= other.memory_bytes
            and all(self.has(*pair) for pair in other.pairs)
        )

    def fits(self, requirement: Requirement) -> bool:
        """Whether everything that is required is offered."""
        return self.serves(requirement.instance_name) and (
            requirement.pairs <= self.pairs or all(self.has(*pair) for pair in requirement.pairs)
        )

    def has(self, name: str, value: str) -> bool:
        """Whether one property is offered, by its value or by any value."""
        return (name, value) in self.pairs or (name, ANY_VALUE) in self.pairs


def unmatched(requirement: Requirement, offers: Iterable[tuple[Offer, int]]) -> str:
    """Why no worker fits, for a person: which property nobody offers and what is offered instead.

    `offers` are the offers at hand with the number of workers behind each, none of which fits.
    """
    attached = [(offer, workers) for offer, workers in offers if workers]
    if not attached:
        return "no worker is attached"
    serving = [(offer, workers) for offer, workers in attached if offer.serves(requirement.instance_name)]
    if not serving:
        return f"no worker is attached that serves instance {requirement.instance_name!r}"
    for name, value in sorted(requirement.pairs):
        if any(offer.has(name, value) for offer, _workers in serving):
            continue
        others: dict[str, int] = {}
        for offer, workers in serving:
            for other_name, other in offer.pairs:
                if other_name == name:
                    others[other] = others.get(other, 0) + workers
        if not others:
            return f"no attached worker offers {name}={value}"
        listed = ", ".join(_offering(count, name, other) for other, count in sorted(others.items())[:5])
        return f"no worker offers {name}={value} ({listed})"
    return f"no single worker offers all of {requirement}"


def _offering(workers: int, name: str, value: str) -> str:
    return f"1 worker offers {name}={value}" if workers == 1 else f"{workers} workers offer {name}={value}"
