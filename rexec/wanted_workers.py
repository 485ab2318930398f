"""How many workers there should be of a kind: the figure for those who have the cluster's own autoscalers start them.

It is what the policy (rexec/autoscale/policy.py) wants of one pool, given what the scheduler tells every autoscaler: workers that
have something to do, and those that what waits needs. Three things differ from `rexec autoscale`, which starts workers itself:

- Pools are looked at one by one. Work that fits two of them is counted for both.
- Which workers are on their way is not known here; they are among those that are wanted until they are there. So work that
  waits for them is not taken to have been underestimated, as it is elsewhere: that would ask for more and more of them.
- Nobody says which workers may go. A worker that has nothing to do is not wanted, at once; how long it stays is for the
  autoscaler to say, and which one goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.asked_pool import NAME, AskedPool
from rexec.autoscale.fleet_view import FleetView, fleet_view, offers_by_pool, pairs_of
from rexec.autoscale.learned import Learned
from rexec.autoscale.matching import ANY_VALUE, fits
from rexec.autoscale.policy import decide
from rexec.autoscale.provider import Machine, Phase
from rexec.autoscale.room import SETTLED_SECONDS
from rexec.autoscale.view import PoolView, Waiting

MAX_REMEMBERED: Final = 200
"""Pools whose workers are remembered; those that nobody has asked about for longest are forgotten first."""


class Figures(msgspec.Struct, frozen=True):
    """Of one pool, now."""

    wanted_workers: int = 0
    waiting_slot_seconds: float = 0.0
    """Expected of all that waits for such a worker."""
    waiting_tasks: int = 0
    busy_slots: int = 0
    """Of its workers, those that leave as well."""


class _Known:
    """What is remembered of a pool while it has no workers."""

    def __init__(self) -> None:
        self.learned = Learned()
        self.slots = 1


class WantedWorkers:
    """The figures of any pool. What workers find out about their machine is remembered of each, as `rexec autoscale` does."""

    def __init__(self) -> None:
        self._known: dict[AskedPool, _Known] = {}
        """The one that was asked about last at the end."""

    def figures(self, asked: AskedPool, snapshot: autoscaling_pb2.ToAutoscaler) -> Figures:
        """What the snapshot means for the pool."""
        seen = self._view(asked, snapshot)
        (pool,) = seen.pools
        waiting = list(_fitting(seen.waiting, pool))
        decision = decide(seen.pools, [_not_late(work, pool) for work in waiting], seen.members)[NAME]
        return Figures(
            wanted_workers=decision.wanted + decision.missing,
            waiting_slot_seconds=sum(work.slot_seconds for work in waiting),
            waiting_tasks=sum(work.tasks for work in waiting),
            busy_slots=sum(worker.busy_slots for worker in seen.workers.values()),
        )

    def is_active(self, asked: AskedPool, snapshot: autoscaling_pb2.ToAutoscaler) -> bool:
        """Whether anything waits for the pool or runs on it."""
        seen = self._view(asked, snapshot)
        if any(worker.leases for worker in seen.workers.values()):
            return True
        return next(_fitting(seen.waiting, seen.pools[0]), None) is not None

    def _view(self, asked: AskedPool, snapshot: autoscaling_pb2.ToAutoscaler) -> FleetView:
        known = self._known.pop(asked, None) or _Known()
        self._known[asked] = known
        if len(self._known) > MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        theirs = list(_workers(asked, snapshot))
        if theirs and not asked.slots:
            known.slots = max(1, min(worker.slots for worker in theirs))
        settings = asked.settings(asked.slots or known.slots)
        machines = {worker.name: Machine(worker.name, NAME, 0.0, Phase.RUNNING) for worker in theirs}
        before = known.learned.offer(NAME)
        seen = fleet_view([settings], snapshot, machines, known.learned, attached=machines)
        if offers := offers_by_pool(seen, snapshot, {NAME: settings.slots}).get(NAME):
            known.learned.attached(NAME, offers)
            if known.learned.offer(NAME) != before:
                seen = fleet_view([settings], snapshot, machines, known.learned, attached=machines)
        return seen


def _workers(
    asked: AskedPool, snapshot: autoscaling_pb2.ToAutoscaler
) -> Iterator[autoscaling_pb2.AttachedWorker]:  # fmt: skip
    """Those of the pool: they offer all of its properties and serve its instance."""
    theirs = []
    for offer in snapshot.offers:
        pairs = pairs_of(offer.properties)
        has_all = all(pair in pairs or (pair[0], ANY_VALUE) in pairs for pair in asked.pairs)
        serves = asked.instance is None or not offer.instance_names or asked.instance in offer.instance_names
        theirs.append(has_all and serves)
    for worker in snapshot.workers:
        if 0 <= worker.offer < len(theirs) and theirs[worker.offer]:
            yield worker


def _fitting(waiting: Iterable[Waiting], pool: PoolView) -> Iterator[Waiting]:
    return (work for work in waiting if fits(work, pool.offer))


def _not_late(work: Waiting, pool: PoolView) -> Waiting:
    """The work as if it had waited no longer than workers take to come (rexec/autoscale/need.py); whether it has found the free
    slots too small is still to be seen (rexec/autoscale/room.py)."""
    most = max(pool.start_seconds + pool.target_wait_seconds, 2 * SETTLED_SECONDS)
    return work if work.oldest_seconds <= most else msgspec.structs.replace(work, oldest_seconds=most)
