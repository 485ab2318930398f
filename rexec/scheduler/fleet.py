"""Workers and waiting tasks, indexed so that neither is ever searched.

For each requirement that occurs there is one `Fit`: the workers that meet it, bucketed by free slots as long as they have
room, and the lines of tasks that wait with it. A change of one worker touches the fits that it is in; a new requirement
looks at every worker once. With 1,000 workers and 10,000 waiting tasks a decision costs microseconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from rexec.scheduler.platform import Requirement
from rexec.scheduler.task import Place, Task, Worker

MAX_IDLE_FITS = 512
"""Fits kept although nothing waits in them: a requirement that comes again finds its workers without a search."""


class Line:
    """Tasks in the order in which they run: priority first, then arrival. Places given up are dropped when met."""

    def __init__(self) -> None:
        self._heap: list[Place] = []
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def push(self, place: Place) -> None:
        """Take a place; the task's `place` must be the same object."""
        heapq.heappush(self._heap, place)
        self._live += 1

    def leave(self) -> None:
        """One place was given up: its task no longer names it."""
        self._live -= 1
        if len(self._heap) > 2 * self._live + 64:
            self._heap = [place for place in self._heap if place[3].place is place]
            heapq.heapify(self._heap)

    def head(self) -> Place | None:
        """The next place."""
        while self._heap:
            place = self._heap[0]
            if place[3].place is place:
                return place
            heapq.heappop(self._heap)
        return None

    def tasks(self) -> Iterator[Task]:
        """Every task in line, in no order. For checks and displays: costs the length of the line."""
        return (place[3] for place in self._heap if place[3].place is place)


class Fit:
    """One requirement: the workers that meet it and the tasks that have it."""

    def __init__(self, requirement: Requirement) -> None:
        self.requirement = requirement
        self.workers: dict[str, Worker] = {}
        self.slots = 0
        """Of all these workers."""
        self.told_at = float("-inf")
        """When the log was told last that no worker fits."""
        self.lines: dict[frozenset[str], Line] = {}
        """By the names of the workers that the tasks must not go to: none for nearly all."""
        self._rooms: dict[int, dict[str, Worker]] = {}
        self._bucket_of: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """How many tasks wait with this requirement."""
        return sum(len(line) for line in self.lines.values())

    def add(self, worker: Worker) -> None:
        """A worker that meets the requirement."""
        self.workers[worker.worker_id] = worker
        self.slots += worker.slots

    def remove(self, worker: Worker) -> None:
        """A worker that is gone."""
        self.place(worker, None)
        del self.workers[worker.worker_id]
        self.slots -= worker.slots

    def place(self, worker: Worker, free_slots: int | None) -> None:
        """Put a worker into the bucket of its free slots; None takes it out of all."""
        held = self._bucket_of.get(worker.worker_id)
        if held == free_slots:
            return
        if held is not None:
            bucket = self._rooms[held]
            del bucket[worker.worker_id]
            if not bucket:
                del self._rooms[held]
            del self._bucket_of[worker.worker_id]
        if free_slots is not None:
            self._rooms.setdefault(free_slots, {})[worker.worker_id] = worker
            self._bucket_of[worker.worker_id] = free_slots

    def best(self, excluded: frozenset[str]) -> Worker | None:
        """The worker with the most free slots. Places for leases fetched ahead count less than any free slot."""
        if not excluded:
            return next(iter(self._rooms[max(self._rooms)].values())) if self._rooms else None
        for free_slots in sorted(self._rooms, reverse=True):
            for worker in self._rooms[free_slots].values():
                if worker.name not in excluded:
                    return worker
        return None

    def has_other(self, excluded: frozenset[str]) -> bool:
        """Whether a worker that is not excluded might take a task some time."""
        return any(
            worker.name not in excluded and worker.connected and not worker.draining for worker in self.workers.values()
        )


class Fleet:
    """All workers and all waiting tasks."""

    def __init__(self, max_prefetched_leases: int) -> None:
        self.workers: dict[str, Worker] = {}
        self.by_name: dict[str, Worker] = {}
        self.fits: dict[Requirement, Fit] = {}
        self._max_prefetched_leases = max_prefetched_leases
        self._fits_of: dict[str, list[Fit]] = {}
        self._serial = 0

    # Workers

    def add(self, worker: Worker) -> None:
        """A worker that was not here."""
        self.workers[worker.worker_id] = worker
        self.by_name[worker.name] = worker
        self._fits_of[worker.worker_id] = fits = []
        for fit in self.fits.values():
            if worker.offer.fits(fit.requirement):
                fit.add(worker)
                fits.append(fit)
        self.update(worker)

    def remove(self, worker: Worker) -> None:
        """A worker is gone."""
        del self.workers[worker.worker_id]
        if self.by_name.get(worker.name) is worker:
            del self.by_name[worker.name]
        for fit in self._fits_of.pop(worker.worker_id):
            fit.remove(worker)

    def update(self, worker: Worker) -> None:
        """A worker's credit, leases or connection have changed."""
        if worker.worker_id not in self.workers:
            return
        room = worker.free_slots if self.has_room(worker) else None
        for fit in self._fits_of[worker.worker_id]:
            fit.place(worker, room)

    def has_room(self, worker: Worker) -> bool:
        """Whether the worker may be given a lease now."""
        return (
            worker.connected
            and not worker.draining
            and worker.credit > 0
            and worker.free_slots > -self._max_prefetched_leases
        )

    # Tasks

    def fit(self, requirement: Requirement) -> Fit:
        """The fit of a requirement, made when it is asked for first."""
        fit = self.fits.pop(requirement, None)
        if fit is None:
            self._drop_idle_fits()
            fit = Fit(requirement)
            for worker in self.workers.values():
                if worker.offer.fits(requirement):
                    fit.add(worker)
                    self._fits_of[worker.worker_id].append(fit)
                    fit.place(worker, worker.free_slots if self.has_room(worker) else None)
        self.fits[requirement] = fit  # last in order: the one used last
        return fit

    def _drop_idle_fits(self) -> None:
        """Forget the requirements that nothing waits with, the longest unused first, once there are too many."""
        if len(self.fits) < MAX_IDLE_FITS:
            return
        idle = [fit for fit in self.fits.values() if not fit.lines]
        for fit in idle[: max(1, len(idle) // 2)]:
            del self.fits[fit.requirement]
            for worker_id in fit.workers:
                self._fits_of[worker_id].remove(fit)

    def enqueue(self, task: Task) -> None:
        """The task waits."""
        self._serial += 1
        task.place = (task.priority, task.arrival, self._serial, task)
        fit = self.fit(task.candidate.requirement)
        line = fit.lines.get(task.excluded)
        if line is None:
            line = fit.lines[task.excluded] = Line()
        line.push(task.place)

    def dequeue(self, task: Task) -> None:
        """The task no longer waits. Call it before its exclusions change."""
        fit = self.fits[task.candidate.requirement]
        line = fit.lines[task.excluded]
        task.place = None
        line.leave()
        if not line:
            del fit.lines[task.excluded]

    def best_worker(self, task: Task) -> Worker | None:
        """The worker that a waiting task should go to now."""
        return self.fit(task.candidate.requirement).best(task.excluded)

    def next_task(self, worker: Worker) -> Task | None:
        """The task that a worker with room should get."""
        first: Place | None = None
        for fit in self._fits_of[worker.worker_id]:
            for excluded, line in fit.lines.items():
                if worker.name in excluded:
                    continue
                head = line.head()
                if head is not None and (first is None or head < first):
                    first = head
        return first[3] if first is not None else None
