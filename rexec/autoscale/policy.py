"""How many workers each pool should have: decided from values, without a clock and without memory.

The signal is work, neither CPU nor the number of tasks: an action that compiles for a second and a test that runs for an hour
are both one in a queue, and both use a whole core. What waits is expected to take so many slot-seconds (the scheduler has
learned how long each kind of action takes), and over the time that it may wait this makes slots (rexec/autoscale/need.py).
Each kind of work is placed, first what fits the fewest pools, where it costs least:

1. in slots that are free;
2. in workers that are on their way;
3. behind what runs now, as far as that ends before new workers would be there, or within the time that work may wait: no
   worker is started for what is done when it comes;
4. in new workers of the cheapest pool that may start some; what it may not start the next one does.

Pools grow at once. They shrink only by workers that have had nothing to do for `idle_seconds`, or stand in the way of others of
their family that is as large as it may be, and by those that start and that nobody has needed for a while
(rexec/autoscale/lately.py): so a queue that jumps up and down moves nothing. A worker that
runs something is never named. One that is AWAY may come back with what it runs: it takes up room and serves nothing that waits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rexec.autoscale.decision import PoolDecision
from rexec.autoscale.matching import Offers, cheapest_first, slots_taken
from rexec.autoscale.need import places, task_seconds
from rexec.autoscale.room import SETTLED_SECONDS, Room, workers_for
from rexec.autoscale.view import Member, PoolView, Waiting

UNLIMITED: Final = 1_000_000

_NOTHING: Final = 1e-9


def decide(
    pools: Sequence[PoolView],
    waiting: Sequence[Waiting],
    members: Sequence[Member],
    *,
    startable: int = UNLIMITED,
    held_back: str = "",
) -> dict[str, PoolDecision]:
    """A decision for each pool. `startable`: how many workers may be started over all pools, and `held_back` why no more.

    Equal values give equal decisions. Members of unknown pools are passed over, and work that no pool fits.
    """
    plan = _Plan(pools, members, startable)
    plan.keep_min(pools)
    kinds = []
    offers = Offers(pools)
    for work in waiting:
        fitting = cheapest_first(work, offers.possible(work)) if work.tasks > 0 else []
        if fitting:
            kinds.append((work, fitting))
    # Not by how much there is of it: more work of one kind must not take from another kind what it had. Tenants take turns, so
    # that one who asks for hundreds of container images leaves something of a limit to others.
    kinds.sort(key=lambda kind: (len(kind[1]), *_identity(kind[0])))
    turns: dict[str, int] = defaultdict(int)
    in_turn = []
    for work, fitting in kinds:
        turns[work.tenant] += 1
        in_turn.append((len(fitting), turns[work.tenant], work, fitting))
    for _pools, _turn, work, fitting in sorted(in_turn, key=lambda entry: entry[:2]):
        plan.place(work, fitting)
    plan.make_room()
    return {pool.name: plan.decision(pool, held_back) for pool in pools}


class _Placing:
    """One kind of work, and the part of it that has no place yet."""

    def __init__(self, work: Waiting) -> None:
        self.task_seconds = task_seconds(work)
        self.slot_seconds = self.task_seconds * work.slots
        self.left = 1.0

    def note(self, room: Room, part: float) -> None:
        """A pool is to do a part of it."""
        part = min(part, self.left)
        room.slot_seconds += part * self.slot_seconds
        self.left = self.left - part if self.left - part > _NOTHING else 0.0

    def queue_up(self, room: Room, each: float, horizon_seconds: float) -> None:
        """A pool is to do what it gets to with the slots that are busy now. `each`: what one task takes of it."""
        slot_seconds = self.task_seconds * each
        self.note(room, room.take_seconds(self.left * slot_seconds, horizon_seconds) / slot_seconds)


@dataclass(slots=True)
class _Family:
    """Pools that share a limit."""

    max: int
    workers: int = 0
    """Those there are, whatever they do, and those that are to be asked for."""
    short: int = 0
    """Workers without anything to do that should make room for others."""


class _Plan:
    """What each pool is to do, while it is being found out."""

    def __init__(self, pools: Sequence[PoolView], members: Sequence[Member], startable: int) -> None:
        by_pool: dict[str, list[Member]] = defaultdict(list)
        for member in members:
            by_pool[member.pool].append(member)
        self.rooms = {pool.name: Room(pool, by_pool[pool.name]) for pool in pools}
        self.families: dict[str, _Family] = {}
        for room in self.rooms.values():
            family = self.families.setdefault(room.pool.family, _Family(room.pool.family_max))
            family.max = min(family.max, room.pool.family_max)
            family.workers += room.all
        self.left_to_start = max(0, startable)

    def allowed_starts(self, room: Room) -> int:
        """How many workers a pool may ask for in all, those that it asks for already included."""
        pool = room.pool
        family = self.families[pool.family]
        shared = min(family.max - family.workers, self.left_to_start)
        return max(0, min(pool.max - room.all, pool.startable, shared + room.starts))

    def take_new(self, room: Room, slots: float) -> float:
        """Ask for workers of a pool, within all limits; returns the slots that work gets of them."""
        before = room.starts
        taken = room.take_new(slots, self.allowed_starts(room))
        self._note_starts(room, room.starts - before)
        return taken

    def keep_min(self, pools: Sequence[PoolView]) -> None:
        """Ask for what pools have without any work, before anything else may use up the limits."""
        for pool in pools:
            room = self.rooms[pool.name]
            room.starts_for_min = max(0, min(pool.min - room.present, self.allowed_starts(room)))
            self._note_starts(room, room.starts_for_min)

    def _note_starts(self, room: Room, number: int) -> None:
        self.families[room.pool.family].workers += number
        self.left_to_start -= number

    def place(self, work: Waiting, fitting: Sequence[PoolView]) -> None:
        """Share one kind of work out."""
        rooms = [(self.rooms[pool.name], *_slots(work, self.rooms[pool.name])) for pool in fitting]
        placing = _Placing(work)
        for room, slots, each in rooms:
            placing.note(room, room.take_free(placing.left * slots, each, work.oldest_seconds) / slots)
        for room, slots, _each in rooms:
            placing.note(room, room.take_coming(placing.left * slots) / slots)
        for room, _slots_wanted, each in rooms:
            placing.queue_up(room, each, _horizon_seconds(room.pool, work.oldest_seconds))
        # A pool whose workers do not come is asked last, but not for more of them before those have come.
        for room, slots, _each in sorted(rooms, key=lambda entry: entry[0].overdue > 0):
            placing.note(room, room.take_overdue(placing.left * slots) / slots)
            if placing.left and self.allowed_starts(room) > room.starts:
                for other, _slots_wanted, each in rooms:
                    placing.queue_up(other, each, _horizon_seconds(room.pool, work.oldest_seconds))
            placing.note(room, self.take_new(room, placing.left * slots) / slots)
        first, slots, _each = rooms[0]
        first.missing += placing.left * slots
        placing.note(first, placing.left)

    def make_room(self) -> None:
        """Find how many workers without anything to do stand in the way of work for other pools of their family. Those that are
        leaving already make room, too."""
        for room in self.rooms.values():
            leaving = room.all - room.present
            self.families[room.pool.family].short += workers_for(room.missing, room.slots) - leaving
        for family in self.families.values():
            family.short = max(0, family.short) if family.workers >= family.max else 0

    def decision(self, pool: PoolView, held_back: str) -> PoolDecision:
        """What has come out for a pool."""
        room = self.rooms[pool.name]
        starts = room.starts
        wanted = max(room.in_use, min(pool.min, pool.max))
        missing = workers_for(room.missing, room.slots)
        cancel = _unneeded(room, wanted) if not starts else ()
        family = self.families[pool.family]
        leave = _idle(room, len(cancel), family.short)
        family.short -= min(family.short, len(leave))
        return PoolDecision(
            target=room.present + starts - len(cancel) - len(leave),
            start=starts,
            leave=leave,
            cancel=cancel,
            wanted=wanted,
            missing=missing,
            reason=self._reason(room, wanted, missing, held_back),
        )

    def _reason(self, room: Room, wanted: int, missing: int, held_back: str) -> str:
        """For people: what is wanted, why, and what stands against it."""
        pool = room.pool
        parts = [f"{wanted + missing} wanted"]
        if room.slot_seconds > 0:
            parts[0] += f": {room.slot_seconds:.0f} slot-seconds wait, {pool.target_wait_seconds:g}s allowed"
        elif wanted and wanted > room.busy + room.away:
            parts[0] += f": {pool.min} are kept" if wanted == pool.min else ": work waits"
        elif wanted:
            parts[0] += ": busy"
        else:
            parts[0] += ": nothing waits"
        family = self.families[pool.family]
        if missing and room.all + room.starts >= pool.max:
            parts.append(f"{pool.max} is its max")
        elif missing and family.workers >= family.max:
            parts.append(f"{family.max} is the max of {pool.family}")
        elif (missing or room.present + room.starts < pool.min) and room.starts >= pool.startable:
            parts.append(pool.held_back or "held back")
        elif missing or room.present + room.starts < pool.min:
            parts.append(held_back or "held back")
        if room.overdue:
            parts.append(f"{room.overdue} asked for {_about(room.coming_seconds)} ago or less have not come")
        return "; ".join(parts)


def _about(seconds: float) -> str:
    """So that nobody is told anew each second."""
    return f"{seconds // 60:.0f}min" if seconds >= 60 else f"{seconds // 10 * 10:.0f}s"


def _identity(work: Waiting) -> tuple[str, list[tuple[str, str]], str, int, int, int]:
    return work.instance_name, sorted(work.pairs), work.tenant, work.slots, work.cpu_millis, work.memory_bytes


def _slots(work: Waiting, room: Room) -> tuple[float, float]:
    """Slots of a pool that work should have at once, and what one of its tasks takes."""
    pool = room.pool
    each = slots_taken(work, pool.offer)
    at_once = places(work, pool.target_wait_seconds, pool.start_seconds, room.coming_seconds)
    return max(_NOTHING, at_once * each), each


def _horizon_seconds(pool: PoolView, oldest_seconds: float) -> float:
    """Until when a slot that is busy now must be free to do what waits instead of a new one: until a new one would be there, or
    as long as work may wait, if that is longer. What has waited for longer than it may brings this nearer: whoever has sent it
    sends more as soon as some is done, and so the queue never ends."""
    return max(pool.start_seconds, pool.target_wait_seconds) - max(0.0, oldest_seconds - pool.target_wait_seconds)


def _unneeded(room: Room, wanted: int) -> tuple[str, ...]:
    """Workers that start and that nothing needs, nor has needed lately; or that are too many for `max`."""
    pool = room.pool
    used = workers_for(room.coming_used + room.overdue_used, room.slots)
    spare = min(len(room.starting) - used, room.present - max(wanted, pool.lately_wanted))
    number = max(0, spare, min(len(room.starting), room.present - pool.max))
    youngest_first = sorted(room.starting, key=lambda member: (member.age_seconds, member.name))
    return tuple(member.name for member in youngest_first[:number])


def _idle(room: Room, cancelled: int, short: int) -> tuple[str, ...]:
    """Workers without anything to do, for longer than they may be or too many for `max`, that nothing waits for; and up to
    `short` that have had nothing to do for a moment, to make room for others."""
    pool = room.pool
    longest_first = sorted(room.idle, key=lambda member: (-member.idle_seconds, member.name))
    too_many = room.present - cancelled - pool.max
    long_idle = sum(member.idle_seconds >= pool.idle_seconds for member in longest_first)
    spare = len(room.idle) - workers_for(room.idle_used, room.slots)
    in_the_way = min(short, sum(member.idle_seconds > SETTLED_SECONDS for member in longest_first))
    number = max(min(max(long_idle, in_the_way), spare, room.ready - pool.min), min(too_many, len(longest_first)), 0)
    return tuple(member.name for member in longest_first[:number])
