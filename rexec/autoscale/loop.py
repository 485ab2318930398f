"""The loop: hears of work and machines, asks the policy, and has machines started and workers drained.

A decision is made at once when something has changed, though not more often than every LEAST_SECONDS, and once a second, for
time alone makes workers idle and starts overdue. Whatever is asked of a provider runs beside the loop, so that one start that
hangs or fails holds up no other.

Workers are taken away by the scheduler: they are drained, end, and what is left of their machines is removed. While the scheduler
is silent nothing is started or removed, and while a provider knows nothing of its machines nothing of its pools.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Final

import structlog
from msgspec.structs import replace

from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.autoscale.clock import Clock, SystemClock
from rexec.autoscale.decision import PoolDecision
from rexec.autoscale.decision_log import DecisionLog
from rexec.autoscale.early_ends import EarlyEnds
from rexec.autoscale.ended import Ended
from rexec.autoscale.failures import Failures
from rexec.autoscale.fleet_view import FleetView, fleet_view, offers_by_pool
from rexec.autoscale.hands import Hands
from rexec.autoscale.judge import Judge
from rexec.autoscale.kept_spending import KeptSpending
from rexec.autoscale.learned import Learned
from rexec.autoscale.ledger import ForgottenLedger, LedgerStore
from rexec.autoscale.life import AT_ONCE_SECONDS, Life, removal_of
from rexec.autoscale.observer import Observer, Unobserved
from rexec.autoscale.pool_report import pool_report
from rexec.autoscale.provider import Machine, Phase, Provider
from rexec.autoscale.settings import AutoscaleSettings, PoolKind
from rexec.autoscale.shape import Shape, shape_name
from rexec.autoscale.telling import Telling
from rexec.autoscale.work_source import WorkSource

log = structlog.get_logger()

LEAST_SECONDS: Final = 0.2
"""Between two decisions."""
TICK_SECONDS: Final = 1.0
SILENT_SECONDS: Final = 15.0
"""A scheduler that says nothing for so long is away; it speaks every few seconds."""

_SUFFIX: Final = "bcdfghjkmnpqrstvwxz2456789"
"""Of names: no vowels that make words, no characters that look alike."""


class Autoscaler:
    """Keeps the pools of a configuration as large as the work of one scheduler wants them."""

    def __init__(
        self,
        settings: AutoscaleSettings,
        source: WorkSource,
        providers: Mapping[PoolKind, Provider],
        *,
        ledger: LedgerStore | None = None,
        observer: Observer | None = None,
        clock: Clock | None = None,
        chance: random.Random | None = None,
        dry_run: bool = False,
    ) -> None:
        """`providers` has one for each kind of pool that is configured. With `dry_run` decisions are logged and nothing is done,
        nor told."""
        self._settings = settings
        self._families = {pool.name: pool for pool in settings.pools}
        self._source = source
        self._providers = dict(providers)
        self._observer: Observer = observer or Unobserved()
        self._clock: Clock = clock or SystemClock()
        self._chance = chance or random.Random()
        self._dry_run = dry_run
        self._wake = asyncio.Event()
        self._snapshot = autoscaling_pb2.ToAutoscaler()
        self._heard_at = float("-inf")
        self._heard_since = float("-inf")
        self._failures = Failures(self._clock, self._observer, self._chance)
        self._hands = Hands(
            self._families, self._providers, self._failures, self._observer, self._clock, self._wake.set
        )
        self._lives: dict[str, Life] = {}
        self._ended = Ended()
        self._early = EarlyEnds()
        self._learned = Learned()
        self._kept = KeptSpending(ledger or ForgottenLedger(), self._clock)
        self._judge = Judge(settings, self._hands, self._failures, self._kept)
        self._telling = Telling(source, self._hands.spawn, dry_run=dry_run)
        self._decided = DecisionLog(dry_run=dry_run)
        self._reached = False

    async def run(self) -> None:
        """Until cancelled."""
        await self._kept.read()
        async with asyncio.TaskGroup() as tasks:
            self._hands.tasks = tasks
            if self._dry_run:
                # It speaks only to those who have said something.
                await self._source.tell(autoscaling_pb2.FromAutoscaler(pools=autoscaling_pb2.Pools()))
            # The scheduler takes actions for these from now on, although it may be a while until it says what waits.
            await self._tell(self._view({}), {}, {})
            for provider in self._providers.values():
                tasks.create_task(_for_ever(provider.run, self._clock), name="provider")
                tasks.create_task(self._follow(provider), name="machines")
            tasks.create_task(_for_ever(self._hear, self._clock), name="snapshots")
            tasks.create_task(self._tick(), name="autoscaler's clock")
            if not self._dry_run and any(pool.price_per_hour for pool in self._settings.pools):
                tasks.create_task(self._kept.keep(), name="ledger")
            last = float("-inf")
            while True:
                await self._wake.wait()
                pause = last + LEAST_SECONDS - self._clock.monotonic()
                if pause > 0:
                    await self._clock.sleep(pause)
                self._wake.clear()
                last = self._clock.monotonic()
                try:
                    await self.step()
                except Exception:
                    log.exception("a decision about the pools failed")

    # What is heard

    async def _hear(self) -> None:
        async with aclosing(self._source.snapshots()) as snapshots:
            async for snapshot in snapshots:
                self.take(snapshot)

    def take(self, snapshot: autoscaling_pb2.ToAutoscaler) -> None:
        """The scheduler has told this."""
        now = self._clock.monotonic()
        if now - self._heard_at > SILENT_SECONDS:
            self._heard_since = now
        self._heard_at = now
        self._snapshot = snapshot
        self._wake.set()

    async def _follow(self, provider: Provider) -> None:
        while True:
            await provider.changed.wait()
            provider.changed.clear()
            self._wake.set()

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(TICK_SECONDS)
            self._wake.set()

    # What is decided

    async def step(self) -> None:
        """Decide once and begin what has been decided. To be called while `run` runs."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        reached = now - self._heard_at <= SILENT_SECONDS
        self._observer.heard(reached)
        if reached is not self._reached:
            self._reached = reached
            if not reached:
                log.warning("the scheduler says nothing; pools are left as they are", seconds=SILENT_SECONDS)
        if not reached:
            return
        machines = self._machines()
        self._telling.ended(self._ended.to_be_told(self._snapshot.workers, now))
        view = self._view(machines, now=now, wall=wall)
        self._note_workers(view, machines, now, wall)
        for name, machine in machines.items():
            self._end_of(name, machine, view, now, wall)
        # Once more, with what has been learned and given up.
        view = self._view(machines, now=now, wall=wall)
        decisions, problems = self._judge.decisions(
            view, machines, now=now, wall=wall, heard_since=self._heard_since
        )  # fmt: skip
        self._learned.keep(decisions)
        self._decided.keep(decisions)
        self._early.keep(decisions)
        self._observer.decided(self._clock.monotonic() - now)
        for pool in view.pools:
            if self._hands.problem_of(view.shapes[pool.name].settings):
                continue
            await self._act(view.shapes[pool.name], decisions[pool.name], view, now, wall)
        await self._tell(self._view(self._machines(), now=now, wall=wall), decisions, problems)

    def _machines(self) -> dict[str, Machine]:
        """All there are, and those that are being asked for."""
        found = dict(self._hands.asked)
        for provider in self._providers.values():
            found.update(provider.machines())
        now = self._clock.monotonic()
        for name, machine in found.items():
            life = self._lives.get(name)
            if life is None:
                life = self._lives[name] = Life(now)
            life.appeared = life.appeared or name not in self._hands.asked
            if life.ours:
                # As old as it is by the clock that nobody sets.
                found[name] = replace(machine, created_at=self._clock.wall() - (now - life.first_seen_at))
            if machine.phase is Phase.ENDED:
                self._ended.note(name, now)
            else:
                self._ended.lives(name)
        known = not any(provider.problem for provider in self._providers.values())
        for name in [name for name in self._lives if name not in found]:
            life = self._lives.pop(name)
            if known:
                self._ended.note(name, now)
                if life.pool and life.appeared and life.came_at is None and not life.asked_to_end:
                    self._failures.failed(life.pool, life.family, name, "it was deleted before its worker came")
        return found

    def _view(self, machines: Mapping[str, Machine], now: float = 0.0, wall: float = 0.0) -> FleetView:
        return fleet_view(
            self._settings.pools,
            self._snapshot,
            machines,
            self._learned,
            attached={
                name
                for name, machine in machines.items()
                if self._lives[name].has_come(machine, now=now, wall=wall, heard_since=self._heard_since)
            },
            leaving={name for name in machines if self._lives[name].counts_as_leaving(now)},
            wall=wall,
            snapshot_age_seconds=max(0.0, now - self._heard_at),
        )

    def _note_workers(self, view: FleetView, machines: Mapping[str, Machine], now: float, wall: float) -> None:
        """Learn from the workers that are attached."""
        pool_of = {member.name: member.pool for member in view.members}
        for name, worker in view.workers.items():
            life = self._lives[name]
            if worker.leases and not worker.draining and not life.counts_as_leaving(now):
                life.asked_to_leave_at = float("-inf")  # it had got something to do first, and stays
            if life.came_at is None:
                life.came_at = now
                seconds = max(0.0, wall - machines[name].created_at)
                pool = pool_of.get(name)
                if life.ours and pool is not None:
                    self._learned.started(pool, seconds)
                    self._observer.came(view.shapes[pool].family, seconds)
                    self._failures.came(pool, seconds)
                    log.info("worker has come", pool=pool, worker=name, seconds=round(seconds, 1))
            life.seen_at = now
            if not life.stayed and now - life.came_at > AT_ONCE_SECONDS and name in pool_of:
                life.stayed = True
                self._early.stayed(pool_of[name])
        slots = {pool.name: pool.offer.slots for pool in view.pools}
        for pool, offers in offers_by_pool(view, self._snapshot, slots).items():
            self._learned.attached(pool, offers)

    def _end_of(self, name: str, machine: Machine, view: FleetView, now: float, wall: float) -> None:
        """Take a machine away if it has to be, and count it if it failed."""
        life = self._lives[name]
        if name in self._hands.asked or life.removing or now < life.retry_at or self._dry_run:
            return
        settings = self._families.get(machine.pool)
        if settings is not None and bool(settings.container_images) is not bool(machine.image):
            settings = None
        if self._hands.problem_of(settings):
            return
        worker = view.workers.get(name)
        if worker is not None and not worker.draining and (settings is None or worker.quarantined):
            if not life.counts_as_leaving(now):
                life.asked_to_leave_at = now
                grace_seconds = settings.drain_seconds if settings is not None else 3600.0
                why = "it failed too often" if settings is not None else "its pool is configured no more"
                self._telling.leave([name], grace_seconds, why, only_idle=False)
            return
        removal = removal_of(life, machine, worker, settings, now=now, wall=wall, heard_since=self._heard_since)
        if removal is None:
            return
        if (removal.failure or removal.early) and settings is not None:
            shape = next((member.pool for member in view.members if member.name == name), "")
            shape = shape or self._shape_of(machine, view)
            if failure := removal.failure or self._early.ended(shape):
                self._failures.failed(shape, settings.name, name, failure)
        self._hands.remove(name, machine, life, removal.why, removal.grace_seconds)

    def _shape_of(self, machine: Machine, view: FleetView) -> str:
        """The pool of a machine that has ended."""
        matching = (
            shape.name
            for shape in view.shapes.values()
            if shape.name == shape_name(self._settings.pools, machine.pool, machine.image)
        )
        return next(matching, machine.pool)

    # What is done

    async def _act(self, shape: Shape, decision: PoolDecision, view: FleetView, now: float, wall: float) -> None:
        cancelled = [name for name in decision.cancel if name not in self._hands.asked]
        self._decided.note(shape.name, decision, len(cancelled), view)
        if self._dry_run:
            return
        for _ in range(decision.start):
            name = self._new_name(shape)
            self._lives[name] = Life(now, ours=True, pool=shape.name, family=shape.family)
            self._hands.start(shape, name)
        for name in cancelled:
            machine = Machine(name, shape.family, wall, Phase.WAITING, image=shape.image)
            self._hands.remove(name, machine, self._lives[name], "cancelled", shape.settings.drain_seconds)
        if decision.leave:
            for name in decision.leave:
                self._lives[name].asked_to_leave_at = now
            self._telling.leave(decision.leave, shape.settings.drain_seconds, "it has nothing to do", only_idle=True)

    async def _tell(
        self, view: FleetView, decisions: Mapping[str, PoolDecision], problems: Mapping[str, str]
    ) -> None:  # fmt: skip
        costs = {name: self._kept.now.of_pool(name) for name in self._families}
        pools = pool_report(self._settings.pools, view.pools, view.members, decisions, problems, costs)
        self._observer.pools(pools.pools)
        await self._telling.pools(pools)

    def _new_name(self, shape: Shape) -> str:
        while True:
            name = f"{shape.name}-{''.join(self._chance.choices(_SUFFIX, k=5))}"
            if name not in self._lives:
                return name


async def _for_ever(run: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Run what should never end, again if it does."""
    while True:
        try:
            await run()
        except Exception:
            log.exception("a part of the autoscaler failed and is started again")
        await clock.sleep(TICK_SECONDS)
