"""Workers on which one action after the other fails through no fault of its own: they get none for a while.

What counts are incidents in a row, each with actions of its own: an action that kills its worker again and again is one
incident, and so is the loss of a worker with everything that ran there. Anything that ends by itself, whatever its exit
code, clears the worker. Lack of room (back-pressure) is no incident.

After `quarantine_seconds` the worker gets one action on trial. If that fails too the time doubles. A worker that no other can
stand in for is not kept waiting longer than the first time, so that an installation with one worker goes on trying.

A worker is known by its name here: a session that comes back does not start with a clean slate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rexec.scheduler import events as e
from rexec.scheduler.deadlines import Due
from rexec.scheduler.record import Record
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Lease, Standing, Worker

MAX_RECORDS: Final = 10_000
"""Names that are remembered, the last ones to have failed; names come from workers."""


def blame(state: QueueState, leases: Sequence[Lease], reason: str, now: float) -> None:
    """These leases of one worker, at least one, have failed together, and their actions are not to blame."""
    worker = leases[0].worker
    trial = any(worker.trial is lease for lease in leases)
    # By digest: a client that was told to try again comes back with the same action as another task.
    actions = frozenset(lease.task.candidate.action_digest for lease in leases)
    records = state.records
    record = records.pop(worker.name, None) or Record()
    if len(records) >= MAX_RECORDS:
        oldest = next(iter(records))
        if records.pop(oldest).standing is not Standing.TRUSTED:
            _stand(state, oldest, Standing.TRUSTED)  # nobody would review it any more
    records[worker.name] = record
    if record.standing is not Standing.TRUSTED:
        if trial and record.standing is Standing.ON_TRIAL:
            _bar(state, worker.name, record, min(2 * record.seconds, state.settings.quarantine_max_seconds), now)
        return
    if any(actions & known for known, _reason in record.incidents):
        return  # may well be that action's own doing
    record.incidents.append((actions, reason[:300]))
    if len(record.incidents) < state.settings.quarantine_failures:
        return
    evidence = tuple(f"action {min(map(str, failed))}: {reason}" for failed, reason in record.incidents)
    record.evidence = f"{len(evidence)} different actions in a row failed there, the last one because: {reason[:300]}"
    _bar(state, worker.name, record, state.settings.quarantine_seconds, now)
    state.effects.append(e.WorkerQuarantined(worker.name, record.seconds, evidence))


def clear(state: QueueState, worker: Worker) -> None:
    """An action ended by itself on the worker."""
    record = state.records.pop(worker.name, None)
    if record is not None and record.standing is not Standing.TRUSTED:
        _stand(state, worker.name, Standing.TRUSTED)
        state.effects.append(e.WorkerTrusted(worker.name))


def inherit(state: QueueState, worker: Worker) -> None:
    """A new session has the standing of its name."""
    record = state.records.get(worker.name)
    if record is not None:
        worker.standing, worker.standing_reason = record.standing, record.evidence


def review(state: QueueState, name: str, now: float) -> None:
    """The quarantine of a name is over, or it is time to see whether another worker still stands in for it."""
    record = state.records.get(name)
    if record is None or record.standing is not Standing.QUARANTINED:
        return
    if now < record.until and _has_substitute(state, name):
        _review_later(state, name, record, now)
        return
    record.standing = Standing.ON_TRIAL
    _stand(state, name, Standing.ON_TRIAL, record.evidence)


def _bar(state: QueueState, name: str, record: Record, seconds: float, now: float) -> None:
    record.standing = Standing.QUARANTINED
    record.seconds = seconds
    record.until = now + seconds
    _stand(state, name, Standing.QUARANTINED, record.evidence)
    _review_later(state, name, record, now)


def _review_later(state: QueueState, name: str, record: Record, now: float) -> None:
    soon = now + state.settings.quarantine_seconds
    state.deadlines.add(min(soon, record.until) if record.until > now else soon, Due.QUARANTINE_REVIEWED, name)


def _stand(state: QueueState, name: str, standing: Standing, reason: str = "") -> None:
    worker = state.fleet.by_name.get(name)
    if worker is not None:
        worker.standing, worker.standing_reason = standing, reason
        worker.trial = None
        state.touch(worker)


def _has_substitute(state: QueueState, name: str) -> bool:
    """Whether some worker that is trusted offers at least the same. Costs the number of workers, if most are not trusted."""
    mine = state.fleet.by_name.get(name)
    return mine is None or any(
        other.standing is Standing.TRUSTED
        and other.connected
        and not other.draining
        and other.slots >= mine.slots
        and other.offer.covers(mine.offer)
        for other in state.fleet.workers.values()
    )
