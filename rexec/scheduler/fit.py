"""One requirement and one need: the workers that meet them, by the room they have, and the lines of tasks that wait with them."""

from __future__ import annotations

from collections.abc import Iterator

from rexec.scheduler.line import Line
from rexec.scheduler.need import PLAIN, Need, Use
from rexec.scheduler.platform import Requirement
from rexec.scheduler.pool import Pool
from rexec.scheduler.task import Standing, Task, Worker

ORDINARY: frozenset[str] = frozenset()
"""Excluded workers of nearly all tasks: none."""


class Fit:
    """Workers and tasks for each other."""

    def __init__(self, requirement: Requirement, need: Need = PLAIN) -> None:
        self.requirement = requirement
        self.need = need
        self.workers: dict[str, Worker] = {}
        """Those that meet the requirement, and could hold the need if they were empty."""
        self.uses: dict[str, Use] = {}
        """What the need takes up of each of them."""
        self.slots = 0
        """Of all these workers."""
        self.uneven = 0
        """How many of these uses are something else than what one slot stands for."""
        self.told_at = float("-inf")
        """When the log was told last that no worker fits."""
        self.lines: dict[frozenset[str], Line] = {}
        """By the names of the workers that the tasks must not go to: none for nearly all."""
        self.first_since: float | None = None
        """Since when its tasks would have been next, had a worker had room for them; None if that is not so."""
        self.reserved: Worker | None = None
        """The worker that is kept free for it."""
        self.reserved_until = 0.0
        self.unserved: tuple[tuple[int, int], str] = ((-1, -1), "")
        """Why no worker fits, and the generations of the fleet and of the pools for which that was found out."""
        self.sized: tuple[int, tuple[int, int, int] | None] = (-1, None)
        """What the largest of the workers could hold that meet the requirement, for a generation of the fleet."""
        self.pool: tuple[int, Pool | None] = (-1, None)
        """The pool from which its tasks may hope most, and the generation of the pools for which that was found out."""
        self._rooms: dict[int, dict[str, Worker]] = {}
        self._room_of: dict[str, int] = {}

    def __str__(self) -> str:
        return f"{self.requirement} with {self.need}"

    @property
    def waiting(self) -> int:
        """How many tasks wait here."""
        return sum(len(line) for line in self.lines.values())

    def tasks(self) -> Iterator[Task]:
        """All of them. Costs their number."""
        return (task for line in self.lines.values() for task in line.members)

    def add(self, worker: Worker, use: Use) -> None:
        """A worker that fits."""
        self.workers[worker.worker_id] = worker
        self.uses[worker.worker_id] = use
        self.slots += worker.slots
        self.uneven += not use.plain

    def remove(self, worker: Worker) -> None:
        """A worker that is gone."""
        self.place(worker, None)
        del self.workers[worker.worker_id]
        self.uneven -= not self.uses.pop(worker.worker_id).plain
        self.slots -= worker.slots

    def place(self, worker: Worker, room: int | None) -> None:
        """File a worker under its room: how many more of these tasks it takes. 0 or less is room for leases that are
        fetched ahead; None takes it out."""
        worker_id = worker.worker_id
        held = self._room_of.get(worker_id)
        if held == room:
            return
        if held is not None:
            filed = self._rooms[held]
            del filed[worker_id]
            if not filed:
                del self._rooms[held]
            del self._room_of[worker_id]
        if room is not None:
            filed = self._rooms.get(room) or self._rooms.setdefault(room, {})
            filed[worker_id] = worker
            self._room_of[worker_id] = room

    @property
    def roomy(self) -> int:
        """How many workers have room."""
        return len(self._room_of)

    def room_of(self, worker_id: str) -> int | None:
        """What the worker is filed under."""
        return self._room_of.get(worker_id)

    def most_room(self) -> int:
        """What the emptiest worker is filed under. There must be one."""
        return max(self._rooms)

    def best(self, excluded: frozenset[str] = ORDINARY) -> Worker | None:
        """The worker with the most room. Places for leases fetched ahead count less than any free slot."""
        if not excluded:
            return next(iter(self._rooms[max(self._rooms)].values())) if self._rooms else None
        for room in sorted(self._rooms, reverse=True):
            for worker in self._rooms[room].values():
                if worker.name not in excluded:
                    return worker
        return None

    def has_other(self, excluded: frozenset[str]) -> bool:
        """Whether a worker that is not excluded might take a task some time."""
        return any(
            worker.name not in excluded
            and worker.connected
            and not worker.draining
            and worker.standing is not Standing.QUARANTINED
            for worker in self.workers.values()
        )

    def barred(self) -> Worker | None:
        """A worker that is quarantined and here, the first in order of name."""
        barred = [
            worker for worker in self.workers.values() if worker.standing is Standing.QUARANTINED and worker.connected
        ]
        return min(barred, key=lambda worker: worker.name, default=None)

    def nearest(self, taken: frozenset[str]) -> Worker | None:
        """The worker that will have room soonest, as far as that can be told: the one with the most free slots. None of
        those `taken`, by id."""
        able = [
            worker
            for worker in self.workers.values()
            if worker.connected and not worker.draining and worker.may_get_leases and worker.worker_id not in taken
        ]
        return max(able, key=lambda worker: worker.free_slots / self.uses[worker.worker_id].slots, default=None)
