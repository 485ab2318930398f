"""Which workers have used which parts of input roots lately: what they have in their caches, as far as is known here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from rexec.scheduler.fairness_settings import AffinitySettings
from rexec.scheduler.fit import Fit
from rexec.scheduler.line import Branch, Place
from rexec.scheduler.task import Worker

MAX_NAMES = 128
"""Remembered of one worker; the longest unused go first."""

_LOOKED_AT = 4
"""Workers looked at for each name, those that used it last: a toolchain is on all of them."""


class Affinity:
    """Remembers what went where."""

    def __init__(self, settings: AffinitySettings) -> None:
        self._settings = settings
        self._names: dict[str, dict[str, None]] = {}
        """By worker id, the last used last."""
        self._workers: dict[str, dict[str, Worker]] = {}
        """By name, the last user last."""

    def used(self, worker: Worker, names: Sequence[str]) -> None:
        """The worker is about to use these."""
        if not self._settings.enabled or not names:
            return
        known = self._names.setdefault(worker.worker_id, {})
        for name in names:
            known.pop(name, None)
            known[name] = None
            users = self._workers.setdefault(name, {})
            users.pop(worker.worker_id, None)
            users[worker.worker_id] = worker
        while len(known) > MAX_NAMES:
            self._unused(worker.worker_id, next(iter(known)))

    def gone(self, worker: Worker) -> None:
        """The worker is gone, and its cache with it."""
        for name in list(self._names.get(worker.worker_id, ())):
            self._unused(worker.worker_id, name)
        self._names.pop(worker.worker_id, None)

    def _unused(self, worker_id: str, name: str) -> None:
        del self._names[worker_id][name]
        users = self._workers[name]
        del users[worker_id]
        if not users:
            del self._workers[name]

    def worker_for(self, fit: Fit, names: Sequence[str], excluded: frozenset[str]) -> Worker | None:
        """The worker with room that knows most of the names, if one of those that come into question knows any."""
        if not names or not self._settings.enabled or fit.roomy < 2:
            return None
        most = fit.most_room()
        # Behind leases that are fetched ahead a task waits longer than its inputs take.
        least = max(1, most - self._settings.slack_slots) if most > 0 else most
        known: dict[str, int] = {}
        for name in names:
            users = self._workers.get(name)
            if users is not None:
                for worker_id in islice(reversed(users), _LOOKED_AT):
                    known[worker_id] = known.get(worker_id, 0) + 1
        best: Worker | None = None
        best_rank = (0, 0)
        for worker_id, many in known.items():
            room = fit.room_of(worker_id)
            if room is not None and room >= least and (many, room) > best_rank:
                worker = fit.workers[worker_id]
                if worker.name not in excluded:
                    best, best_rank = worker, (many, room)
        return best

    def task_for(self, worker: Worker, head: Place, branch: Branch) -> Place:
        """The place to serve: of the next few of equal rights the one of whose inputs the worker knows most."""
        known = self._names.get(worker.worker_id)
        wanted = head.task.candidate.affinity
        if (
            known is None
            or branch.waiting < 2
            or head.passed_over >= self._settings.max_passed_over
            or not self._settings.enabled
        ):
            return head
        best, best_score = head, sum([name in known for name in wanted])
        if best_score == len(wanted) > 0:
            return head
        for place in branch.ahead(self._settings.look_ahead):
            score = sum([name in known for name in place.task.candidate.affinity])
            if score > best_score:
                best, best_score = place, score
        if best is not head:
            head.passed_over += 1
        return best
