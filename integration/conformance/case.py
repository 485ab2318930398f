"""What a case is: a claim about a server, numbered after the behaviour that it belongs to, and a function that tries it.

A case is an async function of the `Client`. It returns when the server does what is claimed, raises `Failed` (what was
expected, what came) when it does not, and `NotSupported` when the server never promised it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from integration.conformance.client import Client

Run = Callable[["Client"], Awaitable[None]]


class Failed(AssertionError):
    """The server does not do what the case claims; the text says what was expected and what came."""


class NotSupported(Exception):
    """The server does not offer the optional part that the case is about; the text names it."""


class Phase(IntEnum):
    """When a case runs, so that none disturbs another."""

    BACKGROUND = 0
    """From the beginning, beside all others: it waits much and does little."""
    SHARED = 1
    """Several at once."""
    ALONE = 2
    """One at a time, with none but the waiting ones beside it: it fills the workers or the connection."""
    LAST = 3
    """One at a time, when nothing else is left: it takes the server down, or drops blobs of others."""


@dataclass(frozen=True, slots=True)
class Case:
    """One claim."""

    number: int
    """The behaviour."""
    claim: str
    run: Run
    execution: bool
    """Whether it needs a server that runs actions."""
    phase: Phase
    slow: bool
    """Runs only when asked for: it takes more than a minute, or gigabytes."""
    timeout_seconds: float | None
    """Its own bound where the bound of the run is too tight."""

    @property
    def name(self) -> str:
        return f"{self.number}: {self.claim}"


CASES: list[Case] = []
"""All cases, in the order in which the modules that hold them were imported."""


def behaviour(
    number: int,
    claim: str,
    *,
    execution: bool = False,
    phase: Phase = Phase.SHARED,
    slow: bool = False,
    timeout_seconds: float | None = None,
) -> Callable[[Run], Run]:
    """Make a case of an async function. Claims are sentences about the server; two cases cannot have the same one."""

    def register(run: Run) -> Run:
        case = Case(number, claim, run, execution, phase, slow, timeout_seconds)
        if any(other.name == case.name for other in CASES):
            raise ValueError(f"there is a case {case.name!r} already")
        CASES.append(case)
        return run

    return register
