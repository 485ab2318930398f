"""Where workers come from: processes of this machine, or pods of a cluster.

The loop (rexec/autoscale/loop.py) asks for workers by name and takes them away by name, and reads here what became of them. A
provider outlives its process: after a restart it lists what it has started before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

import msgspec

from rexec.autoscale.settings import PoolSettings


class Phase(StrEnum):
    """How far a machine is."""

    WAITING = "waiting"
    """Asked for; not running yet."""
    RUNNING = "running"
    """Its worker's process runs; whether it is attached the scheduler knows."""
    LEAVING = "leaving"
    """It was told to end and has not."""
    ENDED = "ended"
    """Its process has ended, and it is listed until it is removed."""


class Machine(msgspec.Struct, frozen=True):
    """What a worker runs in: a process or a pod."""

    name: str
    """That of the worker, too."""
    pool: str
    created_at: float
    """Seconds since 1970."""
    phase: Phase
    problem: str = ""
    """Why it does not run, for people: it cannot be scheduled, its image cannot be pulled. Empty: nothing is wrong."""
    hopeless: bool = False
    """Waiting will not help: it should be removed and another one tried later."""
    exit_code: int | None = None
    """Of one that has ended; 0: it was drained. None: not known."""
    image: str = ""
    """The container image that it was started for, of a pool that takes its image from the action."""


class Refused(Exception):
    """A worker cannot be started or removed now; the text says why, for people."""

    def __init__(self, reason: str, *, retry_after_seconds: float | None = None, lasting: bool = False) -> None:
        """`retry_after_seconds`: when to try again, if whoever refused has said so. `lasting`: it will be refused until somebody
        changes something (a permission, a quota, a template), as opposed to a server that is away for a while."""
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds
        self.lasting = lasting


class Provider(Protocol):
    """Starts and ends machines."""

    changed: asyncio.Event
    """Set whenever `machines` may have changed; whoever waits clears it."""

    @property
    def problem(self) -> str:
        """Why nothing can be said or done at the moment, for people (the API server does not answer); empty if all is well."""
        ...

    def machines(self) -> Mapping[str, Machine]:
        """All machines by name, as last heard of."""
        ...

    async def start(self, pool: PoolSettings, name: str, image: str = "") -> None:
        """Start one; it is in `machines` when this returns. Does nothing if it is there already. Raises Refused."""
        ...

    async def remove(self, name: str, grace_seconds: float) -> None:
        """End it: its worker gets SIGTERM and so long to drain. One that is gone already is no error. Raises Refused."""
        ...

    async def run(self) -> None:
        """Keep `machines` true until cancelled, whatever happens to the other side."""
        ...
