"""What an agent tells whoever counts: events as calls, its state as a snapshot to be asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class WorkerState:
    """An agent at one moment."""

    slots: int
    leases: Mapping[str, int]
    """By phase, as "running"; "accepted" before the first, "ended" until the scheduler has acknowledged the end."""
    cache_bytes: int
    """Of the files kept for inputs."""
    is_attached: bool
    """Whether the scheduler has welcomed the present stream."""
    draining: str
    """Why it takes no more leases; "" if it does."""


class WorkerObserver(Protocol):
    """Counters. The calls come from the event loop and must return at once."""

    def watch(self, state: Callable[[], WorkerState]) -> None:
        """The agent is up; `state` may be called on its event loop from now on."""
        ...

    def phase_ended(self, phase: str, seconds: float) -> None:
        """A lease was so long in a phase: "fetching", "laying_out", "running", "collecting" or "uploading"."""
        ...

    def lease_ended(self, failure: str) -> None:
        """A lease ended; "none" if that is the action's own end, else why it comes to nothing here, as "back_pressure"."""
        ...


class Unobserved:
    """A WorkerObserver that counts nothing."""

    def watch(self, state: Callable[[], WorkerState]) -> None:
        pass

    def phase_ended(self, phase: str, seconds: float) -> None:
        pass

    def lease_ended(self, failure: str) -> None:
        pass
