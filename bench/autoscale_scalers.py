"""Who moves the pools in bench.autoscale: our policy, and the rule of Kubernetes' HorizontalPodAutoscaler with two metrics.

The HPA is as it is by default: it looks every 15 s; desired = ceil(current * metric / target), within a tenth nothing changes; it
at most doubles, or adds four pods, in a step; it shrinks to the highest number that it wanted within five minutes; it keeps one
pod, for it cannot come back from none. Each pool has one, that sees what fits its pool.
"""

from __future__ import annotations

import math
from collections import deque

from bench.autoscale_simulation import State, Task, Worker, World
from bench.autoscale_traces import Pool
from rexec.autoscale.backoff import Backoff
from rexec.autoscale.lately import Lately
from rexec.autoscale.policy import decide
from rexec.autoscale.room import overdue_seconds
from rexec.autoscale.settings import PoolSettings
from rexec.autoscale.view import Member, MemberState, Offer, PoolView, Waiting

DEFAULTS = PoolSettings(name="default")
STATES = {
    State.STARTING: MemberState.STARTING,
    State.READY: MemberState.READY,
    State.LEAVING: MemberState.LEAVING,
}


class OurPolicy:
    """rexec/autoscale/policy.py as it is with its default settings."""

    every_seconds = 1.0

    def __init__(
        self,
        name: str = "rexec",
        target_wait_seconds: float = DEFAULTS.target_wait_seconds,
        idle_seconds: float = DEFAULTS.idle_seconds,
    ) -> None:
        self.name = name
        self.target_wait_seconds = target_wait_seconds
        self.idle_seconds = idle_seconds
        self._lately = Lately()
        self._backoffs: dict[str, Backoff] = {}

    def look(self, world: World) -> None:
        """Ask the policy and do what it says."""
        for worker in world.arrivals:
            self._backoff(worker.pool).came(world.now, world.now - worker.asked_at)
        for worker in list(world.workers.values()):
            if worker.state is State.STARTING and world.now - worker.asked_at > DEFAULTS.start_timeout_seconds:
                world.leave(worker)
                self._backoff(worker.pool).failed("did not come", world.now)
        pools = [self._view(world, pool) for pool in world.trace.pools]
        members = [self._member(world, worker) for worker in world.workers.values()]
        decisions = decide(pools, self._waiting(world), members)
        for pool in world.trace.pools:
            decision = decisions[pool.name]
            self._lately.note(pool.name, decision.wanted, world.now)
            if any(
                world.now - world.workers[name].asked_at > overdue_seconds(pool.start_seconds)
                for name in decision.cancel
            ):
                self._backoff(pool).failed("did not come in time", world.now)
            for name in (*decision.leave, *decision.cancel):
                world.leave(world.workers[name])
            for _ in range(decision.start):
                world.start(pool)

    def _backoff(self, pool: Pool) -> Backoff:
        return self._backoffs.setdefault(pool.name, Backoff())

    def _view(self, world: World, pool: Pool) -> PoolView:
        starting = sum(worker.pool is pool and worker.state is State.STARTING for worker in world.workers.values())
        hold = self._backoff(pool).hold(world.now, starting)
        return PoolView(
            name=pool.name,
            family=pool.name,
            offer=Offer(slots=pool.slots),
            min=0,
            max=pool.max,
            family_max=pool.max,
            target_wait_seconds=self.target_wait_seconds,
            idle_seconds=self.idle_seconds,
            start_seconds=pool.start_seconds,
            price_per_hour=pool.price_per_hour,
            startable=hold.startable,
            held_back=hold.why,
            lately_wanted=self._lately.wanted(pool.name, world.now),
        )

    def _member(self, world: World, worker: Worker) -> Member:
        rests = [world.expected[task.action.kind] - (world.now - task.began) for task in worker.running]
        return Member(
            worker.name,
            worker.pool.name,
            STATES[worker.state],
            worker.pool.slots,
            worker.busy,
            world.now - worker.idle_since if worker.state is State.READY and not worker.running else 0.0,
            world.now - worker.asked_at,
            max([0.0, *rests]),
        )

    def _waiting(self, world: World) -> list[Waiting]:
        """By size, which is all that the simulated actions ask for."""
        by_slots: dict[int, list[Task]] = {}
        for task in world.queue:
            by_slots.setdefault(task.action.slots, []).append(task)
        return [
            Waiting(
                pairs=frozenset(),
                instance_name="",
                tenant="",
                slots=slots,
                cpu_millis=0,
                memory_bytes=0,
                tasks=len(tasks),
                slot_seconds=slots * sum(world.expected[task.action.kind] for task in tasks),
                longest_seconds=max(world.expected[task.action.kind] for task in tasks),
                oldest_seconds=world.now - min(task.submitted for task in tasks),
            )
            for slots, tasks in by_slots.items()
        ]


class HorizontalPodAutoscaler:
    """The HPA's rule for one metric."""

    every_seconds = 15.0
    tolerance = 0.1
    stabilisation_seconds = 300.0

    def __init__(self, metric: str, target: float) -> None:
        """`metric`: "cpu", with a target utilisation, or "queue", with a target of actions for each slot."""
        self.name = f"HPA on {metric}"
        self.metric = metric
        self.target = target
        self._wanted: dict[str, deque[tuple[float, int]]] = {}

    def look(self, world: World) -> None:
        """Bring each pool to what its rule says."""
        for pool in world.trace.pools:
            workers = [worker for worker in world.workers.values() if worker.pool is pool]
            current = [worker for worker in workers if worker.state is not State.LEAVING]
            desired = self._cpu(current) if self.metric == "cpu" else self._queue(world, pool, current)
            step = max(2 * len(current), len(current) + 4)
            desired = max(1, min(desired, pool.max, step))
            wanted = self._wanted.setdefault(pool.name, deque())
            wanted.append((world.now, desired))
            while wanted[0][0] < world.now - self.stabilisation_seconds:
                wanted.popleft()
            desired = max(desired, min(len(current), max(number for _when, number in wanted)))
            for _ in range(desired - len(current)):
                world.start(pool)
            # A ReplicaSet ends first what is not ready, then what is youngest, busy or not.
            current.sort(key=lambda worker: (worker.state is State.READY, -worker.asked_at))
            for worker in current[: max(0, len(current) - desired)]:
                world.leave(worker)

    def _cpu(self, current: list[Worker]) -> int:
        ready = [worker for worker in current if worker.state is State.READY]
        if not ready:
            return len(current)
        used = sum(worker.busy / worker.pool.slots for worker in ready)
        ratio = used / len(ready) / self.target
        if abs(ratio - 1) <= self.tolerance:
            return len(current)
        # Pods that are not ready yet are taken to use nothing when it would grow; if that turns it round, it stays.
        if ratio > 1 and len(ready) < len(current):
            ratio = used / len(current) / self.target
            if ratio <= 1 + self.tolerance:
                return len(current)
            return math.ceil(ratio * len(current))
        return math.ceil(ratio * len(ready))

    def _queue(self, world: World, pool: Pool, current: list[Worker]) -> int:
        """What waits and runs, over what a pod should have of it."""
        waiting = sum(task.action.slots <= pool.slots for task in world.queue)
        running = sum(len(worker.running) for worker in world.workers.values() if worker.pool is pool)
        each = self.target * pool.slots
        ratio = (waiting + running) / each / max(1, len(current))
        if abs(ratio - 1) <= self.tolerance:
            return len(current)
        return math.ceil((waiting + running) / each)
