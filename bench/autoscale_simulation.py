"""Plays a trace against pools that a scaler moves, event by event, without any waiting.

The scheduler here is simple and the same for every scaler: first come first served among what fits, and the worker with the
fewest free slots that are enough. A worker that is taken away goes on with what it runs, whoever takes it away.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from bench.autoscale_traces import Action, Build, Pool, Trace

LONGEST_RUN_SECONDS = 4 * 3600.0
"""A scaler that never gets the work done is stopped here."""


class State(Enum):
    """Where a simulated worker is."""

    STARTING = 1
    READY = 2
    LEAVING = 3


@dataclass(slots=True, eq=False)
class Task:
    """An action that was submitted."""

    action: Action
    build: int
    place: int
    submitted: float
    began: float = -1.0


@dataclass(slots=True, eq=False)
class Worker:
    """A pod."""

    name: str
    pool: Pool
    asked_at: float
    state: State = State.STARTING
    running: set[Task] = field(default_factory=set)
    idle_since: float = 0.0

    @property
    def busy(self) -> int:
        return sum(task.action.slots for task in self.running)

    @property
    def free(self) -> int:
        return self.pool.slots - self.busy if self.state is State.READY else 0


class Scaler(Protocol):
    """Decides what starts and what goes, every so often."""

    name: str
    every_seconds: float

    def look(self, world: World) -> None:
        """Start and end workers."""
        ...


@dataclass(slots=True)
class Result:
    """What a trace came to."""

    makespan_seconds: float
    build_seconds: list[float]
    waits: list[float]
    pod_hours: float
    idle_share: float
    cost: float
    started: int
    """Pods asked for: more than there are at once means that the number went up and down."""
    history: list[tuple[float, int]]
    """Second, and slots that are there: for the plot."""

    def wait(self, share: float) -> float:
        """A quantile of how long actions waited."""
        return sorted(self.waits)[min(len(self.waits) - 1, int(share * len(self.waits)))]

    @property
    def mean_build_seconds(self) -> float:
        return sum(self.build_seconds) / len(self.build_seconds)


class World:
    """One run."""

    def __init__(self, trace: Trace, scaler: Scaler) -> None:
        self.trace = trace
        self.scaler = scaler
        self.now = 0.0
        self.queue: deque[Task] = deque()
        self.workers: dict[str, Worker] = {}
        self.expected = expectations(trace)
        self.arrivals: list[Worker] = []
        """Workers that have come since the scaler looked last."""
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._clients = [Client(self, number, build) for number, build in enumerate(trace.builds)]
        self._slot_seconds = 0.0
        self._pod_seconds = 0.0
        self._paid_slot_seconds = 0.0
        self._cost = 0.0
        self._waits: list[float] = []
        self._started = 0
        self._history: list[tuple[float, int]] = []

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do something then."""
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def run(self, after_seconds: float = 900.0, longest_seconds: float = LONGEST_RUN_SECONDS) -> Result:
        """Play it to its end, and so long after it, for what is still there costs on."""
        for client in self._clients:
            self.at(client.build.begins, client.submit)
        self.at(0.0, self._look)
        end = longest_seconds
        while self._events and self._events[0][0] <= end:
            self.now, _number, what = heapq.heappop(self._events)
            what()
            if end == longest_seconds and all(client.done for client in self._clients):
                end = self.now + after_seconds
        self.now = end
        for worker in list(self.workers.values()):
            self._gone(worker)
        ends = [client.ended for client in self._clients]
        return Result(
            max(ends),
            [client.ended - client.build.begins for client in self._clients],
            self._waits,
            self._pod_seconds / 3600,
            1 - self._slot_seconds / max(1e-9, self._paid_slot_seconds),
            self._cost,
            self._started,
            self._history,
        )

    def _look(self) -> None:
        self.scaler.look(self)
        self.arrivals.clear()
        there = sum(worker.pool.slots for worker in self.workers.values() if worker.state is not State.STARTING)
        self._history.append((self.now, there))
        self.at(self.now + self.scaler.every_seconds, self._look)

    def start(self, pool: Pool) -> None:
        """Ask for a worker."""
        worker = Worker(f"w{next(self._numbers)}", pool, self.now)
        self.workers[worker.name] = worker
        self._started += 1
        if not pool.broken:
            self.at(self.now + pool.start_seconds, lambda: self._come(worker))

    def leave(self, worker: Worker) -> None:
        """Take one away, when it has done what it does."""
        worker.state = State.LEAVING
        if not worker.running:
            self._gone(worker)

    def submit(self, task: Task) -> None:
        """A client asks for an action."""
        self.queue.append(task)

    def dispatch(self) -> None:
        """Give what waits to what is free."""
        free = [worker for worker in self.workers.values() if worker.free > 0]
        if not free:
            return
        left: deque[Task] = deque()
        stuck: set[int] = set()
        while self.queue:
            task = self.queue.popleft()
            slots = task.action.slots
            fitting = [worker for worker in free if worker.free >= slots] if slots not in stuck else []
            if not fitting:
                stuck.add(slots)
                left.append(task)
                if not any(worker.free for worker in free):
                    break
                continue
            self._run(task, min(fitting, key=lambda worker: (worker.free, worker.asked_at)))
        left.extend(self.queue)
        self.queue = left

    def _run(self, task: Task, worker: Worker) -> None:
        task.began = self.now
        worker.running.add(task)
        self._waits.append(self.now - task.submitted)
        self.at(self.now + task.action.seconds, lambda: self._end(task, worker))

    def _end(self, task: Task, worker: Worker) -> None:
        worker.running.remove(task)
        self._slot_seconds += task.action.seconds * task.action.slots
        if not worker.running:
            worker.idle_since = self.now
            if worker.state is State.LEAVING:
                self._gone(worker)
        self._clients[task.build].finished(task)
        self.dispatch()

    def _come(self, worker: Worker) -> None:
        if worker.name in self.workers and worker.state is State.STARTING:
            worker.state = State.READY
            worker.idle_since = self.now
            self.arrivals.append(worker)
            self.dispatch()

    def _gone(self, worker: Worker) -> None:
        del self.workers[worker.name]
        # A pod that never started has cost nothing; one on its way to start keeps a node.
        seconds = 0.0 if worker.pool.broken else self.now - worker.asked_at
        self._pod_seconds += seconds
        self._paid_slot_seconds += seconds * worker.pool.slots
        self._cost += seconds / 3600 * worker.pool.price_per_hour


class Client:
    """What submits a build's actions as they become possible."""

    def __init__(self, world: World, number: int, build: Build) -> None:
        self.world = world
        self.number = number
        self.build = build
        self.ended = LONGEST_RUN_SECONDS
        self._before = [len(action.after) for action in build.actions]
        self._then: list[list[int]] = [[] for _ in build.actions]
        for place, action in enumerate(build.actions):
            for other in action.after:
                self._then[other].append(place)
        self._possible = deque(place for place, number in enumerate(self._before) if not number)
        self._under_way = 0
        self._left = len(build.actions)

    @property
    def done(self) -> bool:
        return self._left == 0

    def submit(self) -> None:
        """As much as --jobs allows."""
        while self._possible and self._under_way < self.build.jobs:
            place = self._possible.popleft()
            self._under_way += 1
            self.world.submit(Task(self.build.actions[place], self.number, place, self.world.now))
        self.world.dispatch()

    def finished(self, task: Task) -> None:
        """One has ended."""
        self._under_way -= 1
        self._left -= 1
        if self.done:
            self.ended = self.world.now
        for place in self._then[task.place]:
            self._before[place] -= 1
            if not self._before[place]:
                self._possible.append(place)
        self.submit()


def expectations(trace: Trace) -> dict[str, float]:
    """What is known beforehand: how long each kind of action takes on the mean."""
    found: dict[str, list[float]] = {}
    for build in trace.builds:
        for action in build.actions:
            found.setdefault(action.kind, []).append(action.seconds)
    return {kind: sum(seconds) / len(seconds) for kind, seconds in found.items()}
