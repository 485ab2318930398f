"""A scheduler and a place for machines, both in memory, for the loop; and a clock that a test moves."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from msgspec.structs import replace

from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.autoscale.ledger import LedgerUnusable
from rexec.autoscale.loop import Autoscaler
from rexec.autoscale.provider import Machine, Phase, Refused
from rexec.autoscale.settings import AutoscaleSettings, PoolKind, PoolSettings

GUARD_SECONDS = 10
"""What hangs fails the test instead of the whole run. Nothing is measured with it."""

OS = "OSFamily"


class HandClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 5000.0
        self.epoch = 1_700_000_000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.epoch + self.now

    def set_forward(self, seconds: float) -> None:
        """Somebody sets the clock on the wall."""
        self.epoch += seconds

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + max(0.0, seconds), next(self._numbers), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Let time pass, and everybody do what he has to do, in order."""
        await settle()
        end = self.now + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            when, _number, future = heapq.heappop(self._sleepers)
            self.now = max(self.now, when)
            if not future.done():
                future.set_result(None)
            await settle()
        self.now = end
        await settle()


async def settle() -> None:
    """Let everything run that waits for nothing but its turn."""
    for _ in range(30):
        await asyncio.sleep(0)


class Source:
    """A scheduler that says what a test says."""

    def __init__(self, clock: HandClock) -> None:
        self._clock = clock
        self._queue: asyncio.Queue[autoscaling_pb2.ToAutoscaler] = asyncio.Queue()
        self.told: list[autoscaling_pb2.FromAutoscaler] = []
        self.drained: set[str] = set()

    async def snapshots(self) -> AsyncGenerator[autoscaling_pb2.ToAutoscaler, None]:
        while True:
            yield await self._queue.get()

    async def tell(self, message: autoscaling_pb2.FromAutoscaler) -> None:
        self.told.append(message)
        if message.HasField("leave"):
            self.drained.update(message.leave.names)

    def say(self, snapshot: autoscaling_pb2.ToAutoscaler) -> None:
        self._queue.put_nowait(snapshot)

    @property
    def pools(self) -> dict[str, autoscaling_pb2.Pool]:
        """As told last."""
        said = [message.pools for message in self.told if message.HasField("pools")]
        return {pool.name: pool for pool in said[-1].pools}

    @property
    def ended(self) -> list[str]:
        """Workers whose machines were said to have ended, as often as it was said."""
        return [name for message in self.told for name in message.ended.names]

    @property
    def leaves(self) -> list[autoscaling_pb2.Leave]:
        return [message.leave for message in self.told if message.HasField("leave")]


class Machines:
    """A provider without machines behind it."""

    def __init__(self, clock: HandClock) -> None:
        self._clock = clock
        self._machines: dict[str, Machine] = {}
        self.changed = asyncio.Event()
        self.problem = ""
        self.refusals: dict[int, Exception] = {}
        """By number of the call of `start`, from 0."""
        self.refuse_all: Exception | None = None
        self.refuse_removals: Exception | None = None
        self.calls = 0
        self.under_way = 0
        self.most_under_way = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.settings: dict[str, PoolSettings] = {}
        self.removed: list[tuple[str, float]] = []

    def machines(self) -> Mapping[str, Machine]:
        return dict(self._machines)

    async def start(self, pool: PoolSettings, name: str, image: str = "") -> None:
        number = self.calls
        self.calls += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.gate.wait()
            if refusal := self.refusals.get(number) or self.refuse_all:
                raise refusal
            self.settings[name] = pool
            self.put(Machine(name, pool.name, self._clock.wall(), Phase.WAITING, image=image))
        finally:
            self.under_way -= 1

    async def remove(self, name: str, grace_seconds: float) -> None:
        if self.refuse_removals is not None:
            raise self.refuse_removals
        self.removed.append((name, grace_seconds))
        self._machines.pop(name, None)
        self.changed.set()

    async def run(self) -> None:
        await asyncio.Event().wait()

    def put(self, machine: Machine) -> None:
        self._machines[machine.name] = machine
        self.changed.set()

    def drop(self, name: str) -> None:
        """Somebody deletes it."""
        del self._machines[name]
        self.changed.set()

    def change(self, name: str, **changes: Any) -> None:
        self.put(replace(self._machines[name], **changes))


class Ledger:
    """Keeps the text in memory."""

    def __init__(self, text: str = "", broken: bool = False) -> None:
        self.text = text
        self.broken = broken

    async def load(self) -> str:
        if self.broken:
            raise LedgerUnusable("it is locked away")
        return self.text

    async def save(self, text: str) -> None:
        if self.broken:
            raise LedgerUnusable("it is locked away")
        self.text = text


class Fleet:
    """All of it together. Workers of machines attach when a test says so."""

    def __init__(self, *pools: PoolSettings, **settings: Any) -> None:
        self.clock = HandClock()
        self.source = Source(self.clock)
        self.machines = Machines(self.clock)
        self.ledger = settings.pop("ledger", None) or Ledger()
        self.autoscaler = Autoscaler(
            AutoscaleSettings(pools=pools, **settings),
            self.source,
            {PoolKind.KUBERNETES: self.machines},
            ledger=self.ledger,
            clock=self.clock,
            chance=random.Random(1),
        )
        self.work: list[autoscaling_pb2.WaitingWork] = []
        self.workers: dict[str, autoscaling_pb2.AttachedWorker] = {}
        self.offers = [offered({OS: "linux"})]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The loop runs, and the scheduler has said what there is."""
        async with asyncio.timeout(GUARD_SECONDS):
            running = asyncio.create_task(self.autoscaler.run())
            await settle()
            await self.heard()
            try:
                yield
            finally:
                running.cancel()
                await asyncio.wait([running])

    async def heard(self) -> None:
        """The scheduler says what there is, and the loop has time for a decision."""
        self.source.say(
            autoscaling_pb2.ToAutoscaler(waiting=self.work, workers=self.workers.values(), offers=self.offers)
        )
        await self.clock.advance(0.25)

    async def waits(self, tasks: int, seconds: float = 10.0, properties: Mapping[str, str] | None = None) -> None:
        """So many tasks wait that take so long each; 0: none."""
        self.work = [waiting(tasks, seconds, properties)] if tasks else []
        await self.heard()

    async def attach(self, *names: str, busy_slots: int = 0, **fields: Any) -> None:
        """These workers are there."""
        for name in names or self.names:
            self.machines.change(name, phase=Phase.RUNNING)
            self.workers[name] = autoscaling_pb2.AttachedWorker(
                name=name, slots=1, busy_slots=busy_slots, leases=busy_slots, **fields
            )
        await self.heard()

    async def pass_time(self, seconds: float) -> None:
        """With a scheduler that goes on talking, and workers without work that get ever more idle."""
        while seconds > 0:
            step = min(5.0, seconds)
            await self.clock.advance(step)
            for worker in self.workers.values():
                if not worker.leases:
                    worker.idle_seconds += step
            await self.heard()
            seconds -= step

    @property
    def names(self) -> list[str]:
        return sorted(self.machines.machines())


def pool(name: str = "cpp", **settings: Any) -> PoolSettings:
    """A pool whose workers are told of by the names of their pool."""
    return PoolSettings(name=name, **settings)


def waiting(tasks: int, seconds: float, properties: Mapping[str, str] | None = None) -> autoscaling_pb2.WaitingWork:
    """Tasks that wait, of so many seconds each."""
    work = autoscaling_pb2.WaitingWork(
        slots=1, tasks=tasks, slot_seconds=tasks * seconds, longest_seconds=seconds, tenant="alice"
    )
    for name, value in (properties or {}).items():
        work.properties.add(name=name, value=value)
    return work


def offered(properties: Mapping[str, str | Sequence[str]], **fields: Any) -> autoscaling_pb2.Offered:
    """What a worker offers."""
    offer = autoscaling_pb2.Offered(**fields)
    for name, values in properties.items():
        for value in [values] if isinstance(values, str) else values:
            offer.properties.add(name=name, value=value)
    return offer


def refused(reason: str = "quota exceeded", **options: Any) -> Refused:
    return Refused(reason, **options)
