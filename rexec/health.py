"""grpc.health.v1.Health: whether the server takes work, for Kubernetes probes and load balancers.

Every service has the same status, because they start and stop together: SERVING from the start, NOT_SERVING from the moment
at which the server drains. Asking needs no credentials: a probe has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

from cas.context import RequestContext
from cas.errors import MalformedRequest, NotFound, QueueFull, Unavailable
from protos.grpc.health.v1 import health_pb2

OVERALL = ""
"""The name that stands for the server as a whole (HealthCheckRequest.service)."""

MAX_WATCHERS = 1000
"""Streams of Watch at once. They need no credentials, and must not use up the calls that the server takes."""

MAX_WATCH_BYTES = 4 << 10
"""A Watch holds its request for as long as it lasts; of messages as large as the server takes, so many would fill its memory."""

_Status = health_pb2.HealthCheckResponse


class Health:
    """grpc.health.v1.Health for the services of these full names."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset((OVERALL, *services))
        self._watchers = 0
        self._draining = False
        self._closed = False
        self._changed = asyncio.Event()
        """Set at the next change, and then replaced."""

    @property
    def is_draining(self) -> bool:
        """Whether NOT_SERVING is said."""
        return self._draining

    def drain(self) -> None:
        """Say NOT_SERVING from now on; who watches is told."""
        self._draining = True
        self._change()

    def close(self) -> None:
        """Drain, and end the streams of those who watch: the server would wait for them before it stops."""
        self._closed = True
        self.drain()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, _context: RequestContext
    ) -> health_pb2.HealthCheckResponse:
        """Raises NotFound for a service that this server does not have."""
        if request.service not in self._services:
            raise NotFound(f"no service {request.service[:200]!r} here")
        return self._answer(request.service)

    async def List(
        self, _request: health_pb2.HealthListRequest, _context: RequestContext
    ) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(statuses={name: self._answer(name) for name in self._services})

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, _context: RequestContext
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """The status now and at its change. A service that this server does not have is SERVICE_UNKNOWN, not a failure.

        Raises Unavailable when the server stops, QueueFull, and MalformedRequest for a request that is too long.
        """
        if request.ByteSize() > MAX_WATCH_BYTES:
            raise MalformedRequest(f"request of {request.ByteSize()} bytes, expected at most {MAX_WATCH_BYTES}")
        if self._watchers >= MAX_WATCHERS:
            raise QueueFull(f"{MAX_WATCHERS} streams watch already")
        self._watchers += 1
        try:
            async for answer in self._each(request):
                yield answer
        finally:
            self._watchers -= 1

    async def _each(
        self, request: health_pb2.HealthCheckRequest
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        latest: health_pb2.HealthCheckResponse | None = None
        while True:
            changed = self._changed
            answer = self._answer(request.service)
            if answer != latest:
                yield answer
                latest = answer
            elif self._closed:
                raise Unavailable("the server is stopping")
            else:
                await changed.wait()

    def _answer(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._services:
            return _Status(status=_Status.SERVICE_UNKNOWN)
        return _Status(status=_Status.NOT_SERVING if self._draining else _Status.SERVING)

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
