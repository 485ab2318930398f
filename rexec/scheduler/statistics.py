"""How long actions run and how much memory they take, learned from those that have run.

Asked for an action it looks first for the same step of the same build (`Candidate.action_key`), then for actions that are much
alike (`Candidate.action_class`), then for all. Both tables are bounded and forget what has not been seen for longest, because
their names come from clients.

Only runs that show how long an action takes are to be told: those that ended with exit code 0, and those that timed out, which
take at least so long. An action that failed early says nothing, and a result from the cache even less.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rexec.scheduler.learned import Learned
from rexec.scheduler.task import Candidate, Usage

MAX_CLASSES: Final = 2_000
"""A build has some dozens. Each takes up to 5 KiB."""
MAX_STEPS: Final = 50_000
"""A large build. Each takes some 300 bytes."""
MIN_SAMPLES: Final = 20
"""Runs of a class before its 95th percentile means anything."""

_CLASS: Final = "class/"
_STEP: Final = "step/"
_ALL: Final = "all"

Row = tuple[str, bytes | None]
"""A name and what is known under it; None once it is forgotten.

Names are "all", "class/" + Candidate.action_class and "step/" + Candidate.action_key; `Learned.to_bytes` gives the data, whose
first byte is its version.
"""


class Estimate(msgspec.Struct, frozen=True):
    """What to expect of an action."""

    expected_seconds: float
    p95_seconds: float | None
    """What 19 of 20 actions of its class do not exceed; None as long as too few have run."""
    peak_memory_bytes: int
    """0: not known."""
    samples: int
    """Runs of its step or its class that this rests on; 0: it is the mean of all actions, or nothing at all."""


class Statistics:
    """Starts with nothing."""

    def __init__(self, *, max_classes: int = MAX_CLASSES, max_steps: int = MAX_STEPS) -> None:
        self._all = Learned()
        self._classes: dict[str, Learned] = {}
        self._steps: dict[str, Learned] = {}
        self._max_classes = max_classes
        self._max_steps = max_steps
        self._changed: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._classes) + len(self._steps)

    @property
    def mean_seconds(self) -> float:
        """Of all runs; 0 if there were none."""
        return self._all.mean_seconds

    def estimate(self, candidate: Candidate) -> Estimate:
        """What to expect of the action; changes nothing. Without any run so far, 0 s."""
        known = self._classes.get(candidate.action_class)
        step = self._steps.get(candidate.action_key)
        p95 = known.quantile_seconds(0.95) if known is not None and known.samples >= MIN_SAMPLES else None
        best = step or known
        if best is None:
            return Estimate(self._all.mean_seconds, None, 0, 0)
        return Estimate(best.mean_seconds, p95, int(best.peak_memory_bytes), best.samples)

    def learn(self, candidate: Candidate, usage: Usage) -> None:
        """The action has run, and took so much."""
        self._all.learn(usage.seconds, 0, spread=False)
        self._changed[_ALL] = None
        if candidate.action_class:
            self._keep(_CLASS, self._classes, self._max_classes, candidate.action_class).learn(
                usage.seconds, usage.peak_memory_bytes
            )
        if candidate.action_key:
            self._keep(_STEP, self._steps, self._max_steps, candidate.action_key).learn(
                usage.seconds, usage.peak_memory_bytes, spread=False
            )

    def _keep(self, kind: str, table: dict[str, Learned], most: int, name: str) -> Learned:
        """The entry of that name, made if need be, and now the last to be forgotten."""
        learned = table.pop(name, None)
        if learned is None:
            if len(table) >= most:
                oldest = next(iter(table))
                del table[oldest]
                self._changed[kind + oldest] = None
            learned = Learned()
        table[name] = learned
        self._changed[kind + name] = None
        return learned

    # For whoever keeps them over a restart

    def rows(self) -> list[Row]:
        """What has changed since the last call, in no order."""
        changed, self._changed = self._changed, {}
        return [(name, known.to_bytes() if (known := self._find(name)) is not None else None) for name in changed]

    def load(self, name: str, data: bytes) -> None:
        """Take back what `rows` gave, the longest unchanged first. Raises ValueError for what this version cannot read."""
        learned = Learned.from_bytes(data)
        kind, slash, rest = name.partition("/")
        if name == _ALL:
            self._all = learned
        elif kind + slash == _CLASS and rest and len(self._classes) < self._max_classes:
            self._classes[rest] = learned
        elif kind + slash == _STEP and rest and len(self._steps) < self._max_steps:
            self._steps[rest] = learned
        else:
            raise ValueError(f"statistics named {name[:100]!r} are unknown, or too many")

    def _find(self, name: str) -> Learned | None:
        if name == _ALL:
            return self._all
        kind, slash, rest = name.partition("/")
        return (self._classes if kind + slash == _CLASS else self._steps).get(rest)
