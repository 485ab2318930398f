"""What workers say of themselves that no rule needs: their version, what they can use up, how they are. For displays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from protos.rexec.worker.v1 import worker_pb2

MAX_RESOURCES = 50
"""Kept of one worker; real ones name two or three."""

MAX_TEXT_CHARACTERS = 100


@dataclass(slots=True)
class About:
    """One worker."""

    attached_at: float
    """When its session was seen first."""
    version: str = ""
    resources: dict[str, int] = field(default_factory=dict)
    heartbeat: worker_pb2.Heartbeat | None = None
    """The last one; its numbers can be shown."""
    heard_at: float = 0.0
    """When it came."""


class Vitals:
    """All workers, by worker id. Only attached ones are kept."""

    def __init__(self) -> None:
        self._workers: dict[str, About] = {}

    def of(self, worker_id: str) -> About | None:
        """What the worker has said, None if it has not come back since this scheduler started."""
        return self._workers.get(worker_id)

    def attached(self, hello: worker_pb2.Hello, now: float) -> None:
        """A worker is there, or back."""
        about = self._workers.setdefault(hello.session_id, About(now))
        about.version = hello.software_version[:MAX_TEXT_CHARACTERS]
        names = sorted(hello.resources)[:MAX_RESOURCES]
        about.resources = {name[:MAX_TEXT_CHARACTERS]: hello.resources[name] for name in names}

    def heard(self, worker_id: str, heartbeat: worker_pb2.Heartbeat, now: float) -> None:
        """A worker says how it is. Means nothing of one that is gone."""
        about = self._workers.get(worker_id)
        if about is not None:
            if not math.isfinite(heartbeat.load):
                heartbeat.load = 0.0
            about.heartbeat, about.heard_at = heartbeat, now

    def gone(self, worker_id: str) -> None:
        """The session is over."""
        self._workers.pop(worker_id, None)
