"""Workers and waiting tasks, indexed so that neither is ever searched.

For each requirement and need that occur there is one `Fit`: the workers that can meet them, filed by their room, and the lines
of tasks that wait with them. A change of one worker touches the fits that it is in; a new fit looks at every worker once.
Whose turn it is the lines tell (rexec/scheduler/line.py), by the shares of the owners (rexec/scheduler/shares.py). With 1,000
workers and 10,000 waiting tasks a decision costs microseconds.

A task that needs more than others would wait for ever for a worker that small ones fill again and again. When one that would
be next has found no room for some time, a worker is reserved: it takes nothing else until the large one fits, or until the
reservation ends.
"""

from __future__ import annotations

from rexec.scheduler.affinity import Affinity
from rexec.scheduler.fit import Fit
from rexec.scheduler.line import Line, Place, next_in
from rexec.scheduler.need import PLAIN, Need
from rexec.scheduler.packing import offered_cpu, offered_memory, room_for, use_on
from rexec.scheduler.platform import Requirement
from rexec.scheduler.pools import Pools
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.shares import Shares
from rexec.scheduler.task import Lease, Owner, Task, Worker

MAX_IDLE_FITS = 128
"""Fits kept although nothing waits in them: one that comes again finds its workers without a search."""

_RESERVED_PART = 4
"""At most one worker in so many is reserved, though always one."""


class Fleet:
    """All workers and all waiting tasks."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self.workers: dict[str, Worker] = {}
        self.by_name: dict[str, Worker] = {}
        self.fits: dict[tuple[Requirement, Need], Fit] = {}
        self.shares = Shares(settings.fairness)
        self.affinity = Affinity(settings.affinity)
        self.pools = Pools()
        self.generation = 0
        """Another number after each change of who is here."""
        self.active: dict[Fit, None] = {}
        """Fits in which something waits."""
        self.stirred: dict[Line, Fit] = {}
        """Lines in which a task may be served now that could not be before: it came, or its owner fell below a limit."""
        self.released: list[Worker] = []
        """Workers whose reservation has ended."""
        self._reserved: dict[str, Fit] = {}
        """By worker id."""
        self._settings = settings
        self._fits_of: dict[str, list[Fit]] = {}
        self._serial = 0
        self._least_share = (-1, 0.0)
        """For a generation of the fleet."""

    # Workers

    def add(self, worker: Worker) -> None:
        """A worker that was not here."""
        self.generation += 1
        self.workers[worker.worker_id] = worker
        self.by_name[worker.name] = worker
        self._fits_of[worker.worker_id] = []
        for fit in self.fits.values():
            self._file(worker, fit)
        self.update(worker)

    def _file(self, worker: Worker, fit: Fit) -> None:
        """Add the worker to the fit if it meets it."""
        if worker.offer.fits(fit.requirement):
            use = use_on(worker.offer, worker.slots, fit.need)
            if use is not None:
                fit.add(worker, use)
                self._fits_of[worker.worker_id].append(fit)

    def remove(self, worker: Worker) -> None:
        """A worker is gone."""
        self.generation += 1
        self.unreserve(worker)
        del self.workers[worker.worker_id]
        if self.by_name.get(worker.name) is worker:
            del self.by_name[worker.name]
        for fit in self._fits_of.pop(worker.worker_id):
            fit.remove(worker)
        self.affinity.gone(worker)

    def update(self, worker: Worker) -> None:
        """A worker's credit, leases or connection have changed."""
        fits = self._fits_of.get(worker.worker_id)
        if fits is None:
            return
        if self.has_room(worker):
            for fit in fits:
                fit.place(worker, self.room(worker, fit))
        else:
            for fit in fits:
                fit.place(worker, None)
            if not worker.connected or worker.draining:
                self.unreserve(worker)

    def has_room(self, worker: Worker) -> bool:
        """Whether the worker may be given a lease now, if it is small enough."""
        return (
            worker.credit > 0
            and worker.connected
            and not worker.draining
            and worker.may_get_leases
            and worker.free_slots > -self._settings.max_prefetched_leases
        )

    def room(self, worker: Worker, fit: Fit) -> int | None:
        """How many tasks of the fit a worker that has room has it for: 0 or less if they are fetched ahead, None if it has
        none for them."""
        if self._reserved and self._reserved.get(worker.worker_id, fit) is not fit:
            return None
        use = fit.uses[worker.worker_id]
        room = room_for(worker, use)
        if room > 0:
            return room
        # What is fetched ahead starts as soon as any lease ends, so it must be like all of them.
        return worker.free_slots if use.plain and not worker.uneven and worker.free_slots <= 0 else None

    def occupy(self, lease: Lease, owner: Owner) -> None:
        """The lease takes up room of its worker, and of the owner's share."""
        worker, task = lease.worker, lease.task
        use = use_on(worker.offer, worker.slots, task.need)
        if use is None:  # given by other rules than ours, such as those that bring back what an earlier process gave
            use = use_on(worker.offer, worker.slots, PLAIN)
            assert use is not None
        lease.use, lease.owner = use, owner
        worker.used_slots += use.slots
        worker.used_cpu_millis += use.cpu_millis
        worker.used_memory_bytes += use.memory_bytes
        worker.uneven += not use.plain
        self.shares.charge(owner, use.share_millis)
        self.affinity.used(worker, task.candidate.affinity)

    def vacate(self, lease: Lease) -> None:
        """The lease takes up nothing any more. Harmless if it took up nothing."""
        use, worker = lease.use, lease.worker
        if use is None:
            return
        lease.use = None
        worker.used_slots -= use.slots
        worker.used_cpu_millis -= use.cpu_millis
        worker.used_memory_bytes -= use.memory_bytes
        worker.uneven -= not use.plain
        for node in self.shares.discharge(lease.owner, use.share_millis):
            for branch in node.branches:
                self.stirred[branch.line] = branch.line.fit

    # Tasks

    def fit(self, requirement: Requirement, need: Need = PLAIN) -> Fit:
        """The fit of a requirement and a need, made when it is asked for first."""
        fit = self.fits.pop((requirement, need), None)
        if fit is None:
            self._drop_idle_fits()
            fit = Fit(requirement, need)
            for worker in self.workers.values():
                self._file(worker, fit)
            for worker in fit.workers.values():
                if self.has_room(worker):
                    fit.place(worker, self.room(worker, fit))
        self.fits[requirement, need] = fit  # last in order: the one used last
        return fit

    @property
    def least_share_bytes(self) -> float:
        """Memory that a slot of any worker stands for, where memory is counted: less makes no difference to anyone."""
        if self._least_share[0] != self.generation:
            shares = [w.offer.memory_bytes // w.slots for w in self.workers.values() if w.offer.memory_bytes]
            self._least_share = self.generation, min(shares, default=float("inf"))
        return self._least_share[1]

    def largest(self, fit: Fit) -> tuple[int, int, int] | None:
        """The most slots, thousandths of a core and bytes of memory that an action could have on a worker that meets the
        fit's requirement; None if none does. Costs the number of workers, once for each change of them."""
        if fit.sized[0] != self.generation:
            sizes = [
                (
                    worker.slots,
                    worker.offer.cpu_millis or offered_cpu(worker.offer),
                    worker.offer.memory_bytes or offered_memory(worker.offer),
                )
                for worker in self.workers.values()
                if worker.offer.fits(fit.requirement)
            ]
            slots, cpus, memories = zip(*sizes, strict=True) if sizes else ((), (), ())
            fit.sized = self.generation, (max(slots), max(cpus), max(memories)) if sizes else None
        return fit.sized[1]

    def fit_of(self, task: Task) -> Fit:
        """Where the task waits, or would."""
        return task.place.line.fit if task.place is not None else self.fit(task.candidate.requirement, task.need)

    def _drop_idle_fits(self) -> None:
        """Forget the fits in which nothing waits, the longest unused first, once there are too many."""
        if len(self.fits) < MAX_IDLE_FITS:
            return
        idle = [fit for fit in self.fits.values() if not fit.lines]
        for fit in idle[: max(1, len(idle) // 2)]:
            del self.fits[fit.requirement, fit.need]
            for worker_id in fit.workers:
                self._fits_of[worker_id].remove(fit)

    def enqueue(self, task: Task) -> None:
        """The task waits, for all who asked for it."""
        fit = self.fit(task.candidate.requirement, task.need)
        line = fit.lines.get(task.excluded)
        if line is None:
            line = fit.lines[task.excluded] = Line(self.shares.root, fit, task.excluded)
            self.active[fit] = None
        place = task.place = Place(task, line)
        line.members[task] = None
        for operation in task.operations.values():
            self.join(place, operation.owner)
        self.stirred[line] = fit

    def join(self, place: Place, owner: Owner) -> None:
        """The task that waits there waits for this owner too."""
        self._serial += 1
        place.line.join(place, self.shares.of(owner), self._serial)
        self.stirred[place.line] = place.line.fit

    def dequeue(self, task: Task) -> None:
        """The task no longer waits. Call it before its exclusions or owners change."""
        place, task.place = task.place, None
        assert place is not None
        line = place.line
        del line.members[task]
        for branch in place.stands:
            line.part(branch)
            self.shares.forget_idle(branch.node)
        if not line:
            fit = line.fit
            del fit.lines[line.excluded]
            self.stirred.pop(line, None)
            if not fit.lines:
                del self.active[fit]
                self.need_met(fit)

    def owner_left(self, task: Task, owner: Owner) -> None:
        """An operation of the task has ended; nobody stands in line with a task of which nothing is his."""
        if task.place is not None and all(operation.owner != owner for operation in task.operations.values()):
            self.requeue(task)

    def requeue(self, task: Task) -> None:
        """The priority or the owners of a waiting task have changed."""
        passed_over = task.place.passed_over if task.place is not None else 0
        self.dequeue(task)
        self.enqueue(task)
        assert task.place is not None
        task.place.passed_over = passed_over

    def best_worker(self, task: Task, excluded: frozenset[str] | None = None) -> Worker | None:
        """The worker that a task should go to now."""
        fit = self.fit_of(task)
        if not fit.roomy:
            return None
        avoided = task.excluded if excluded is None else excluded
        return self.affinity.worker_for(fit, task.candidate.affinity, avoided) or fit.best(avoided)

    def next_task(self, worker: Worker, now: float) -> tuple[Task, Owner] | None:
        """The task that a worker with room should get, and whose turn it was. May reserve the worker for a larger task."""
        lines: list[Line] = []
        too_large: list[Line] = []
        worker_id = worker.worker_id
        kept_free = worker_id in self._reserved
        for fit in self.active:
            if worker_id in fit.workers:
                fits_now = fit.room_of(worker_id) is not None
                if fits_now or not kept_free:
                    for excluded, line in fit.lines.items():
                        if not excluded or worker.name not in excluded:
                            (lines if fits_now else too_large).append(line)
        while lines:
            found = next_in([*lines, *too_large] if too_large else lines)
            if found is None:
                return None
            place, branch = found
            fit = place.line.fit
            if fit.room_of(worker_id) is not None:
                chosen = self.affinity.task_for(worker, place, branch)
                return chosen.task, branch.node.owner
            if self._first_without_room(fit, now) is worker:
                return None
            too_large = [line for line in too_large if line.fit is not fit]
        return None

    def next_in_line(self, line: Line) -> tuple[Task, Owner] | None:
        """The task of the line whose turn it is, if its owner may have another worker."""
        found = next_in([line])
        return None if found is None else (found[0].task, found[1].node.owner)

    # Reservations

    def need_met(self, fit: Fit) -> None:
        """A task of the fit has got a worker, or none is left: nothing need be kept free for the next one yet."""
        fit.first_since = None
        if fit.reserved is not None:
            self.unreserve(fit.reserved)

    def _first_without_room(self, fit: Fit, now: float) -> Worker | None:
        """A task of the fit is the next in order, and there is no room. The worker that is kept free for it from now on."""
        settings = self._settings.packing
        if fit.first_since is None:
            fit.first_since = now
        if now - fit.first_since < settings.reserve_after_seconds or fit.reserved is not None or fit.roomy:
            return None
        if len(self._reserved) >= max(1, len(self.workers) // _RESERVED_PART):
            return None
        worker = fit.nearest(frozenset(self._reserved))
        if worker is None:
            return None
        fit.reserved, fit.reserved_until = worker, now + settings.reserve_at_most_seconds
        self._reserved[worker.worker_id] = fit
        self.update(worker)
        return worker

    def reservation(self, worker: Worker) -> Fit | None:
        """What the worker is kept free for."""
        return self._reserved.get(worker.worker_id)

    def unreserve(self, worker: Worker) -> None:
        """The worker takes anything again."""
        fit = self._reserved.pop(worker.worker_id, None)
        if fit is not None:
            fit.reserved = None
            self.update(worker)
            self.released.append(worker)

    def reservation_ends(self) -> float | None:
        """When the next one ends at the latest."""
        return min((fit.reserved_until for fit in self._reserved.values()), default=None) if self._reserved else None

    def end_reservations(self, now: float) -> None:
        """End those that have lasted for too long."""
        for fit in list(self._reserved.values()):
            if fit.reserved_until <= now and fit.reserved is not None:
                fit.first_since = now  # the next one is not made at once
                self.unreserve(fit.reserved)
