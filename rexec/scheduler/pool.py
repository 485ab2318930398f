"""A pool of workers as an autoscaler tells of it (autoscaling.proto, Pool): their kind, and how many there are and may be."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import msgspec

from cas.errors import MalformedRequest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.scheduler.need import MAX_MEMORY_BYTES, Need
from rexec.scheduler.packing import MAX_CPU_MILLIS, MAX_SLOTS
from rexec.scheduler.platform import Offer, Requirement
from rexec.scheduler.summary import shortened

MAX_POOLS: Final = 1000
MAX_PROPERTIES: Final = 100
"""Of one pool, and as many patterns."""
MAX_ALL_PROPERTIES: Final = 10_000
"""Of all pools of a message, patterns too."""
MAX_INSTANCES: Final = 1000
MAX_PROPERTY_CHARACTERS: Final = 4096
MAX_PATTERN_CHARACTERS: Final = 300
MAX_NAME_CHARACTERS: Final = 100
MAX_PROBLEM_CHARACTERS: Final = 300
MAX_WORKERS: Final = 1_000_000
"""Whatever is said, a figure is at most this."""
MAX_AMOUNT: Final = 1e12
"""The same of money and seconds."""

IMAGE_PROPERTY: Final = "container-image"
IMAGE_SCHEME: Final = "docker://"
"""Values of that property begin with it in some clients' settings; patterns are of what follows."""

_IMAGE: Final = re.compile(r"[A-Za-z0-9\[](?:[A-Za-z0-9_\[\]:@+-]|\.(?!\.)|/(?!/)){0,599}")
"""What may be the name of an image, with registry, tag and digest; longer ones there are none (OCI distribution)."""


class Pattern(msgspec.Struct, frozen=True):
    """A property whose value is matched by a pattern: * and ? stand for anything."""

    name: str
    pattern: str

    def matches(self, name: str, value: str) -> bool:
        """Whether a pool with this pattern takes the property."""
        if name != self.name:
            return False
        matches = _compiled(self.pattern).match
        if name != IMAGE_PROPERTY:
            return matches(value) is not None
        bare = value.removeprefix(IMAGE_SCHEME)
        return _IMAGE.fullmatch(bare) is not None and (matches(bare) is not None or matches(value) is not None)


@lru_cache(maxsize=2048)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


class Pool(msgspec.Struct, frozen=True):
    """Figures are of workers, unless they say otherwise."""

    name: str
    offer: Offer = Offer()
    """What one of them has. Of cores and memory 0 is not known, and no limit."""
    patterns: tuple[Pattern, ...] = ()
    slots: int = 1
    """Of one."""
    min: int = 0
    max: int = 0
    target: int = 0
    ready: int = 0
    starting: int = 0
    leaving: int = 0
    problem: str = ""
    """Why it does not grow as it should; empty if nothing is wrong."""
    start_seconds: float = 0.0
    price_per_hour: float = 0.0
    """Of one; 0: not known."""
    cost_today: float = 0.0
    away: bool = False
    """Whether its autoscaler has gone, so that all this may be out of date."""

    def takes(self, name: str, value: str) -> bool:
        """Whether its workers meet one property."""
        return self.offer.has(name, value) or any(pattern.matches(name, value) for pattern in self.patterns)

    def fits(self, requirement: Requirement) -> bool:
        """Whether its workers have everything that is required."""
        return self.offer.serves(requirement.instance_name) and all(self.takes(*pair) for pair in requirement.pairs)

    def holds(self, need: Need) -> bool:
        """Whether a worker of it that is empty has room for so much."""
        cpu_millis, memory_bytes = self.offer.cpu_millis, self.offer.memory_bytes
        return (
            need.slots <= self.slots
            and (not cpu_millis or need.cpu_millis <= cpu_millis)
            and (not memory_bytes or need.memory_bytes <= memory_bytes)
        )


def read_pools(message: autoscaling_pb2.Pools) -> tuple[Pool, ...]:
    """The pools of a message: texts shortened, figures brought into their bounds. Raises MalformedRequest for what cannot be
    meant, such as two pools of one name."""
    if len(message.pools) > MAX_POOLS:
        raise MalformedRequest(f"{len(message.pools)} pools, expected at most {MAX_POOLS}")
    total = sum(len(said.properties) + len(said.patterns) for said in message.pools)
    if total > MAX_ALL_PROPERTIES:
        raise MalformedRequest(f"pools have {total} properties, expected at most {MAX_ALL_PROPERTIES}")
    pools: dict[str, Pool] = {}
    for said in message.pools:
        pool = _read(said)
        if pool.name in pools:
            raise MalformedRequest(f"two pools are named {pool.name!r}")
        pools[pool.name] = pool
    return tuple(pools.values())


def _read(said: autoscaling_pb2.Pool) -> Pool:
    name = said.name
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise MalformedRequest(f"pool name {name[:50]!r} is not 1 to {MAX_NAME_CHARACTERS} printable characters")
    if len(said.instance_names) > MAX_INSTANCES:
        raise MalformedRequest(
            f"pool {name} has {len(said.instance_names)} instances, expected at most {MAX_INSTANCES}"
        )
    properties = _properties(name, said.properties, MAX_PROPERTY_CHARACTERS)
    patterns = _properties(name, said.patterns, MAX_PATTERN_CHARACTERS)
    return Pool(
        name=name,
        offer=Offer(
            frozenset(properties),
            frozenset(said.instance_names),
            _within(said.cpu_millis, MAX_CPU_MILLIS),
            _within(said.memory_bytes, MAX_MEMORY_BYTES),
        ),
        patterns=tuple(Pattern(*pair) for pair in patterns),
        slots=max(1, _within(said.slots, MAX_SLOTS)),
        min=_within(said.min, MAX_WORKERS),
        max=_within(said.max, MAX_WORKERS),
        target=_within(said.target, MAX_WORKERS),
        ready=_within(said.ready, MAX_WORKERS),
        starting=_within(said.starting, MAX_WORKERS),
        leaving=_within(said.leaving, MAX_WORKERS),
        problem=_shown(said.problem),
        start_seconds=_amount(said.start_seconds),
        price_per_hour=_amount(said.price_per_hour),
        cost_today=_amount(said.cost_today),
    )


def _properties(
    pool: str, said: Iterable[re_pb2.Platform.Property], most_characters: int
) -> list[tuple[str, str]]:  # fmt: skip
    pairs = [(each.name, each.value) for each in said]
    if len(pairs) > MAX_PROPERTIES:
        raise MalformedRequest(f"pool {pool} has {len(pairs)} properties, expected at most {MAX_PROPERTIES}")
    for name, value in pairs:
        if not name or len(name) + len(value) > most_characters:
            raise MalformedRequest(f"pool {pool}: property {name[:50]!r} has no name or is too long")
    return pairs


def _within(figure: int, most: int) -> int:
    return min(max(0, figure), most)


def _amount(figure: float) -> float:
    return min(max(0.0, figure), MAX_AMOUNT) if math.isfinite(figure) else 0.0


def _shown(text: str) -> str:
    """One line of it, without anything that a terminal would obey, for it stands in the reasons that clients are sent: what
    programs in the images of users say is in it."""
    plain = "".join(char if char.isprintable() else " " for char in text[: 4 * MAX_PROBLEM_CHARACTERS])
    return shortened(" ".join(plain.split()), MAX_PROBLEM_CHARACTERS)
