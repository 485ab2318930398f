"""What the simulated pools have to do: builds, when they begin, and the pools that are there for them.

A build is a graph of actions and a client that has at most so many of them under way (Bazel's --jobs), so what waits depends on
how fast it is done, as in life. "recorded" is the C++ workspace of integration/workspaces as Bazel built it on one of our
machines (bench/record_trace.py); all others are made up, and are the same in every run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TRACES = Path(__file__).parent / "traces"


@dataclass(frozen=True, slots=True)
class Action:
    """One action of a build."""

    kind: str
    """Actions of a kind are expected to take as long as they do on the mean."""
    seconds: float
    after: tuple[int, ...] = ()
    """Places in the build of those that it waits for."""
    slots: int = 1


@dataclass(frozen=True, slots=True)
class Build:
    """One build."""

    begins: float
    actions: tuple[Action, ...]
    jobs: int = 200


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool of the trace."""

    name: str
    slots: int
    start_seconds: float
    price_per_hour: float
    max: int
    broken: bool = False
    """Its pods never start."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Builds and pools."""

    name: str
    pools: tuple[Pool, ...]
    builds: tuple[Build, ...]


def standard(start_seconds: float = 10.0) -> Pool:
    """A pool of pods with four slots, on nodes that are there."""
    return Pool("standard", 4, start_seconds, 0.20, 60)


def compilation(chance: random.Random, actions: int, seconds: float) -> tuple[Action, ...]:
    """Compile, then link in groups of twenty, then one program."""
    compiles = [Action("compile", seconds * chance.lognormvariate(-0.18, 0.6)) for _ in range(actions)]
    groups = [tuple(range(first, min(first + 20, actions))) for first in range(0, actions, 20)]
    links = [Action("link", seconds * chance.uniform(0.3, 0.8), group) for group in groups]
    program = Action("program", 2 * seconds, tuple(range(actions, actions + len(links))))
    return (*compiles, *links, program)


def burst() -> Trace:
    """A small build each minute; after five minutes thirty times as much, and then as before."""
    chance = random.Random(1)
    builds = [Build(60.0 * minute, compilation(chance, 40, 4)) for minute in range(15)]
    builds += [Build(300.0 + chance.uniform(0, 20), compilation(chance, 40, 4)) for _ in range(30)]
    return Trace("burst of 30x", (standard(),), _in_order(builds))


def tail() -> Trace:
    """A build whose last test takes ten minutes."""
    chance = random.Random(2)
    actions = compilation(chance, 600, 5)
    program = len(actions) - 1
    tests = tuple(Action("test", chance.uniform(2, 8), (program,)) for _ in range(100))
    long = Action("long test", 600, (program,))
    return Trace("one long tail", (standard(),), (Build(0, (*actions, *tests, long)),))


def two_pools() -> Trace:
    """Most actions fit both pools, a few only the one with large workers, whose slots cost twice as much."""
    chance = random.Random(3)
    pools = (Pool("small", 2, 10, 0.10, 20), Pool("large", 16, 10, 1.60, 8))
    builds = []
    for number in range(4):
        actions = compilation(chance, 300, 6)
        last = len(actions) - 1
        large = tuple(Action("large test", chance.uniform(60, 120), (last,), slots=8) for _ in range(6))
        builds.append(Build(240.0 * number, (*actions, *large)))
    return Trace("cheap small, dear large", pools, tuple(builds))


def slow_nodes() -> Trace:
    """Builds one after another, soon or late, and each new pod needs a node that takes a minute."""
    chance = random.Random(4)
    builds = tuple(Build(begins, compilation(chance, 500, 5)) for begins in (0.0, 200.0, 600.0, 1200.0))
    return Trace("node start 60 s", (standard(60),), builds)


def broken_pods() -> Trace:
    """The cheap pool's pods never start."""
    chance = random.Random(5)
    pools = (Pool("cheap", 4, 10, 0.10, 30, broken=True), Pool("good", 4, 10, 0.20, 30))
    return Trace(
        "pods never start", pools, (Build(0, compilation(chance, 500, 5)), Build(500, compilation(chance, 300, 5)))
    )


def recorded() -> Trace:
    """Forty builds of the C++ workspace in twenty minutes."""
    chance = random.Random(6)
    actions = tuple(read(TRACES / "cpp.txt"))
    builds = [Build(chance.uniform(0, 1200), actions) for _ in range(40)]
    return Trace("40 recorded C++ builds", (standard(),), _in_order(builds))


def read(path: Path) -> Iterator[Action]:
    """The actions of a recorded build."""
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            _number, kind, seconds, *after = line.split()
            yield Action(kind, float(seconds), tuple(int(number) for number in after[0].split(",")) if after else ())


def _in_order(builds: list[Build]) -> tuple[Build, ...]:
    return tuple(sorted(builds, key=lambda build: build.begins))


ALL: tuple[Callable[[], Trace], ...] = (burst, tail, two_pools, slow_nodes, broken_pods, recorded)
