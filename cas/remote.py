"""A store that is another REAPI server: what workers read and write through, and what a server can be chained to.

Small blobs travel in BatchReadBlobs and BatchUpdateBlobs, filled up to the size that the server takes; large ones through
ByteStream. A call that fails with UNAVAILABLE is tried again for `retry_seconds`, so that a restart of the server is a
delay and not a failure; `put` is not, because its chunks are gone.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from cas.digest import Digest
from cas.errors import BlobNotFound, Code, DigestMismatch, StatusError, StoreFull, Unavailable, from_status
from cas.resource_name import HEADER
from cas.store import CHUNK_BYTES
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2
from protos.methods import methods_of

if TYPE_CHECKING:  # types-grpcio makes these generic, the library does not
    ReadCall = aio.UnaryStreamCall[bytestream_pb2.ReadRequest, bytestream_pb2.ReadResponse]
    WriteCall = aio.StreamUnaryCall[bytestream_pb2.WriteRequest, bytestream_pb2.WriteResponse]

_T = TypeVar("_T")
FindMissing = Callable[[re_pb2.FindMissingBlobsRequest], Awaitable[re_pb2.FindMissingBlobsResponse]]
BatchRead = Callable[[re_pb2.BatchReadBlobsRequest], Awaitable[re_pb2.BatchReadBlobsResponse]]
BatchUpdate = Callable[[re_pb2.BatchUpdateBlobsRequest], Awaitable[re_pb2.BatchUpdateBlobsResponse]]
_CAS = methods_of(re_pb2, "ContentAddressableStorage")
_BYTESTREAM = methods_of(bytestream_pb2, "ByteStream")

MAX_BATCH_BYTES = 3 << 20
"""How much one batch carries. Messages of 4 MiB are refused by default, and every server offers at least this much."""

MAX_BATCH_DIGESTS = 10_000
"""How many digests one FindMissingBlobs or BatchReadBlobs names: about 0.75 MiB of request."""

CALL_SECONDS = 60.0
"""How long one unary call may take before it is given up and tried again."""

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class RemoteStore:
    """The CAS of the server behind `channel`, for one instance name."""

    def __init__(
        self,
        channel: aio.Channel,
        instance_name: str = "",
        headers: Iterable[tuple[str, str]] = (),
        retry_seconds: float = 30.0,
    ) -> None:
        self._instance_name = instance_name
        self._prefix = f"{instance_name}/" if instance_name else ""
        self._headers = headers  # iterated for each call, because a token may be replaced meanwhile
        self._retry_seconds = retry_seconds
        self._channel = channel
        self._find_missing: FindMissing = self._unary("FindMissingBlobs")
        self._batch_read: BatchRead = self._unary("BatchReadBlobs")
        self._batch_update: BatchUpdate = self._unary("BatchUpdateBlobs")
        self._read: Any = channel.unary_stream(
            _BYTESTREAM["Read"].path,
            request_serializer=bytestream_pb2.ReadRequest.SerializeToString,
            response_deserializer=bytestream_pb2.ReadResponse.FromString,
        )
        self._write: Any = channel.stream_unary(
            _BYTESTREAM["Write"].path,
            request_serializer=bytestream_pb2.WriteRequest.SerializeToString,
            response_deserializer=bytestream_pb2.WriteResponse.FromString,
        )

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        """See BlobStore."""
        missing: set[Digest] = set()
        for group in _grouped(list(dict.fromkeys(digests)), max_bytes=None):
            request = re_pb2.FindMissingBlobsRequest(
                instance_name=self._instance_name,
                blob_digests=[digest.to_proto() for digest in group],
                digest_function=cast(re_pb2.DigestFunction.Value, group[0].function.value),
            )
            response = await self._retried(partial(self._find_missing, request))
            missing.update(Digest.from_proto(digest, group[0].function) for digest in response.missing_blob_digests)
        return missing

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        """See BlobStore. Blobs too large for a batch are read one by one."""
        found: dict[Digest, bytes] = {}
        for group in _grouped(list(dict.fromkeys(digests)), MAX_BATCH_BYTES):
            if group[0].size_bytes > MAX_BATCH_BYTES:
                await self._read_whole(group[0], found)
                continue
            request = re_pb2.BatchReadBlobsRequest(
                instance_name=self._instance_name,
                digests=[digest.to_proto() for digest in group],
                digest_function=cast(re_pb2.DigestFunction.Value, group[0].function.value),
            )
            response = await self._retried(partial(self._batch_read, request))
            for entry in response.responses:
                if entry.status.code == Code.OK:
                    found[Digest.from_proto(entry.digest, group[0].function)] = entry.data
                elif entry.status.code != Code.NOT_FOUND:
                    raise from_status(entry.status.code, entry.status.message)
        return found

    async def _read_whole(self, digest: Digest, found: dict[Digest, bytes]) -> None:
        try:
            async with self.open(digest) as chunks:
                found[digest] = b"".join([chunk async for chunk in chunks])
        except BlobNotFound:
            pass

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        """See BlobStore. Blobs too large for a batch are written one by one."""
        data_of = dict(blobs)
        failures: dict[Digest, StatusError] = {
            digest: DigestMismatch(digest, f"{len(data)} bytes")
            for digest, data in blobs
            if len(data) != digest.size_bytes
        }
        for group in _grouped([digest for digest in data_of if digest not in failures], MAX_BATCH_BYTES):
            if group[0].size_bytes > MAX_BATCH_BYTES:
                try:
                    await self.put(group[0], _pieces(data_of[group[0]]))
                except StatusError as error:
                    failures[group[0]] = error
                continue
            request = re_pb2.BatchUpdateBlobsRequest(
                instance_name=self._instance_name,
                requests=[
                    re_pb2.BatchUpdateBlobsRequest.Request(digest=digest.to_proto(), data=data_of[digest])
                    for digest in group
                ],
                digest_function=cast(re_pb2.DigestFunction.Value, group[0].function.value),
            )
            response = await self._retried(partial(self._batch_update, request))
            for entry in response.responses:
                if entry.status.code != Code.OK:
                    digest = Digest.from_proto(entry.digest, group[0].function)
                    failures[digest] = _refused(from_status(entry.status.code, entry.status.message))
        return failures

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """See BlobStore. A stream that breaks after its first piece raises Unavailable."""
        if limit == 0:
            limit, offset = None, max(offset, digest.size_bytes)  # ReadRequest.read_limit 0 means no limit
        request = bytestream_pb2.ReadRequest(
            resource_name=f"{self._prefix}{digest.blob_name()}", read_offset=offset, read_limit=limit or 0
        )

        async def first() -> tuple[ReadCall, bytes]:
            call: ReadCall = self._read(request, metadata=self._headers_for(request.resource_name))
            message = await call.read()
            # At the end of a stream read() gives EOF, and only the code tells an empty blob from a failure.
            if message is aio.EOF:
                if await call.code() is not grpc.StatusCode.OK:
                    raise await _failure(call)
                return call, b""
            return call, cast(bytestream_pb2.ReadResponse, message).data

        try:
            call, head = await self._retried(first)
        except StatusError as error:
            if error.code is Code.NOT_FOUND:
                raise BlobNotFound(digest) from error
            raise
        try:
            yield _rest(call, head)
        finally:
            call.cancel()

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        """See BlobStore."""
        name = f"{self._prefix}uploads/{uuid.uuid4()}/{digest.blob_name()}"
        await self._connected()
        call: WriteCall = self._write(metadata=self._headers_for(name))
        try:
            # The server may answer before the end: it has the blob already, or refuses it.
            async for message in _write_requests(name, digest, chunks):
                if not await _sent(call, message):
                    break
            else:
                await call.done_writing()
            response: bytestream_pb2.WriteResponse = await call
        except aio.AioRpcError as error:
            raise _busy(error) or _refused(_converted(error)) from error
        finally:
            call.cancel()
        if response.committed_size not in (digest.size_bytes, -1):
            raise DigestMismatch(digest, f"{response.committed_size} bytes committed")

    def _headers_for(self, resource_name: str) -> tuple[tuple[str, str], ...]:
        """Those of a ByteStream call: proxies may route by the resource name (REAPI, ContentAddressableStorage)."""
        carried = resource_name.isascii() and resource_name.isprintable()
        return (*self._headers, *(((HEADER, resource_name),) if carried else ()))

    def _unary(self, name: str) -> Any:
        method = _CAS[name]
        call: Any = self._channel.unary_unary(
            method.path,
            request_serializer=method.request_type.SerializeToString,
            response_deserializer=method.response_type.FromString,
        )
        return lambda request: call(request, metadata=tuple(self._headers), timeout=CALL_SECONDS)

    async def _connected(self) -> None:
        try:
            async with asyncio.timeout(self._retry_seconds):
                await self._channel.channel_ready()
        except TimeoutError as error:
            raise Unavailable(f"no connection to the server for {self._retry_seconds:g} s") from error

    async def _retried(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        return await retried(attempt, self._retry_seconds)


async def retried(attempt: Callable[[], Awaitable[_T]], retry_seconds: float) -> _T:
    """What `attempt` returns. While it fails with UNAVAILABLE it is made again for `retry_seconds`. Raises StatusError."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + retry_seconds
    delay = 0.05
    while True:
        try:
            return await attempt()
        except (aio.AioRpcError, Unavailable) as error:
            failure = _converted(error) if isinstance(error, aio.AioRpcError) else error
            if failure.code is not Code.UNAVAILABLE or loop.time() + delay > give_up:
                raise failure from error
        await asyncio.sleep(delay)
        delay = min(delay * 2, 2.0)


def _grouped(digests: Sequence[Digest], max_bytes: int | None) -> Iterable[list[Digest]]:
    """Groups of one digest function each, bounded in number and (with `max_bytes`) in the sum of their sizes.

    A blob larger than `max_bytes` is a group of its own.
    """
    group: list[Digest] = []
    total = 0
    for digest in digests:
        size = digest.size_bytes if max_bytes is not None else 0
        full = len(group) >= MAX_BATCH_DIGESTS or (max_bytes is not None and total + size > max_bytes)
        if group and (full or digest.function is not group[0].function):
            yield group
            group, total = [], 0
        group.append(digest)
        total += size
    if group:
        yield group


def _cut(data: bytes) -> Iterable[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


async def _write_requests(
    name: str, digest: Digest, chunks: AsyncIterator[bytes]
) -> AsyncIterator[bytestream_pb2.WriteRequest]:
    """The messages of one Write. Raises DigestMismatch before the last one if `chunks` have not the size of the blob.

    One piece is held back, so that the last message can say that it is the last.
    """
    offset = 0
    held = b""
    async for chunk in chunks:
        for piece in _cut(chunk):
            if held:
                yield bytestream_pb2.WriteRequest(resource_name=name, write_offset=offset, data=held)
            offset += len(held)
            held = piece
            if offset + len(held) > digest.size_bytes:
                raise DigestMismatch(digest, f"{offset + len(held)} bytes or more")
    if offset + len(held) != digest.size_bytes:
        raise DigestMismatch(digest, f"{offset + len(held)} bytes")
    yield bytestream_pb2.WriteRequest(resource_name=name, write_offset=offset, data=held, finish_write=True)


async def _sent(call: WriteCall, message: bytestream_pb2.WriteRequest) -> bool:
    """Send a message; False if the server has ended the call.

    Not through `call.write`: when the stream ends under it, that puts INTERNAL in the place of the status that the server
    sent and that is about to arrive (grpc.aio, _StreamRequestMixin._write). What it wraps has no public name.
    """
    inner: Any = call
    await inner._metadata_sent.wait()
    if call.done():
        return False
    try:
        await inner._cython_call.send_serialized_message(message.SerializeToString())
    except aio.InternalError:
        return False
    return True


def _refused(failure: StatusError) -> StatusError:
    """Why a blob was not taken, in a store's terms."""
    return StoreFull(str(failure)) if failure.code is Code.RESOURCE_EXHAUSTED else failure


def _busy(error: aio.AioRpcError) -> Unavailable | None:
    """What a server that is full of calls or uploads says with RetryInfo: its store may have room."""
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    try:
        status = status_pb2.Status.FromString(details if isinstance(details, bytes) else b"")
    except DecodeError:
        return None
    waits = any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
    return Unavailable(error.details() or "the server is busy") if waits else None


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for piece in _cut(data):
        yield piece


async def _rest(call: ReadCall, head: bytes) -> AsyncIterator[bytes]:
    if head:
        yield head
    try:
        while (message := await call.read()) is not aio.EOF:
            data = cast(bytestream_pb2.ReadResponse, message).data
            if data:
                yield data
        if await call.code() is not grpc.StatusCode.OK:
            raise await _failure(call)
    except aio.AioRpcError as error:
        raise _converted(error) from error


async def _failure(call: ReadCall) -> StatusError:
    return _known((await call.code()).value[0], await call.details() or "")


def _converted(error: aio.AioRpcError) -> StatusError:
    return _known(error.code().value[0], error.details() or error.code().name)


def _known(code: int, text: str) -> StatusError:
    """The StatusError of a failed call.

    A deadline is ours and not the action's, so it becomes Unavailable; so do UNKNOWN, INTERNAL and the like: to try again
    is all that can be done about them.
    """
    return Unavailable(text) if code == Code.DEADLINE_EXCEEDED else from_status(code, text)
