"""externalscaler.ExternalScaler: the scheduler as a scaler of KEDA's.

A trigger says which workers its Deployment has (rexec/asked_pool.py). Its figure is the number of workers that are wanted
(rexec/wanted_workers.py), with a target of 1, so that it is the number of replicas. The other figures are for a
HorizontalPodAutoscaler, whose questions rexec/external_metrics.py passes on to this service.

Whoever may execute or operate sees the load of his instances; who may use some instances only has to name one of them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from google.protobuf.message import Message

from cas.context import Identity, RequestContext
from cas.errors import MalformedRequest, NotAllowed, ResourceExhausted, Unavailable
from protos.keda import externalscaler_pb2 as keda_pb2
from protos.methods import methods_of
from rexec.asked_pool import AskedPool, asked_pool
from rexec.relay import Relayed
from rexec.scheduler.broker import Broker
from rexec.scheduler.scheduler_connection import Connection
from rexec.scheduler.scheduler_link import LinkBroken
from rexec.wanted_workers import Figures, WantedWorkers

WANTED: Final = "rexec_wanted_workers"
FIGURES: Final = {
    WANTED: "wanted_workers",
    "rexec_waiting_slot_seconds": "waiting_slot_seconds",
    "rexec_waiting_tasks": "waiting_tasks",
    "rexec_busy_slots": "busy_slots",
}
"""Names of metrics, and where they stand in Figures."""

MAX_STREAMS: Final = 50
"""Triggers that are told of changes at once, so that autoscalers find a place beside them; others ask again and again."""

_INDEX: Final = re.compile(r"s[0-9]{1,4}-")
"""Older versions of KEDA leave the trigger's number before the metric's name."""

_STREAM: Final = methods_of(keda_pb2, "ExternalScaler")["StreamIsActive"]


class ExternalScalerService:
    """externalscaler.ExternalScaler, of the queue in this process. All methods raise MalformedRequest and NotAllowed."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._wanted = WantedWorkers()
        self._streams = 0

    async def IsActive(
        self, request: keda_pb2.ScaledObjectRef, context: RequestContext
    ) -> keda_pb2.IsActiveResponse:  # fmt: skip
        asked = checked(request, context.identity)
        return keda_pb2.IsActiveResponse(result=self._wanted.is_active(asked, self._broker.autoscaling.glance()))

    async def StreamIsActive(
        self, request: keda_pb2.ScaledObjectRef, context: RequestContext
    ) -> AsyncGenerator[keda_pb2.IsActiveResponse, None]:
        """At once, and whenever it has changed. Raises ResourceExhausted if too many want to be told, and Unavailable when the
        scheduler stops."""
        asked = checked(request, context.identity)
        if self._streams >= MAX_STREAMS:
            raise ResourceExhausted(f"{MAX_STREAMS} triggers are told already, the most allowed")
        self._streams += 1
        try:
            said: bool | None = None
            async with aclosing(self._broker.autoscaling.follow().snapshots()) as snapshots:
                async for snapshot in snapshots:
                    active = self._wanted.is_active(asked, snapshot)
                    if active is not said:
                        said = active
                        yield keda_pb2.IsActiveResponse(result=active)
        finally:
            self._streams -= 1

    async def GetMetricSpec(
        self, request: keda_pb2.ScaledObjectRef, context: RequestContext
    ) -> keda_pb2.GetMetricSpecResponse:
        checked(request, context.identity)
        answer = keda_pb2.GetMetricSpecResponse()
        answer.metricSpecs.add(metricName=WANTED, targetSize=1, targetSizeFloat=1.0)
        return answer

    async def GetMetrics(
        self, request: keda_pb2.GetMetricsRequest, context: RequestContext
    ) -> keda_pb2.GetMetricsResponse:
        asked = checked(request.scaledObjectRef, context.identity)
        name = _INDEX.sub("", request.metricName, count=1) if _INDEX.match(request.metricName) else request.metricName
        if name not in FIGURES:
            raise MalformedRequest(f"metricName is {request.metricName[:100]!r}, expected {', '.join(FIGURES)}")
        value = value_of(name, self._wanted.figures(asked, self._broker.autoscaling.glance()))
        answer = keda_pb2.GetMetricsResponse()
        answer.metricValues.add(metricName=request.metricName, metricValue=round(value), metricValueFloat=value)
        return answer


def checked(ref: keda_pb2.ScaledObjectRef, identity: Identity) -> AskedPool:
    """Which pool is asked about. Raises NotAllowed and MalformedRequest."""
    allowed = identity.instance_names
    if not (identity.may_execute or identity.may_operate) or (allowed is not None and not allowed):
        raise NotAllowed("not allowed")
    asked = asked_pool(ref.scalerMetadata)
    if allowed is not None:
        if asked.instance is None:
            raise MalformedRequest("instance is missing, expected one: not all instances are yours to see")
        if asked.instance not in allowed:
            raise NotAllowed("not allowed")
    return asked


def value_of(name: str, figures: Figures) -> float:
    """The figure of a metric. Raises KeyError."""
    return float(getattr(figures, FIGURES[name]))


def _may_see(_method: str, request: Message, context: RequestContext) -> None:
    """As ExternalScalerService does it."""
    ref = request.scaledObjectRef if isinstance(request, keda_pb2.GetMetricsRequest) else request
    assert isinstance(ref, keda_pb2.ScaledObjectRef)
    checked(ref, context.identity)


class RelayedScaler(Relayed):
    """The same of a scheduler elsewhere, as a frontend passes it on."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(keda_pb2, "ExternalScaler", connection, _may_see)

    async def StreamIsActive(
        self, request: keda_pb2.ScaledObjectRef, context: RequestContext
    ) -> AsyncGenerator[keda_pb2.IsActiveResponse, None]:
        """Raises NotAllowed, MalformedRequest, and Unavailable when the connection breaks: KEDA asks anew."""
        checked(request, context.identity)
        link = await self._connection.up()
        try:
            async with aclosing(link.stream(_STREAM, request)) as messages:
                async for message in messages:
                    assert isinstance(message, keda_pb2.IsActiveResponse)
                    yield message
        except LinkBroken as broken:
            raise Unavailable(f"the connection to the scheduler broke: {broken}") from broken
