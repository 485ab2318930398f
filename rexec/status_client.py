"""Asking a server what goes on (rexec.scheduler.v1.Status), and saying what to do if it does not answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import grpc
from google.protobuf.message import Message

from cas.connection_settings import ConnectionSettings
from protos.methods import Method, methods_of
from protos.rexec.scheduler.v1 import fleet_pb2, status_pb2
from rexec.connection import CannotConnect, headers, open_channel
from rexec.status_text import harmless

if TYPE_CHECKING:
    from grpc import aio

CALL_SECONDS: Final = 15.0
"""Long enough for an answer from afar."""

PAGE: Final = 500

_STATUS = methods_of(status_pb2, "Status")
_FLEET = methods_of(fleet_pb2, "Fleet")

_TO_LOOK = "does not tell you that: it takes the right to execute, in each instance that is asked about"
_TO_DRAIN = "does not let you: it takes the right to operate, in each instance that the workers serve"

Paged = TypeVar("Paged", status_pb2.FindOperationsRequest, status_pb2.FindWorkersRequest)


class CannotShow(Exception):
    """The server does not tell; the text says why, and what to do."""


class StatusClient:
    """A StatusSource (rexec/scheduler/status.py) at the other end of a channel. Its methods raise CannotShow."""

    def __init__(self, channel: aio.Channel, server: str, shown: Iterable[tuple[str, str]]) -> None:
        self._channel = channel
        self._server = server
        self._headers = shown

    async def overview(self, request: status_pb2.GetOverviewRequest) -> status_pb2.Overview:
        return cast(status_pb2.Overview, await self._ask(_STATUS["GetOverview"], request))

    async def operations(self, request: status_pb2.FindOperationsRequest) -> status_pb2.FindOperationsResponse:
        return cast(status_pb2.FindOperationsResponse, await self._ask(_STATUS["FindOperations"], request))

    async def workers(self, request: status_pb2.FindWorkersRequest) -> status_pb2.FindWorkersResponse:
        return cast(status_pb2.FindWorkersResponse, await self._ask(_STATUS["FindWorkers"], request))

    async def drain(self, request: fleet_pb2.DrainWorkersRequest) -> fleet_pb2.DrainWorkersResponse:
        answer = await self._ask(_FLEET["DrainWorkers"], request, _TO_DRAIN)
        return cast(fleet_pb2.DrainWorkersResponse, answer)

    async def every_operation(
        self, request: status_pb2.FindOperationsRequest, most: int | None = None
    ) -> AsyncIterator[status_pb2.FoundOperation]:
        """All pages, or the first so many operations."""
        left = most
        while left is None or left > 0:
            request.page_size = PAGE if left is None else min(PAGE, left)
            page = await self.operations(request)
            for operation in page.operations:
                yield operation
            if left is not None:
                left -= len(page.operations)
            if not page.next_page_token or not page.operations:
                return
            request.page_token = page.next_page_token

    async def every_worker(self, request: status_pb2.FindWorkersRequest) -> AsyncIterator[status_pb2.FoundWorker]:
        """All pages."""
        request.page_size = PAGE
        while True:
            page = await self.workers(request)
            for worker in page.workers:
                yield worker
            if not page.next_page_token or not page.workers:
                return
            request.page_token = page.next_page_token

    async def _ask(self, method: Method, request: Message, refused: str = _TO_LOOK) -> Message:
        call: Any = self._channel.unary_unary(
            method.path,
            request_serializer=method.request_type.SerializeToString,
            response_deserializer=method.response_type.FromString,
        )
        try:
            answer: Message = await call(request, timeout=CALL_SECONDS, metadata=tuple(self._headers))
        except grpc.aio.AioRpcError as failure:
            raise CannotShow(explained(failure.code(), failure.details() or "", self._server, refused)) from failure
        except (OSError, ValueError) as error:  # the token file has become unreadable
            raise CannotShow(f"no token to show: {error}") from error
        return answer


def explained(code: grpc.StatusCode, details: str, server: str, refused: str = _TO_LOOK) -> str:
    """What a failed call means, and what to do about it. `refused` is what to say to one who may not."""
    said = harmless(details)[:500]
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return f"{server} is not reached ({said}); does a rexec server run there? --server says where to look"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"{server} has not answered within {CALL_SECONDS:g} s; try again, and look at the server's log if it stays so"
        case grpc.StatusCode.UNIMPLEMENTED:
            return f"{server} does not tell what goes on: it is older than this program, or not rexec"
        case grpc.StatusCode.UNAUTHENTICATED:
            return f"{server} wants to know who asks: show a token with --token-file, or a certificate with --tls-certificate"
        case grpc.StatusCode.PERMISSION_DENIED:
            return f"{server} {refused}"
        case _:
            return f"{server} refuses: {code.name}: {said}"


@asynccontextmanager
async def status_client(server: str, connection: ConnectionSettings) -> AsyncIterator[StatusClient]:
    """A client of the server at grpc[s]://HOST:PORT. Raises CannotShow."""
    try:
        shown = headers(server, connection)
        opened = open_channel(server, connection)
    except CannotConnect as error:
        raise CannotShow(str(error)) from error
    async with opened as channel:
        yield StatusClient(channel, server, shown)
