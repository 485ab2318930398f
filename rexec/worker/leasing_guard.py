"""When a worker takes no leases for the time being, because its machine could not do them justice.

Decides from readings and does nothing. What stopped for a figure goes on when that figure is clearly better, so that a worker at
the edge does not flap.
"""

from __future__ import annotations

from dataclasses import dataclass

_BETTER = 1.25
"""How far above its reserve a figure must be again."""

_CALMER = 0.9
"""How far below its bound the load must be again."""


@dataclass(frozen=True, slots=True)
class Reserves:
    """What is to be left on the machine; 0 means that nothing is asked of that figure."""

    free_disk_bytes: int = 0
    available_memory_bytes: int = 0
    max_load: float = 0.0
    """Processes that want to run, averaged over a minute."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The machine at one moment."""

    free_disk_bytes: int
    available_memory_bytes: int
    """0: not known."""
    load: float


class LeasingGuard:
    """Of one worker."""

    def __init__(self, reserves: Reserves) -> None:
        self._reserves = reserves
        self._short: frozenset[str] = frozenset()

    @property
    def disk_is_short(self) -> bool:
        """Whether the last reading found too little room on the disk."""
        return "disk" in self._short

    def decide(self, reading: Reading) -> str:
        """Why no leases are taken now, for people; "" if they are."""
        reserves = self._reserves
        reasons = {}
        if reading.free_disk_bytes < self._least("disk", reserves.free_disk_bytes):
            reasons["disk"] = (
                f"{reading.free_disk_bytes >> 20} MiB left on the disk of the work directory, "
                f"{reserves.free_disk_bytes >> 20} MiB are kept free ([worker] least_free_disk_bytes)"
            )
        if 0 < reading.available_memory_bytes < self._least("memory", reserves.available_memory_bytes):
            reasons["memory"] = (
                f"{reading.available_memory_bytes >> 20} MiB of memory left, "
                f"{reserves.available_memory_bytes >> 20} MiB are kept free ([worker] least_available_memory_bytes)"
            )
        most = reserves.max_load * (_CALMER if "load" in self._short else 1.0)
        if most and reading.load > most:
            reasons["load"] = (
                f"load average {reading.load:.1f}, at most {reserves.max_load:.1f} ([worker] max_load_per_core)"
            )
        self._short = frozenset(reasons)
        return "; ".join(reasons.values())

    def lacking_disk_bytes(self, reading: Reading) -> int:
        """How much more must be free before leases are taken again."""
        return max(0, int(self._least("disk", self._reserves.free_disk_bytes)) - reading.free_disk_bytes)

    def _least(self, kind: str, reserve_bytes: int) -> float:
        return reserve_bytes * (_BETTER if kind in self._short else 1.0)
