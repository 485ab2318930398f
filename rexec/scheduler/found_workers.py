"""One worker as `rexec workers` shows it, from the queue's state and from what the worker says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from protos.rexec.scheduler.v1 import status_pb2
from rexec.scheduler.summary import properties_of, shortened, summary_of
from rexec.scheduler.task import Standing, Worker
from rexec.scheduler.vitals import About

if TYPE_CHECKING:
    from protos.rexec.scheduler.v1.status_pb2 import WorkerState

MAX_HELD: Final = 64
"""Leases shown of one worker."""

MAX_INSTANCES: Final = 50
"""Names of instances shown of one worker."""

STATES: Final = (status_pb2.READY, status_pb2.DRAINING, status_pb2.AWAY, status_pb2.QUARANTINED)

STATE_NAMES: Final = {kind: status_pb2.WorkerState.Name(kind).lower() for kind in STATES}
"""As metrics and displays say it."""


def state_of(worker: Worker) -> WorkerState:
    """What the worker is good for."""
    if not worker.connected:
        return status_pb2.AWAY
    if worker.draining:
        return status_pb2.DRAINING
    return status_pb2.READY if worker.standing is Standing.TRUSTED else status_pb2.QUARANTINED


def serves(worker: Worker, names: frozenset[str] | None) -> bool:
    """Whether the worker runs actions of one of these instances; None: of any."""
    served = worker.offer.instance_names
    return names is None or not served or not names.isdisjoint(served)


def found_worker(
    worker: Worker, about: About | None, names: frozenset[str] | None, now: float
) -> status_pb2.FoundWorker:
    """The worker, with what it runs of these instances. `about` is None for one that has not said Hello yet."""
    served = worker.offer.instance_names
    found = status_pb2.FoundWorker(
        name=worker.name,
        worker_id=worker.worker_id,
        state=state_of(worker),
        reason=shortened(worker.drain_reason if worker.draining else worker.standing_reason),
        slots=worker.slots,
        busy_slots=worker.slots - max(0, worker.free_slots),
        properties=properties_of(worker.offer.pairs),
        instance_names=sorted(served if names is None else served & names)[:MAX_INSTANCES],
    )
    if about is not None:
        found.software_version = about.version
        found.attached_seconds = now - about.attached_at
        for name, amount in about.resources.items():
            found.resources[name] = amount
        if about.heartbeat is not None:
            said = about.heartbeat
            found.vitals.age_seconds = now - about.heard_at
            found.vitals.load = said.load
            found.vitals.cache_bytes = said.cache_bytes
            found.vitals.free_disk_bytes = said.free_disk_bytes
            found.vitals.available_memory_bytes = said.available_memory_bytes
            found.reason = found.reason or shortened(said.pause_reason)
    for lease in worker.leases.values():
        task = lease.task
        if (
            lease.began_at is None
            or lease.released
            or (names is not None and task.candidate.instance_name not in names)
        ):
            continue
        if len(found.running) == MAX_HELD:
            found.running_left_out += 1
            continue
        found.running.add(
            operation=next(iter(task.operations), ""),
            summary=summary_of(task.candidate),
            running_seconds=now - lease.began_at,
        )
    return found
