"""REAPI ContentAddressableStorage, the part that deals with chunks of blobs: SplitBlob and SpliceBlob."""

from __future__ import annotations

import asyncio
from typing import Final

from cas.chunking import function_of_value
from cas.chunking_splice import Splices
from cas.chunking_split import Splits
from cas.context import RequestContext
from cas.digest import Digest, function_for, parse_digests
from cas.errors import MalformedRequest
from cas.hashing import DigestFunction
from cas.instances import Instances
from cas.services.fields import digest_field
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

MAX_LIST_BYTES: Final = (4 << 20) - 1024
"""A list of chunks has to fit into a message of the size that every gRPC client receives."""

ENTRY_BYTES: Final = 12
"""One digest in a list takes at most so much beside the characters of its hash."""

DIGESTS_AT_ONCE: Final = 5_000
"""After so many digests, which take some ms, it is someone else's turn."""


def max_chunks(function: DigestFunction) -> int:
    """The most chunks that one message can list: with SHA-256 some 55,000, for blobs of up to 30 GB."""
    return MAX_LIST_BYTES // (function.hash_length + ENTRY_BYTES)


class Chunks:
    """SplitBlob and SpliceBlob of build.bazel.remote.execution.v2.ContentAddressableStorage."""

    def __init__(
        self,
        instances: Instances,
        max_blob_bytes: int = 0,
        *,
        splits: Splits | None = None,
        splices: Splices | None = None,
    ) -> None:
        """`max_blob_bytes` is the largest blob that may be spliced, 0 for any size."""
        self._instances = instances
        self._max_blob_bytes = max_blob_bytes
        self._splits = splits or Splits()
        self._splices = splices or Splices()

    async def SplitBlob(self, request: re_pb2.SplitBlobRequest, context: RequestContext) -> re_pb2.SplitBlobResponse:
        """The chunks of a blob, by the function that the client prefers or, if it is unknown here, FastCDC.

        Raises BlobNotFound, NotFound if the chunks are too many for one answer, StoreFull if the store cannot hold them.
        """
        instance = self._instances.readable(request.instance_name, context.identity)
        digest = digest_field(request.blob_digest, "blob_digest", function_for(request.digest_function))
        function = function_of_value(request.chunking_function)
        chunks = await self._splits.chunks_of(instance, digest, function, max_chunks(digest.function))
        response = re_pb2.SplitBlobResponse(chunking_function=function.value)
        add = response.chunk_digests.add
        for place, chunk in enumerate(chunks, start=1):
            add(hash=chunk.hash, size_bytes=chunk.size_bytes)
            if place % DIGESTS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return response

    async def SpliceBlob(self, request: re_pb2.SpliceBlobRequest, context: RequestContext) -> re_pb2.SpliceBlobResponse:
        """Store the blob that the chunks make up. It does not matter how they were cut.

        Raises ChunksMissing, MalformedRequest for a list that cannot be right, DigestMismatch for one that is not,
        StoreFull; AlreadyExists if the blob is there and some of the chunks are not.
        """
        store = self._instances.readable(request.instance_name, context.identity).store
        digest = digest_field(request.blob_digest, "blob_digest", function_for(request.digest_function))
        if self._max_blob_bytes and digest.size_bytes > self._max_blob_bytes:
            raise MalformedRequest(f"blob {digest} is too large; {self._max_blob_bytes} bytes is the most")
        most = max_chunks(digest.function)
        if len(request.chunk_digests) > most:
            raise MalformedRequest(f"chunk_digests has {len(request.chunk_digests)} chunks; {most} is the most")
        chunks: list[Digest] = []
        for start in range(0, len(request.chunk_digests), DIGESTS_AT_ONCE):
            await asyncio.sleep(0)
            part = request.chunk_digests[start : start + DIGESTS_AT_ONCE]
            # The chunks have the blob's function also if no field names one (REAPI, SpliceBlobRequest.digest_function).
            chunks += parse_digests(part, digest.function, "chunk_digests", start)
        await self._splices.splice(store, digest, chunks)
        return re_pb2.SpliceBlobResponse(blob_digest=digest.to_proto())
