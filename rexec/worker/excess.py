"""That an action took more than it may: how much, of what, and which of several goes first when the machine runs short.

Decides, and does nothing (rexec/worker/memory_watch.py looks and kills).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Excess:
    """Why an action is killed."""

    message: str
    """For its user."""
    memory_bytes: int = 0
    """What it took when it was more than its share; 0 if it is killed for something else."""
    is_own_fault: bool = True
    """Whether it took more than it may; else it fell victim to the state of the machine."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What an action takes now, and what it may."""

    memory_bytes: int
    share_bytes: int
    """0: it has no share, and so is never above it."""

    @property
    def above_bytes(self) -> int:
        """By how much it takes more than its share; 0 or less if it does not."""
        return self.memory_bytes - self.share_bytes if self.share_bytes else 0


def over_share(taken: Taken) -> Excess:
    """It takes more than its share."""
    return Excess(f"killed: {readable(taken.memory_bytes)}, slot {readable(taken.share_bytes)}", taken.memory_bytes)


def too_many(max_processes: int) -> Excess:
    """It has more processes than any action may."""
    return Excess(f"killed: more than {max_processes} processes ([worker] max_processes)")


def victim(running: Mapping[_Key, Taken]) -> _Key | None:
    """Whom to kill when memory runs out: who is furthest above its share, else who takes most; None if nobody takes
    anything."""
    above = max(running, key=lambda key: running[key].above_bytes, default=None)
    if above is not None and running[above].above_bytes > 0:
        return above
    largest = max(running, key=lambda key: running[key].memory_bytes, default=None)
    return largest if largest is not None and running[largest].memory_bytes > 0 else None


def out_of_memory(taken: Taken, available_bytes: int) -> Excess:
    """The machine runs out of memory, and this action is the victim."""
    if taken.above_bytes > 0:
        return over_share(taken)
    return Excess(
        f"killed: {readable(taken.memory_bytes)}, the most of all actions, when the machine had {readable(available_bytes)} "
        "of memory left",
        is_own_fault=False,
    )


def readable(size_bytes: int) -> str:
    """A size for a person, such as "3.9 GiB" or "512 MiB"."""
    for shift, unit in ((30, "GiB"), (20, "MiB")):
        if size_bytes >= 1 << shift:
            number = f"{size_bytes / (1 << shift):.1f}"
            return f"{number.removesuffix('.0')} {unit}"
    return f"{size_bytes >> 10} KiB"
