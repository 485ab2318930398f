"""What a slot costs: from the configuration, by the pool that the worker belongs to."""

from __future__ import annotations

import math

import msgspec

from rexec.scheduler.platform import Offer

HOUR_SECONDS = 3600.0


class PoolPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[[scheduler.price.pools]]: workers whose slots cost another price. The first entry that fits a worker counts."""

    property: str
    """A platform property that these workers offer, NAME=VALUE."""
    per_slot_hour: float
    """What one of their slots costs an hour."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        if not self.property.partition("=")[0] or "=" not in self.property:
            raise ValueError(f"property is {self.property!r}, expected NAME=VALUE")
        _require_price(self.per_slot_hour)


class PriceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[scheduler.price]: what is paid for a slot, so that `rexec top` and the metrics can say what builds cost."""

    per_slot_hour: float = 0.0
    """What one slot costs an hour. 0: no cost is shown, only slot-hours."""
    currency: str = ""
    """In which money, such as "EUR"."""
    pools: tuple[PoolPrice, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        _require_price(self.per_slot_hour)
        if len(self.currency) > 16 or not self.currency.isprintable():
            raise ValueError(f"currency is {self.currency[:50]!r}, expected at most 16 printable characters")

    @property
    def known(self) -> bool:
        """Whether anything has a price."""
        return self.per_slot_hour > 0 or any(pool.per_slot_hour > 0 for pool in self.pools)

    def slot_second(self, offer: Offer) -> float:
        """What a slot of a worker with this offer costs a second."""
        for pool in self.pools:
            name, _, value = pool.property.partition("=")
            if (name, value) in offer.pairs:
                return pool.per_slot_hour / HOUR_SECONDS
        return self.per_slot_hour / HOUR_SECONDS


def _require_price(price: float) -> None:
    if not (price >= 0 and math.isfinite(price)):
        raise ValueError(f"per_slot_hour is {price}, expected 0 or more")
