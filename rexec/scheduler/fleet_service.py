"""rexec.scheduler.v1.Fleet: taking workers out of service, for those who may operate them.

Who may use only some instances may drain the workers that serve these and no others: another tenant's work is not his to move.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

import structlog

from cas.context import Identity, RequestContext
from cas.errors import MalformedRequest, NotAllowed
from protos.rexec.scheduler.v1 import fleet_pb2
from rexec.scheduler.broker import Broker
from rexec.scheduler.drains import MAX_GRACE_SECONDS
from rexec.scheduler.status import MAX_INSTANCES
from rexec.scheduler.task import Worker

log = structlog.get_logger()

MAX_LISTED: Final = 1000
"""Workers in an answer, and names in a request."""

MAX_PROPERTIES: Final = 100
"""In a request."""

MAX_REASON_CHARACTERS: Final = 300

STEP: Final = 25
"""Workers drained before others get their turn."""


class FleetService:
    """rexec.scheduler.v1.Fleet."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def DrainWorkers(
        self, request: fleet_pb2.DrainWorkersRequest, context: RequestContext
    ) -> fleet_pb2.DrainWorkersResponse:
        """Raises NotAllowed and MalformedRequest."""
        checked(request, context.identity)
        answer = fleet_pb2.DrainWorkersResponse()
        workers = self._broker.workers()
        chosen = [worker for worker in workers if _is_meant(worker, request)]
        answer.unknown.extend(sorted(set(request.names) - {worker.name for worker in chosen}))
        reason = f"drained: {request.reason}" if request.reason else "drained by an operator"
        for number, worker in enumerate(chosen):
            drained = self._broker.drain(worker.worker_id, request.grace_seconds, reason)
            if number < MAX_LISTED:
                answer.workers.add(
                    name=worker.name,
                    worker_id=worker.worker_id,
                    kept=drained.kept,
                    handed_back=drained.handed_back,
                    away=not worker.connected,
                )
            if number % STEP == STEP - 1:
                await asyncio.sleep(0)
        answer.workers_left_out = max(0, len(chosen) - MAX_LISTED)
        if chosen:
            log.info(
                "workers are drained", workers=len(chosen), names=", ".join(worker.name for worker in chosen[:10]),
                grace_seconds=request.grace_seconds, caller=context.identity.name, reason=reason,
            )  # fmt: skip
        return answer


def checked(request: fleet_pb2.DrainWorkersRequest, identity: Identity) -> None:
    """Write into the request which instances the identity may use. Raises NotAllowed if it may not drain what is asked for,
    MalformedRequest for what makes no sense."""
    allowed = identity.instance_names
    if not identity.may_operate or (allowed is not None and not allowed):
        raise NotAllowed("not allowed")
    if request.HasField("instances"):
        names = frozenset(request.instances.names)
        if allowed is not None and not names <= allowed:
            raise NotAllowed("not allowed")
        if not 1 <= len(names) <= MAX_INSTANCES:
            raise MalformedRequest(f"{len(names)} instances, expected 1 to {MAX_INSTANCES}, or no list at all")
    elif allowed is not None:
        request.instances.names.extend(sorted(allowed))
    said = [bool(request.names), bool(request.properties), request.all]
    if sum(said) != 1:
        raise MalformedRequest("expected exactly one of names, properties and all")
    if len(request.names) > MAX_LISTED:
        raise MalformedRequest(f"{len(request.names)} names, expected at most {MAX_LISTED}")
    if len(request.properties) > MAX_PROPERTIES:
        raise MalformedRequest(f"{len(request.properties)} properties, expected at most {MAX_PROPERTIES}")
    grace = request.grace_seconds
    if not (math.isfinite(grace) and 0 <= grace <= MAX_GRACE_SECONDS):
        raise MalformedRequest(f"grace_seconds is {grace}, expected 0 to {MAX_GRACE_SECONDS:g}")
    if len(request.reason) > MAX_REASON_CHARACTERS:
        raise MalformedRequest(
            f"a reason of {len(request.reason)} characters, expected at most {MAX_REASON_CHARACTERS}"
        )


def _is_meant(worker: Worker, request: fleet_pb2.DrainWorkersRequest) -> bool:
    served = worker.offer.instance_names
    if request.HasField("instances") and not (served and served <= set(request.instances.names)):
        return False
    if request.names:
        return worker.name in request.names
    return worker.offer.pairs >= {(wanted.name, wanted.value) for wanted in request.properties}
