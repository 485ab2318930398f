"""Short forms of what the policy looks at, for tests."""

from __future__ import annotations

from typing import Any

from rexec.autoscale.view import Member, MemberState, Offer, PoolView, Waiting

LINUX = frozenset({("OSFamily", "linux")})


def pool(name: str = "small", *, slots: int = 4, pairs: frozenset[tuple[str, str]] = LINUX, **changed: Any) -> PoolView:
    """A pool of workers with four slots that come within ten seconds."""
    values: dict[str, Any] = {
        "name": name,
        "family": name,
        "offer": Offer(pairs, slots=slots),
        "min": 0,
        "max": 100,
        "family_max": 100,
        "target_wait_seconds": 20.0,
        "idle_seconds": 120.0,
        "start_seconds": 10.0,
        "lately_wanted": 0,
    }
    return PoolView(**{**values, **changed})


def work(tasks: int, seconds: float, **changed: Any) -> Waiting:
    """Tasks of one slot that have come just now and last so long each."""
    values: dict[str, Any] = {
        "pairs": LINUX,
        "instance_name": "",
        "tenant": "",
        "slots": 1,
        "cpu_millis": 0,
        "memory_bytes": 0,
        "tasks": tasks,
        "slot_seconds": tasks * seconds * changed.get("slots", 1),
        "longest_seconds": seconds,
        "oldest_seconds": 0.0,
    }
    return Waiting(**{**values, **changed})


def ready(
    name: str, of: str = "small", *, slots: int = 4, busy: int = 0, idle: float = 0.0, rest: float = 0.0
) -> Member:
    """A worker that is there; one that has nothing to do has had none for `idle` seconds."""
    return Member(name, of, MemberState.READY, slots, busy, idle, 1000.0, rest)


def starting(name: str, of: str = "small", *, slots: int = 4, age: float = 1.0) -> Member:
    """A worker on its way."""
    return Member(name, of, MemberState.STARTING, slots, age_seconds=age)


def in_state(state: MemberState, name: str, of: str = "small", *, slots: int = 4) -> Member:
    """A worker of any state, with nothing to do."""
    return Member(name, of, state, slots)
