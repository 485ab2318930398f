"""`rexec logs`: what an operation's command has printed, and prints. Speaks only the published protocol: Operations to find
out where the operation is, ByteStream for what its metadata or its result names."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.longrunning import operations_pb2, operations_proto_pb2
from google.protobuf.message import DecodeError

from cas.connection_settings import ConnectionSettings
from cas.digest import Digest, function_for, parse_digest
from cas.errors import StatusError
from cas.remote import RemoteStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2
from protos.methods import Method, methods_of
from rexec.connection import CannotConnect, headers, open_channel

if TYPE_CHECKING:
    from grpc import aio

QUIET_SECONDS: Final = 1.0
"""Long enough for an answer from afar."""

CALL_SECONDS: Final = 30.0

_ACTION: Final = re.compile(r"[0-9a-f]{32,128}/[0-9]{1,19}").fullmatch

_OPERATIONS = methods_of(operations_proto_pb2, "Operations")
_EXECUTION = methods_of(re_pb2, "Execution")
_BYTESTREAM = methods_of(bytestream_pb2, "ByteStream")


class NoLogs(Exception):
    """The logs cannot be shown; the text says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to show."""

    operation: str
    """Its name, or the digest of its action as HASH/SIZE."""
    instance_name: str = ""
    """Where to look for an action's operation."""
    outputs: tuple[str, ...] = ("stdout", "stderr")
    follow: bool = False
    """Until the action has ended; else what there is so far."""
    quiet_seconds: float = QUIET_SECONDS
    """Without `follow`: what there is so far ends where nothing comes for so long. The protocol does not tell."""


Write = Callable[[str, bytes], None]
"""Takes "stdout" or "stderr" and bytes of it."""


async def show_logs(server: str, connection: ConnectionSettings, wanted: Wanted, write: Write) -> bool:
    """Write what is wanted; whether the action has ended. Raises NoLogs."""
    try:
        shown = headers(server, connection)
        opened = open_channel(server, connection)
    except CannotConnect as error:
        raise NoLogs(str(error)) from error
    async with opened as channel:
        try:
            return await _Logs(channel, shown, wanted, write).show()
        except grpc.aio.AioRpcError as failure:
            raise NoLogs(f"{failure.code().name}: {failure.details()}") from failure
        except StatusError as failure:
            raise NoLogs(str(failure)) from failure


class _Logs:
    def __init__(self, channel: aio.Channel, shown: Iterable[tuple[str, str]], wanted: Wanted, write: Write) -> None:
        self._channel = channel
        self._headers = shown
        self._wanted = wanted
        self._write = write

    async def show(self) -> bool:
        operation = await self._operation()
        metadata = _metadata(operation)
        if not operation.done and not metadata.stdout_stream_name and self._wanted.follow:
            operation = await self._started(operation.name)
            metadata = _metadata(operation)
        if operation.done:
            await self._show_result(operation, metadata)
            return True
        names = {"stdout": metadata.stdout_stream_name, "stderr": metadata.stderr_stream_name}
        live = [(output, names[output]) for output in self._wanted.outputs if names[output]]
        if not live and metadata.stage == re_pb2.ExecutionStage.EXECUTING:
            raise NoLogs("this server does not show what a running action prints")
        ended = await asyncio.gather(*(self._show_stream(output, name) for output, name in live))
        return bool(ended) and all(ended)

    async def _operation(self) -> operations_pb2.Operation:
        if not _ACTION(self._wanted.operation):
            request = operations_pb2.GetOperationRequest(name=self._wanted.operation)
            found: operations_pb2.Operation = await self._unary(_OPERATIONS["GetOperation"], request)
            return found
        hash_, _, size = self._wanted.operation.partition("/")
        action = parse_digest(hash_, int(size)).to_proto()
        for stage in ("EXECUTING", "QUEUED", "COMPLETED"):
            async with aclosing(self._listed(f"stage={stage}")) as operations:
                async for operation in operations:
                    if _metadata(operation).action_digest == action:
                        return operation
        raise NoLogs(f"no operation runs or ran action {self._wanted.operation}, as far as the server remembers")

    async def _listed(self, stages: str) -> Any:
        token = ""
        while True:
            request = operations_pb2.ListOperationsRequest(
                name=self._wanted.instance_name, filter=stages, page_size=1000, page_token=token
            )
            page: operations_pb2.ListOperationsResponse = await self._unary(_OPERATIONS["ListOperations"], request)
            for operation in page.operations:
                yield operation
            token = page.next_page_token
            if not token:
                return

    async def _started(self, name: str) -> operations_pb2.Operation:
        """The operation once its command may run, or has ended."""
        request = re_pb2.WaitExecutionRequest(name=name)
        async with aclosing(self._stream(_EXECUTION["WaitExecution"], request)) as operations:
            async for operation in operations:
                if operation.done or _metadata(operation).stdout_stream_name:
                    return operation
        raise NoLogs(f"the server stopped telling about {name}")

    async def _show_stream(self, output: str, name: str) -> bool:
        """Write a live log; whether its end was reached."""
        request = bytestream_pb2.ReadRequest(resource_name=name)
        quiet_seconds = None if self._wanted.follow else self._wanted.quiet_seconds
        async with aclosing(self._stream(_BYTESTREAM["Read"], request)) as pieces:
            while True:
                try:
                    async with asyncio.timeout(quiet_seconds):
                        piece = await anext(pieces, None)
                except TimeoutError:
                    return False
                if piece is None:
                    return True
                self._write(output, piece.data)

    async def _show_result(
        self, operation: operations_pb2.Operation, metadata: re_pb2.ExecuteOperationMetadata
    ) -> None:
        response = re_pb2.ExecuteResponse()
        try:
            operation.response.Unpack(response)
        except DecodeError as error:
            raise NoLogs(f"the server's answer about {operation.name} cannot be read") from error
        instance_name = operation.name.rpartition("operations/")[0].removesuffix("/") or self._wanted.instance_name
        store = RemoteStore(self._channel, instance_name, self._headers)
        for output in self._wanted.outputs:
            raw: bytes = getattr(response.result, f"{output}_raw")
            if raw:
                self._write(output, raw)
            elif response.result.HasField(f"{output}_digest"):
                named = getattr(response.result, f"{output}_digest")
                async with store.open(Digest.from_proto(named, function_for(metadata.digest_function))) as chunks:
                    async for chunk in chunks:
                        self._write(output, chunk)

    async def _unary(self, method: Method, request: Any) -> Any:
        call: Any = self._channel.unary_unary(
            method.path,
            request_serializer=method.request_type.SerializeToString,
            response_deserializer=method.response_type.FromString,
        )
        return await call(request, timeout=CALL_SECONDS, metadata=tuple(self._headers))

    async def _stream(self, method: Method, request: Any) -> Any:
        callable_: Any = self._channel.unary_stream(
            method.path,
            request_serializer=method.request_type.SerializeToString,
            response_deserializer=method.response_type.FromString,
        )
        call = callable_(request, metadata=tuple(self._headers))
        try:
            answers: AsyncIterator[Any] = aiter(call)
            async for answer in answers:
                yield answer
        finally:
            call.cancel()


def _metadata(operation: operations_pb2.Operation) -> re_pb2.ExecuteOperationMetadata:
    metadata = re_pb2.ExecuteOperationMetadata()
    operation.metadata.Unpack(metadata)
    return metadata
