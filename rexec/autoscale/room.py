"""What one pool has for the work that waits, and how much of it is spoken for: the ledger that the policy fills.

All amounts are slots unless they say otherwise, and fractions are meant: many short tasks share one slot in turn.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from rexec.autoscale.view import Member, MemberState, PoolView

SETTLED_SECONDS: Final = 5.0
"""The scheduler gives work to a free slot at once. What waits for longer than this beside a free slot of a worker that runs
something else does not fit there, for want of cores or memory."""

OVERDUE_FACTOR: Final = 2.0
OVERDUE_SECONDS: Final = 10.0
"""A worker that takes longer than twice the usual time and this is not counted on if another pool can help."""

_SMALL: Final = 1e-6
"""Sums of fractions that miss a whole number by less are that number."""


def workers_for(slots: float, each: int) -> int:
    """Whole workers for so many slots."""
    return max(0, math.ceil(slots / each - _SMALL))


def overdue_seconds(start_seconds: float) -> float:
    """After how long a worker that usually takes so long should have come. One that is cancelled after that has failed."""
    return OVERDUE_FACTOR * start_seconds + OVERDUE_SECONDS


class Room:
    """The members of a pool, sorted by what they can do for waiting work."""

    def __init__(self, pool: PoolView, members: Sequence[Member]) -> None:
        self.pool = pool
        self.slots = max(1, pool.offer.slots)
        """Of one worker."""
        ready = [member for member in members if member.state is MemberState.READY]
        self.ready = len(ready)
        self.busy = sum(member.busy_slots > 0 for member in ready)
        """Workers that run something."""
        self.idle = [member for member in ready if member.busy_slots <= 0]
        self.starting = [member for member in members if member.state is MemberState.STARTING]
        self.coming_seconds = max((member.age_seconds for member in self.starting), default=0.0)
        """For how long the first of them has been on its way."""
        latest = overdue_seconds(pool.start_seconds)
        self.overdue = sum(member.age_seconds > latest for member in self.starting)
        self.away = sum(member.state is MemberState.AWAY for member in members)
        self.present = self.ready + len(self.starting) + self.away
        self.all = len(members)
        """Those that leave are counted against `max` until they are gone: they cost what they cost."""
        self.starts_for_min = 0
        self.idle_used = 0.0
        self.coming_used = 0.0
        """Of those that start in time, and of those that are asked for because of `min`."""
        self.overdue_used = 0.0
        self.new_used = 0.0
        """Of workers to be asked for."""
        self.missing = 0.0
        """What would be asked for as well, could it be."""
        self.slot_seconds = 0.0
        """Of waiting work that this pool is to do."""
        self._spare = Counter(member.slots - member.busy_slots for member in ready if member.busy_slots > 0)
        self._spare_used = 0.0
        rests = sorted(
            (member.rest_seconds, min(member.busy_slots, member.slots)) for member in ready if member.busy_slots > 0
        )
        self._rests = [rest for rest, _slots in rests]
        self._slots_until = [0, *accumulate(slots for _rest, slots in rests)]
        self._rest_until = [0.0, *accumulate(rest * slots for rest, slots in rests)]
        self._seconds_used = 0.0

    @property
    def starts(self) -> int:
        """How many workers are to be asked for."""
        return self.starts_for_min + workers_for(self.new_used, self.slots)

    @property
    def in_use(self) -> int:
        """Workers that have something to do, or will."""
        promised = self.idle_used + self.coming_used + self.overdue_used + self.new_used
        return self.busy + self.away + workers_for(promised, self.slots)

    def take_free(self, slots: float, task_slots: float, oldest_seconds: float) -> float:
        """Give work to slots that are free now; returns how many it gets of those it could use."""
        taken = 0.0
        if oldest_seconds <= SETTLED_SECONDS:
            whole = sum(
                count * math.floor(free / task_slots + _SMALL) for free, count in self._spare.items() if free > 0
            )
            taken = min(slots, max(0.0, whole * task_slots - self._spare_used))
            self._spare_used += taken
        # A worker that has nothing to do at all is counted on whatever is late: another one like it would be no better.
        idle = min(slots - taken, len(self.idle) * self.slots - self.idle_used)
        self.idle_used += idle
        return taken + idle

    def take_coming(self, slots: float) -> float:
        """Give work to workers that are on their way, those that are overdue left out."""
        there = (len(self.starting) - self.overdue + self.starts_for_min) * self.slots
        taken = min(slots, there - self.coming_used)
        self.coming_used += taken
        return taken

    def take_overdue(self, slots: float) -> float:
        """Give work to workers that should have come long ago."""
        taken = min(slots, self.overdue * self.slots - self.overdue_used)
        self.overdue_used += taken
        return taken

    def take_seconds(self, slot_seconds: float, horizon_seconds: float) -> float:
        """Give work to slots that are busy now, as far as they get free before the horizon; returns slot-seconds."""
        if horizon_seconds <= 0:
            return 0.0
        until = bisect_left(self._rests, horizon_seconds)
        there = self._slots_until[until] * horizon_seconds - self._rest_until[until]
        taken = min(slot_seconds, max(0.0, there - self._seconds_used))
        self._seconds_used += taken
        return taken

    def take_new(self, slots: float, workers: int) -> float:
        """Ask for workers, for up to so many in all."""
        there = max(0, workers - self.starts_for_min) * self.slots
        taken = min(slots, max(0.0, there - self.new_used))
        self.new_used += taken
        return taken
