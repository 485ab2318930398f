"""A client of the server under test: one channel, the methods by their names, and blobs up and down."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.longrunning import operations_proto_pb2
from google.protobuf.message import Message
from grpc import aio

from integration.conformance.blobs import SHA256, digest_of, key, resource, show
from integration.conformance.case import NotSupported
from integration.conformance.expect import expect_code, fail
from integration.conformance.options import Options
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2
from protos.methods import Method, methods_of

METHODS: dict[str, Method] = {
    name: method
    for source, service in (
        (re_pb2, "Capabilities"),
        (re_pb2, "ContentAddressableStorage"),
        (re_pb2, "ActionCache"),
        (re_pb2, "Execution"),
        (bytestream_pb2, "ByteStream"),
        (operations_proto_pb2, "Operations"),
    )
    for name, method in methods_of(source, service).items()
}
"""The methods that the kit uses; no two services have one of the same name."""

CALL_SECONDS = 30.0
CHUNK_BYTES = 1 << 20
BATCH_BYTES = 2 << 20

Metadata = tuple[tuple[str, str | bytes], ...]


class Client:
    """One channel to the server, with what it said it can do."""

    def __init__(self, channel: aio.Channel, options: Options, metadata: Metadata = ()) -> None:
        self.channel = channel
        self.options = options
        self.instance = options.instance
        self.metadata = metadata
        self.capabilities = re_pb2.ServerCapabilities()
        self.parks = True
        """Whether the server lets an action wait that asks for what no worker has."""

    @property
    def cache(self) -> re_pb2.CacheCapabilities:
        return self.capabilities.cache_capabilities

    @property
    def execution(self) -> re_pb2.ExecutionCapabilities:
        return self.capabilities.execution_capabilities

    @property
    def serves_2_0(self) -> bool:
        """Whether clients are served that speak nothing newer than API 2.0."""
        return self.capabilities.low_api_version.minor == 0

    def call(self, name: str, request: Message, *, metadata: Metadata = (), timeout: float = CALL_SECONDS) -> Any:
        """A call with one request: awaitable if one answer comes, else iterable.

        The instance name of the run is filled in if the request has room for one and none is there.
        """
        method = METHODS[name]
        if self.instance and "instance_name" in request.DESCRIPTOR.fields_by_name:
            named: Any = request
            named.instance_name = named.instance_name or self.instance
        kind: Any = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        open_call = kind(
            method.path,
            request_serializer=method.request_type.SerializeToString,
            response_deserializer=method.response_type.FromString,
        )
        return open_call(request, timeout=timeout, metadata=(*self.metadata, *metadata))

    def sending(self, name: str, *, metadata: Metadata = (), timeout: float = CALL_SECONDS) -> Any:
        """A call that takes a stream of requests, with write() and done_writing(); await it for the answer."""
        method = METHODS[name]
        open_call: Any = self.channel.stream_unary(
            method.path,
            request_serializer=method.request_type.SerializeToString,
            response_deserializer=method.response_type.FromString,
        )
        return open_call(timeout=timeout, metadata=(*self.metadata, *metadata))

    async def raw(self, path: str, data: bytes, *, timeout: float = CALL_SECONDS) -> bytes:
        """Any bytes to a method with one request and one answer."""
        open_call: Any = self.channel.unary_unary(path)
        answer: bytes = await open_call(data, timeout=timeout, metadata=self.metadata)
        return answer

    # Names.

    def blob_name(self, digest: re_pb2.Digest, *, function: int = SHA256, compressor: int = 0) -> str:
        """The resource name for ByteStream.Read."""
        return self._prefixed(resource(digest, function=function, compressor=compressor))

    def upload_name(self, digest: re_pb2.Digest, *, function: int = SHA256, compressor: int = 0) -> str:
        """A resource name for ByteStream.Write, new with each call."""
        return self._prefixed(f"uploads/{uuid.uuid4()}/{resource(digest, function=function, compressor=compressor)}")

    def _prefixed(self, name: str) -> str:
        return f"{self.instance}/{name}" if self.instance else name

    # Blobs.

    async def put(self, *blobs: bytes | Message, function: int = SHA256) -> list[re_pb2.Digest]:
        """Upload blobs and messages; their digests in the same order."""
        contents = [blob if isinstance(blob, bytes) else blob.SerializeToString(deterministic=True) for blob in blobs]
        digests = [digest_of(data, function) for data in contents]
        batch: dict[tuple[str, int], tuple[re_pb2.Digest, bytes]] = {}
        batch_bytes = 0
        for digest, data in zip(digests, contents, strict=True):
            if not data:
                continue  # the empty blob is everywhere
            if len(data) > BATCH_BYTES:
                await self.write(data, digest=digest, function=function)
                continue
            if batch_bytes + len(data) > BATCH_BYTES or len(batch) >= 1000:
                await self._put_batch(batch.values(), function)
                batch, batch_bytes = {}, 0
            batch[key(digest)] = digest, data
            batch_bytes += len(data)
        if batch:
            await self._put_batch(batch.values(), function)
        return digests

    async def _put_batch(self, blobs: Iterable[tuple[re_pb2.Digest, bytes]], function: int) -> None:
        request = re_pb2.BatchUpdateBlobsRequest(digest_function=function)  # type: ignore[arg-type]
        for digest, data in blobs:
            request.requests.add(digest=digest, data=data)
        answer = await self.call("BatchUpdateBlobs", request)
        for response in answer.responses:
            expect_code(response.status, f"upload of {show(response.digest)}", 0)

    async def write(
        self,
        data: bytes,
        *,
        digest: re_pb2.Digest | None = None,
        function: int = SHA256,
        name: str | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        metadata: Metadata = (),
    ) -> int:
        """ByteStream.Write of the whole of `data`; the committed_size that came back.

        `name` is the resource name if it is not to be the usual one, and then says what `data` are.
        """
        if name is None:
            name = self.upload_name(digest or digest_of(data, function), function=function)
        call = self.sending("Write", metadata=metadata)
        for start in range(0, max(1, len(data)), chunk_bytes):
            piece = data[start : start + chunk_bytes]
            message = bytestream_pb2.WriteRequest(
                resource_name=name if start == 0 else "",
                write_offset=start,
                data=piece,
                finish_write=start + len(piece) == len(data),
            )
            if not await sent(call, message):
                break
        if not call.done():
            await call.done_writing()
        answer = await call
        return int(answer.committed_size)

    async def read(self, name: str, *, offset: int = 0, limit: int = 0) -> bytes:
        """ByteStream.Read to its end."""
        request = bytestream_pb2.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
        return b"".join([answer.data async for answer in self.call("Read", request)])

    async def fetch(self, digest: re_pb2.Digest, *, function: int = SHA256) -> bytes:
        """A blob."""
        return await self.read(self.blob_name(digest, function=function)) if digest.size_bytes else b""

    async def missing(self, digests: Sequence[re_pb2.Digest], *, function: int = SHA256) -> set[tuple[str, int]]:
        """FindMissingBlobs."""
        request = re_pb2.FindMissingBlobsRequest(blob_digests=digests, digest_function=function)  # type: ignore[arg-type]
        answer = await self.call("FindMissingBlobs", request)
        return {key(digest) for digest in answer.missing_blob_digests}

    async def expect_stored(self, *digests: re_pb2.Digest) -> None:
        missing = await self.missing(digests)
        if missing:
            fail(f"expected {len(digests)} blobs to be stored, FindMissingBlobs names {sorted(missing)[:3]}")

    async def expect_missing(self, *digests: re_pb2.Digest) -> None:
        missing = await self.missing(digests)
        for digest in digests:
            if key(digest) not in missing:
                fail(f"expected {show(digest)} not to be stored, FindMissingBlobs says that it is")

    async def cached(self, action: re_pb2.Digest, **options: Any) -> re_pb2.ActionResult:
        """GetActionResult. Raises AioRpcError."""
        request = re_pb2.GetActionResultRequest(action_digest=action, **options)
        result: re_pb2.ActionResult = await self.call("GetActionResult", request)
        return result

    # What the server says it can do.

    def require_function(self, function: int) -> None:
        if function not in self.cache.digest_functions:
            raise NotSupported(f"digest function {re_pb2.DigestFunction.Value.Name(function)} is not advertised")

    def compressors(self) -> list[int]:
        """Those of ByteStream. Raises NotSupported if there are none."""
        found = [number for number in self.cache.supported_compressors if number != re_pb2.Compressor.IDENTITY]
        if not found:
            raise NotSupported("no compressor is advertised")
        return list(found)

    async def connect(self) -> None:
        """Learn what the server can do."""
        self.capabilities = await self.call("GetCapabilities", re_pb2.GetCapabilitiesRequest())


async def sent(call: Any, message: Message) -> bool:
    """Send a message of a stream; False if the server has answered already."""
    if call.done():
        return False
    try:
        await call.write(message)
    except (asyncio.InvalidStateError, aio.AioRpcError):
        return False
    return True


@asynccontextmanager
async def connected(options: Options, *, token: str | None = None) -> AsyncIterator[Client]:
    """A client over a connection of its own. `token` replaces that of the run."""
    limits: list[tuple[str, Any]] = [
        # Large requests are sent on purpose; answers above gRPC's default of 4 MiB must not come.
        ("grpc.max_send_message_length", 256 << 20),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_metadata_size", 16 << 10),
    ]
    if options.tls:
        channel = aio.secure_channel(options.target, _credentials(options), options=limits)
    else:
        channel = aio.insecure_channel(options.target, options=limits)
    bearer = options.token if token is None else token
    async with channel:
        yield Client(channel, options, (("authorization", f"Bearer {bearer}"),) if bearer else ())


def _credentials(options: Options) -> grpc.ChannelCredentials:
    authority = Path(options.tls_ca).read_bytes() if options.tls_ca else None
    return grpc.ssl_channel_credentials(authority)
