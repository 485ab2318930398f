"""How slots are shared: weights and limits of tenants, users and invocations, packing, affinity. Defaults are here only."""

from __future__ import annotations

import msgspec


def _check(weight: float, max_running: int, max_queued: int) -> None:
    if not 0.001 <= weight <= 1_000_000:
        raise ValueError(f"weight is {weight}, expected 0.001 to 1000000")
    if max_running < 0:
        raise ValueError(f"max_running is {max_running}, expected 0 or more")
    if max_queued < 0:
        raise ValueError(f"max_queued is {max_queued}, expected 0 or more")


class ShareSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The share and the limits of each one that has none of its own."""

    weight: float = 1.0
    """Its part of the slots, in relation to the weights of the others that want some."""
    max_running: int = 0
    """Actions of it that may have a worker at once; more of them wait. 0: any number."""
    max_queued: int = 0
    """Operations of it that may wait at once; more are refused with RESOURCE_EXHAUSTED and a time to come back. 0: any
    number."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        _check(self.weight, self.max_running, self.max_queued)


class OwnShareSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The share and the limits of the one of that name; what is unset is as for all others."""

    weight: float | None = None
    """Its part of the slots, in relation to the weights of the others that want some."""
    max_running: int | None = None
    """Actions of it that may have a worker at once. 0: any number."""
    max_queued: int | None = None
    """Operations of it that may wait at once. 0: any number."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        _check(
            1.0 if self.weight is None else self.weight,
            self.max_running or 0,
            self.max_queued or 0,
        )

    def over(self, default: ShareSettings) -> ShareSettings:
        """What holds for it."""
        return ShareSettings(
            weight=default.weight if self.weight is None else self.weight,
            max_running=default.max_running if self.max_running is None else self.max_running,
            max_queued=default.max_queued if self.max_queued is None else self.max_queued,
        )


class FairnessSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[scheduler.fairness]: who gets how many slots. A slot that gets free goes to the tenant that uses the fewest for its
    weight, there to the user that does, there to the invocation that does."""

    tenant: ShareSettings = ShareSettings()
    user: ShareSettings = ShareSettings()
    invocation: ShareSettings = ShareSettings()
    tenants: dict[str, OwnShareSettings] = {}
    users: dict[str, OwnShareSettings] = {}


class PackingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[scheduler.packing]: actions that take more of a worker than others do (platform properties cpu, memory, slots)."""

    reserve_after_seconds: float = 10.0
    """When a large action has been the next in order for so long and no worker has had room for it, one is kept free of
    others until it has."""
    reserve_at_most_seconds: float = 600.0
    """How long a worker is kept free. Then it takes anything again, and another one may be kept."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        if not self.reserve_after_seconds >= 0:
            raise ValueError(f"reserve_after_seconds is {self.reserve_after_seconds}, expected 0 or more")
        if not self.reserve_at_most_seconds > 0:
            raise ValueError(f"reserve_at_most_seconds is {self.reserve_at_most_seconds}, expected more than 0")


class AffinitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[scheduler.affinity]: actions go where much of their input has been used lately, if that costs no one else."""

    enabled: bool = True
    """Whether any of this is done."""
    slack_slots: int = 2
    """A worker is preferred only if it has at most so many free slots fewer than the one that has most."""
    look_ahead: int = 8
    """Among how many equally entitled actions of one invocation a worker's next one is chosen. 1: it gets the first."""
    max_passed_over: int = 4
    """How often an action may be passed over by others that fit a worker's cache better."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        for name in ("slack_slots", "max_passed_over"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if not 1 <= self.look_ahead <= 64:
            raise ValueError(f"look_ahead is {self.look_ahead}, expected 1 to 64")
