"""What is remembered of a machine beside what its provider says, and when it has to be taken away.

The policy names workers that nobody needs; here are the others: those that have ended, that never came, that the scheduler
has lost, or that nothing in the configuration stands for any more.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final

import msgspec

from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.autoscale.provider import Machine, Phase
from rexec.autoscale.settings import PoolSettings

GONE_SECONDS: Final = 30.0
"""A worker that was attached and that the scheduler does not know for so long has left, or does not find it. Long enough for
all workers to come back to a scheduler that was started again."""

ASKED_SECONDS: Final = 3.0
"""A worker that was asked to leave counts as leaving for so long, whatever the scheduler says: it may not have heard yet. One
that had got something to do meanwhile is left as it was."""

LEFT_SECONDS: Final = 5.0
"""How long a worker that has left may take to end by itself."""

OLD_SECONDS: Final = 60.0
"""A machine that runs for longer has a worker that has come, most likely."""

AT_ONCE_SECONDS: Final = 60.0
"""A worker that fails so soon after it came is a failed start."""

STAYS_SECONDS: Final = 120.0
"""A worker that is drained and has had nothing to do for so long does not end by itself."""
STAYS_GRACE_SECONDS: Final = 15.0

KILLED: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM})
"""Whoever ends with one of these was ended by somebody else; other signals are faults of its own."""


@dataclass(slots=True)
class Life:
    """One machine's. Times are monotonic seconds."""

    first_seen_at: float
    ours: bool = False
    """Whether this process asked for it."""
    pool: str = ""
    family: str = ""
    """Of one that this process asked for: what for."""
    stayed: bool = False
    """Whether its worker has been there for AT_ONCE_SECONDS."""
    appeared: bool = False
    """Whether its provider has shown it."""
    came_at: float | None = None
    """When its worker was seen first; None if it never was."""
    seen_at: float = 0.0
    """When its worker was seen last."""
    asked_to_leave_at: float = float("-inf")
    removing: bool = False
    retry_at: float = float("-inf")
    """Its removal was refused; when to try again."""
    drained_since: float | None = None
    """Since when its worker is drained and has nothing to do."""

    def has_come(self, machine: Machine, *, now: float, wall: float, heard_since: float) -> bool:
        """Whether its worker has been there. Of one that was there before this process: whether it probably has, and is on its
        way back."""
        if self.came_at is not None or self.ours:
            return self.came_at is not None
        back = now - max(self.first_seen_at, heard_since) < GONE_SECONDS
        return back and machine.phase is Phase.RUNNING and wall - machine.created_at > OLD_SECONDS

    @property
    def asked_to_end(self) -> bool:
        """Whether it was to end when it did."""
        return self.removing or self.drained_since is not None or self.asked_to_leave_at > float("-inf")

    def counts_as_leaving(self, now: float) -> bool:
        """Whether it is not to be counted on."""
        return self.removing or now - self.asked_to_leave_at < ASKED_SECONDS


class Removal(msgspec.Struct, frozen=True):
    """Why a machine has to be taken away."""

    why: str
    """One of those of rexec/autoscale/observer.py."""
    grace_seconds: float
    failure: str = ""
    """For people, if it is a start that failed."""
    early: bool = False
    """Whether somebody has killed it soon after it came."""


def removal_of(
    life: Life,
    machine: Machine,
    worker: autoscaling_pb2.AttachedWorker | None,
    settings: PoolSettings | None,
    *,
    now: float,
    wall: float,
    heard_since: float,
) -> Removal | None:
    """What has to become of a machine; None: nothing. `settings` are those of its pool, None if there is none any more.
    `heard_since`: since when the scheduler has been heard without a gap."""
    if machine.phase is Phase.ENDED:
        return _ended(life, machine, now)
    if machine.phase is Phase.LEAVING:
        return None
    if worker is not None:
        return _stays(life, worker, now)
    grace_seconds = settings.drain_seconds if settings is not None else PoolSettings(name="unknown").drain_seconds
    if life.came_at is not None:
        if life.asked_to_leave_at > life.came_at and now - life.seen_at > LEFT_SECONDS:
            return Removal("left", grace_seconds)
        lost = now - max(life.seen_at, heard_since) > GONE_SECONDS
        return Removal("lost", grace_seconds) if lost else None
    if settings is None:
        return Removal("foreign", grace_seconds)
    if machine.hopeless:
        return Removal("failed", 0.0, machine.problem or "it cannot start")
    # Others than ours may have come before, and be about to come back. A scheduler that was away has seen nobody come.
    known = life.ours and heard_since < life.first_seen_at
    patient = not known and now - max(life.first_seen_at, heard_since) < GONE_SECONDS
    if _age_seconds(life, machine, now, wall) > settings.start_timeout_seconds and not patient:
        said = f": {machine.problem}" if machine.problem else ""
        return Removal("failed", grace_seconds, f"it has not come within {settings.start_timeout_seconds:g}s{said}")
    return None


def _age_seconds(life: Life, machine: Machine, now: float, wall: float) -> float:
    """Since it was asked for. What this process has asked for is as old as that, whatever the clock on the wall is set to."""
    known = now - life.first_seen_at
    return known if life.ours else max(known, wall - machine.created_at)


def _stays(life: Life, worker: autoscaling_pb2.AttachedWorker, now: float) -> Removal | None:
    """What has to become of a worker that is attached: one that should have left and hangs would take up a place for ever."""
    if not worker.draining or worker.leases:
        life.drained_since = None
    elif life.drained_since is None:
        life.drained_since = now
    elif now - life.drained_since > STAYS_SECONDS:
        return Removal("left", STAYS_GRACE_SECONDS)
    return None


def _is_failure(code: int | None, life: Life) -> bool:
    """Whether a worker that has come and ended so has failed. One that goes unasked has, for the next one may go as well."""
    if code is None:
        return False  # deleted, or its node is gone
    if code == 0:
        return life.drained_since is None and (life.came_at is None or life.asked_to_leave_at <= life.came_at)
    return abs(code) % 128 not in KILLED if code < 0 or code > 128 else True


def _ended(life: Life, machine: Machine, now: float) -> Removal:
    code = machine.exit_code
    failed = _is_failure(code, life)
    if life.came_at is None and life.ours and code != 0:
        ending = machine.problem or (f"its worker ended with exit code {code}" if code is not None else "it has ended")
        return Removal("failed", 0.0, ending)
    if life.came_at is not None and failed and now - life.came_at < AT_ONCE_SECONDS:
        return Removal("failed", 0.0, machine.problem or f"its worker ended with exit code {code} soon after it came")
    early = code != 0 and life.came_at is not None and now - life.came_at < AT_ONCE_SECONDS and not life.asked_to_end
    return Removal("left" if code == 0 else "lost", 0.0, early=early)
