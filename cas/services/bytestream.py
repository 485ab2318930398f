"""google.bytestream.ByteStream over the stores: blobs one at a time, in messages.

Bazel moves every blob this way, so a blob that fits one message costs one call of the store and nothing else: no upload
session, no task, no thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Protocol

from cas.compression import Compression, Compressor, Decompression, compress, decompress
from cas.context import RequestContext
from cas.digest import Digest
from cas.errors import BlobNotFound, MalformedRequest, OffsetMismatch, OffsetOutOfRange
from cas.instances import Instances
from cas.resource_name import ResourceName, check_header, parse_read_name, parse_write_name
from cas.store import SMALL_BLOB_BYTES, BlobStore
from cas.uploads import Upload, UploadKey, Uploads
from protos.google.bytestream import bytestream_pb2

INLINE_BYTES = 64 << 10
"""Up to here data are compressed on the spot, which takes less than 1 ms; above, in a thread. Decompression stays on the
spot: it comes in steps of 64 KiB in and 1 MiB out."""


class OtherReader(Protocol):
    """Reads resources that are not blobs."""

    def claims(self, resource_name: str) -> bool:
        """Whether the name is of its kind. Asked for every Read, so it must be quick."""
        ...

    def read(
        self, request: bytestream_pb2.ReadRequest, context: RequestContext
    ) -> AsyncGenerator[bytes, None]:  # fmt: skip
        """The resource's bytes, as ByteStream.Read gives them: read_offset and read_limit are kept."""
        ...


class ByteStream:
    """google.bytestream.ByteStream."""

    def __init__(
        self, instances: Instances, uploads: Uploads, max_blob_bytes: int = 0, others: Sequence[OtherReader] = ()
    ) -> None:
        """`max_blob_bytes` is the largest blob that may be written, 0 for any size; `others` read what they claim."""
        self._instances = instances
        self._uploads = uploads
        self._max_blob_bytes = max_blob_bytes
        self._others = others

    async def Read(
        self, request: bytestream_pb2.ReadRequest, context: RequestContext
    ) -> AsyncGenerator[bytestream_pb2.ReadResponse, None]:
        """The bytes of a blob from read_offset, at most read_limit of them, in messages of about CHUNK_BYTES.

        Of a compressed read the offset counts bytes of the blob and a limit is refused (REAPI,
        ContentAddressableStorage). Raises MalformedRequest, BlobNotFound, OffsetOutOfRange.
        """
        check_header(context.metadata, request.resource_name)
        for other in self._others:
            if other.claims(request.resource_name):
                async with aclosing(other.read(request, context)) as pieces:
                    async for piece in pieces:
                        yield bytestream_pb2.ReadResponse(data=piece)
                return
        name = parse_read_name(request.resource_name)
        offset, limit = request.read_offset, request.read_limit
        if limit < 0:
            raise MalformedRequest(f"read_limit {limit} is negative")
        if limit and name.compressor is not Compressor.IDENTITY:
            raise MalformedRequest(f"read_limit {limit} cannot be kept by a compressed read; 0 was expected")
        if offset < 0:
            raise OffsetOutOfRange(f"read_offset {offset} is negative")
        store = self._instances.readable(name.instance_name, context.identity).store
        if name.digest.size_bytes <= SMALL_BLOB_BYTES:
            data = await _read_small(store, name.digest)
            if offset > len(data):
                raise OffsetOutOfRange(f"read_offset {offset} is past the end of {name.digest}")
            if offset or limit:
                data = data[offset : offset + limit] if limit else data[offset:]
            if name.compressor is not Compressor.IDENTITY:
                data = await _compressed(partial(compress, compressor=name.compressor), data)
            if data:
                yield bytestream_pb2.ReadResponse(data=data)
            return
        async with store.open(name.digest, offset, limit or None) as chunks:
            if name.compressor is Compressor.IDENTITY:
                async for chunk in chunks:
                    yield bytestream_pb2.ReadResponse(data=chunk)
                return
            compression = Compression(name.compressor)
            async for chunk in chunks:
                data = await _compressed(compression.feed, chunk)
                if data:
                    yield bytestream_pb2.ReadResponse(data=data)
            yield bytestream_pb2.ReadResponse(data=compression.finish())

    async def Write(
        self, requests: AsyncIterator[bytestream_pb2.WriteRequest], context: RequestContext
    ) -> bytestream_pb2.WriteResponse:
        """Store a blob. Returns early, without reading the rest, if the store has it already.

        Raises MalformedRequest, OffsetMismatch, DigestMismatch, UploadsFull, and what the store raises. A stream that
        ends without finish_write leaves nothing visible and can be taken up where it ended.
        """
        first = await anext(aiter(requests), None)
        if first is None:
            raise MalformedRequest("a write without a message: the first one names the resource")
        check_header(context.metadata, first.resource_name)
        name = parse_write_name(first.resource_name)
        digest = name.digest
        instance = self._instances.readable(name.instance_name, context.identity)
        if self._max_blob_bytes and digest.size_bytes > self._max_blob_bytes:
            raise MalformedRequest(f"blob {digest} is too large; {self._max_blob_bytes} bytes is the most")
        if not 0 <= first.write_offset <= digest.size_bytes:
            raise OffsetMismatch(f"write_offset {first.write_offset} is not within {digest}")
        identity = name.compressor is Compressor.IDENTITY
        alone = first.finish_write and first.write_offset == 0 and digest.size_bytes <= SMALL_BLOB_BYTES
        # The whole blob is here already: asking for it costs more than giving it to the store, which looks for itself.
        unasked = alone and identity
        if not (unasked or await instance.store.find_missing([digest])):
            return bytestream_pb2.WriteResponse(committed_size=digest.size_bytes if identity else -1)
        if alone:
            data = first.data
            if not identity:
                data = decompress(data, name.compressor, digest.size_bytes)
            failures = await instance.store.write_many([(digest, data)])
            if digest in failures:
                raise failures[digest]
            sent_bytes = len(first.data)
        else:
            key = UploadKey(name.instance_name, name.uuid, digest)
            async with self._uploads.open(key, instance.store, first.write_offset) as upload:
                sent_bytes = await _receive(first, requests, name, upload)
                await upload.finish()
        if identity or context.request_metadata.tool_details.tool_name == "siso":
            # Most clients expect the number of bytes that they sent. siso compares with the size of the blob.
            return bytestream_pb2.WriteResponse(committed_size=digest.size_bytes)
        return bytestream_pb2.WriteResponse(committed_size=first.write_offset + sent_bytes)

    async def QueryWriteStatus(
        self, request: bytestream_pb2.QueryWriteStatusRequest, context: RequestContext
    ) -> bytestream_pb2.QueryWriteStatusResponse:
        """How much of an upload has arrived: all of it if the blob exists, 0 if nothing is known of it.

        Counted in bytes of the blob whatever the compressor, as write_offset of a first message is. An upload never heard
        of is not NOT_FOUND: Bazel asks before it resumes, and starts at 0 when told 0.
        """
        name = parse_write_name(request.resource_name)
        store = self._instances.readable(name.instance_name, context.identity).store
        if not await store.find_missing([name.digest]):
            return bytestream_pb2.QueryWriteStatusResponse(committed_size=name.digest.size_bytes, complete=True)
        received_bytes = self._uploads.received_bytes(UploadKey(name.instance_name, name.uuid, name.digest))
        return bytestream_pb2.QueryWriteStatusResponse(committed_size=received_bytes, complete=False)


async def _compressed(compression: Callable[[bytes], bytes], data: bytes) -> bytes:
    """What `compression` makes of `data`, in a thread if they are many."""
    return compression(data) if len(data) <= INLINE_BYTES else await asyncio.to_thread(compression, data)


async def _read_small(store: BlobStore, digest: Digest) -> bytes:
    """A whole small blob. Raises BlobNotFound."""
    data = (await store.read_many([digest])).get(digest)
    if data is None:
        raise BlobNotFound(digest)
    return data


async def _receive(
    first: bytestream_pb2.WriteRequest,
    rest: AsyncIterator[bytestream_pb2.WriteRequest],
    name: ResourceName,
    upload: Upload,
) -> int:
    """Take the messages of one stream up to the one that says finish_write. Returns how many bytes they carried.

    Offsets go up by the bytes that were sent, compressed ones included, from wherever the first message started (REAPI,
    ContentAddressableStorage): for compressed uploads that adds compressed bytes to an offset in the blob.
    """
    decompression: Decompression | None = None
    if name.compressor is not Compressor.IDENTITY:
        decompression = Decompression(name.compressor, name.digest.size_bytes - first.write_offset)
    sent_bytes = 0
    message: bytestream_pb2.WriteRequest | None = first
    while message is not None:
        if message.resource_name and message.resource_name != first.resource_name:
            raise MalformedRequest(f"resource name changes to {message.resource_name[:200]!r} in the middle of a write")
        if message.write_offset != first.write_offset + sent_bytes:
            raise OffsetMismatch(
                f"write_offset {message.write_offset} of {name.digest}; {first.write_offset + sent_bytes} was expected"
            )
        data = message.data
        sent_bytes += len(data)
        if decompression is None:
            await upload.append(data)
        else:
            with upload.ended_by(MalformedRequest):
                for piece in decompression.feed(data):
                    await upload.append(piece)
                if message.finish_write:
                    decompression.finish()
        if message.finish_write:
            return sent_bytes
        message = await anext(rest, None)
    raise MalformedRequest(
        f"the write of {name.digest} ends after {upload.received_bytes} bytes without finish_write; it can be resumed"
    )
