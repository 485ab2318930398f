"""rexec.scheduler.v1.Autoscaling: the stream of an autoscaler that is a process of its own.

It sees what all tenants have waiting and takes away any worker, so only those may follow who may operate all instances.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import structlog

from cas.context import RequestContext
from cas.errors import Internal, NotAllowed, StatusError
from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.scheduler.autoscaling import Follower
from rexec.scheduler.broker import Broker

log = structlog.get_logger()


class AutoscalingService:
    """rexec.scheduler.v1.Autoscaling."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def Follow(
        self, requests: AsyncIterator[autoscaling_pb2.FromAutoscaler], context: RequestContext
    ) -> AsyncGenerator[autoscaling_pb2.ToAutoscaler, None]:
        """Raises NotAllowed, MalformedRequest for nonsense, ResourceExhausted if too many follow, and Unavailable when the
        scheduler stops."""
        identity = context.identity
        if not identity.may_operate or identity.instance_names is not None:
            raise NotAllowed("not allowed")
        follower = self._broker.autoscaling.follow()
        reader = self._broker.spawn(self._read(requests, follower, context.peer))
        log.info("autoscaler follows", caller=identity.name, peer=context.peer)
        try:
            async with aclosing(follower.snapshots()) as snapshots:
                async for snapshot in snapshots:
                    yield snapshot
        finally:
            reader.cancel()
            follower.close()
            log.info("autoscaler is gone", caller=identity.name, peer=context.peer)

    async def _read(
        self, requests: AsyncIterator[autoscaling_pb2.FromAutoscaler], follower: Follower, peer: str
    ) -> None:
        """Hand on what the autoscaler says until it ends its side, then end ours."""
        failure: StatusError | None = None
        try:
            async for message in requests:
                await follower.tell(message)
        except StatusError as nonsense:
            failure = nonsense
        except Exception:
            log.exception("autoscaler's stream failed", peer=peer)
            failure = Internal()
        follower.end(failure)
