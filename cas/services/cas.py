"""REAPI ContentAddressableStorage over the stores: blobs in batches, and whole directory trees.

What deals with chunks of blobs is in cas/services/chunks.py.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from google.rpc import status_pb2

from cas.compression import Compressor, compress, compressor_of_value, decompress
from cas.context import RequestContext
from cas.digest import MAX_SIZE_BYTES, Digest, function_for, parse_digests
from cas.errors import BlobNotFound, Code, DigestMismatch, MalformedRequest, StatusError
from cas.instances import Instances
from cas.services.chunks import Chunks
from cas.services.fields import digest_field
from cas.tree import levels
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

MAX_MESSAGE_BYTES: Final = 4 << 20
"""What every gRPC client receives unless told otherwise."""

MAX_BATCH_TOTAL_SIZE_BYTES: Final = 3 << 20
"""Blob bytes in one batch (REAPI, CacheCapabilities.max_batch_total_size_bytes). Clients add up the sizes of the blobs and
nothing else, so the framing of each blob has to fit in what is left of MAX_MESSAGE_BYTES."""

MAX_BATCH_BLOBS: Final = 6_000
"""Blobs in one batch. Each costs at most 170 bytes of framing in a reply: 133 for a digest of 128 hexadecimal digits, 11
for headers of data and entry, 20 for the status of one that is missing. 6,000 of them take 1,020,000 of the 1,048,576
bytes that are left. The Go SDK, which is the most eager, sends 4,000."""

MAX_INFLATED_BATCH_BYTES: Final = 64 << 20
"""What the compressed blobs of one batch may come to. The spec counts uncompressed bytes, some clients count what they
send: those are served too, but not with any amount of memory."""

IN_PLACE_BYTES: Final = 256 << 10
"""More is compressed and decompressed in a thread: it would hold up everyone else for 1 ms and longer."""

COMPRESSED_FROM_BYTES: Final = 512
"""Smaller blobs are not worth a compressed answer."""

DIGESTS_AT_ONCE: Final = 5_000
"""After so many digests, which take some ms, it is someone else's turn."""

TREE_PAGE_BYTES: Final = 1 << 20
"""Directories in one GetTreeResponse, encoded, unless a single one is larger."""

TREE_PAGE_DIRECTORIES: Final = 10_000
"""Directories in one GetTreeResponse if the client names no number."""

_PAGE_TOKEN: Final = re.compile(r"[1-9][0-9]{0,8}").fullmatch

_PREFERRED: Final = (Compressor.ZSTD, Compressor.DEFLATE, Compressor.BROTLI)
"""What is fastest, first."""

_OK: Final = status_pb2.Status()
_MISSING: Final = status_pb2.Status(code=int(Code.NOT_FOUND), message="no such blob")
"""Short, for it may be in an answer thousands of times, beside the digest."""


class ContentAddressableStorage:
    """build.bazel.remote.execution.v2.ContentAddressableStorage."""

    def __init__(self, instances: Instances, max_blob_bytes: int = 0) -> None:
        """`max_blob_bytes` is the largest blob that may be written or spliced, 0 for any size."""
        self._instances = instances
        self._max_blob_bytes = max_blob_bytes or MAX_SIZE_BYTES
        chunks = Chunks(instances, max_blob_bytes)
        self.SplitBlob = chunks.SplitBlob
        self.SpliceBlob = chunks.SpliceBlob

    async def FindMissingBlobs(
        self, request: re_pb2.FindMissingBlobsRequest, context: RequestContext
    ) -> re_pb2.FindMissingBlobsResponse:
        """Those of the blobs that are not in the store, each once; the others count as used now."""
        store = self._instances.readable(request.instance_name, context.identity).store
        function = function_for(request.digest_function)
        asked = request.blob_digests
        wanted: dict[Digest, None] = {}
        for start in range(0, len(asked), DIGESTS_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            digests = parse_digests(asked[start : start + DIGESTS_AT_ONCE], function, "blob_digests", start)
            wanted.update(dict.fromkeys(digests))
        missing = await store.find_missing(wanted) if wanted else ()
        response = re_pb2.FindMissingBlobsResponse()
        add = response.missing_blob_digests.add
        for place, digest in enumerate(missing, start=1):
            add(hash=digest.hash, size_bytes=digest.size_bytes)
            if place % DIGESTS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return response

    async def BatchUpdateBlobs(
        self, request: re_pb2.BatchUpdateBlobsRequest, context: RequestContext
    ) -> re_pb2.BatchUpdateBlobsResponse:
        """Store blobs; each has a status of its own. Raises MalformedRequest for a batch over the limits.

        A digest may be in a batch several times (buildbox-casd does that); each time is answered.
        """
        store = self._instances.readable(request.instance_name, context.identity).store
        entries = request.requests
        _check_batch(len(entries), (len(entry.data) for entry in entries))
        digests = parse_digests(
            [entry.digest for entry in entries], function_for(request.digest_function), "requests.digest"
        )
        inflated_bytes = sum(
            [digest.size_bytes for entry, digest in zip(entries, digests, strict=True) if entry.compressor]
        )
        if inflated_bytes > MAX_INFLATED_BATCH_BYTES:
            raise MalformedRequest(
                f"the compressed blobs of the batch have {inflated_bytes} bytes; {MAX_INFLATED_BATCH_BYTES} is the most"
            )
        if inflated_bytes <= IN_PLACE_BYTES:
            blobs, failed = _unpacked(entries, digests, self._max_blob_bytes)
        else:
            blobs, failed = await asyncio.to_thread(_unpacked, entries, digests, self._max_blob_bytes)
        failures = await store.write_many(list(blobs.items())) if blobs else {}
        response = re_pb2.BatchUpdateBlobsResponse()
        for place, (entry, digest) in enumerate(zip(entries, digests, strict=True)):
            failure = failed.get(place) or failures.get(digest)
            response.responses.add(digest=entry.digest, status=failure.to_proto() if failure is not None else _OK)
        return response

    async def BatchReadBlobs(
        self, request: re_pb2.BatchReadBlobsRequest, context: RequestContext
    ) -> re_pb2.BatchReadBlobsResponse:
        """Read blobs; each has a status of its own. Raises MalformedRequest for a batch over the limits."""
        store = self._instances.readable(request.instance_name, context.identity).store
        _check_batch(len(request.digests), (digest.size_bytes for digest in request.digests))
        digests = parse_digests(request.digests, function_for(request.digest_function), "digests")
        # Numbers that we do not know are what a newer client knows beside those that we do.
        compressor = next((c for c in _PREFERRED if c.value in request.acceptable_compressors), Compressor.IDENTITY)
        blobs = await store.read_many(list(dict.fromkeys(digests)))
        if compressor is Compressor.IDENTITY or sum(map(len, blobs.values())) <= IN_PLACE_BYTES:
            return _batch(digests, blobs, compressor)
        return await asyncio.to_thread(_batch, digests, blobs, compressor)

    async def GetTree(
        self, request: re_pb2.GetTreeRequest, context: RequestContext
    ) -> AsyncGenerator[re_pb2.GetTreeResponse, None]:
        """The directories below a root, breadth first, each different one once; those that are missing are left out.

        All pages come in one stream. A page token says how many directories came before it, so that any server can go on
        with it. Raises BlobNotFound if the root is missing, MalformedRequest for blobs that are no directories, trees past
        the limits of cas/tree.py, and page tokens that are none of ours.
        """
        store = self._instances.readable(request.instance_name, context.identity).store
        root = digest_field(request.root_digest, "root_digest", function_for(request.digest_function))
        if request.page_size < 0:
            raise MalformedRequest(f"page_size {request.page_size} is negative")
        if request.page_token and _PAGE_TOKEN(request.page_token) is None:
            raise MalformedRequest(f"page_token {request.page_token[:200]!r} was not given out by this server")
        skipped = int(request.page_token or 0)
        page_directories = min(request.page_size or TREE_PAGE_DIRECTORIES, TREE_PAGE_DIRECTORIES)
        page = re_pb2.GetTreeResponse()
        page_bytes = 0
        delivered = 0
        async with aclosing(levels(store, root)) as tree:
            async for level in tree:
                if root in level.missing:
                    raise BlobNotFound(root)
                for digest, directory in level.found.items():
                    delivered += 1
                    if delivered <= skipped:
                        continue
                    full = page_bytes + digest.size_bytes > TREE_PAGE_BYTES or len(page.directories) == page_directories
                    if full and page.directories:
                        page.next_page_token = str(delivered - 1)
                        yield page
                        page, page_bytes = re_pb2.GetTreeResponse(), 0
                    page.directories.append(directory.message)
                    page_bytes += digest.size_bytes
        if delivered < skipped:
            raise MalformedRequest(f"page_token {request.page_token} is past the {delivered} directories below {root}")
        yield page


def _check_batch(blobs: int, sizes_bytes: Iterable[int]) -> None:
    """Raises MalformedRequest for a batch over the limits (REAPI, BatchUpdateBlobs and BatchReadBlobs, "Errors").

    Counts first: a request has room for millions of empty entries, which are not worth a look each.
    """
    if blobs > MAX_BATCH_BLOBS:
        raise MalformedRequest(f"the batch has {blobs} blobs; {MAX_BATCH_BLOBS} is the most")
    size_bytes = sum(sizes_bytes)
    if size_bytes > MAX_BATCH_TOTAL_SIZE_BYTES:
        raise MalformedRequest(
            f"the blobs of the batch have {size_bytes} bytes; {MAX_BATCH_TOTAL_SIZE_BYTES} is the most"
        )


def _unpacked(
    entries: Sequence[re_pb2.BatchUpdateBlobsRequest.Request], digests: Sequence[Digest], max_blob_bytes: int
) -> tuple[dict[Digest, bytes], dict[int, StatusError]]:
    """The blobs of a batch, decompressed, and what is wrong with the others by their place in it."""
    blobs: dict[Digest, bytes] = {}
    failed: dict[int, StatusError] = {}
    for place, (entry, digest) in enumerate(zip(entries, digests, strict=True)):
        try:
            if digest.size_bytes > max_blob_bytes:
                raise MalformedRequest(f"blob {digest} is too large; {max_blob_bytes} bytes is the most")
            data = entry.data
            if entry.compressor:
                data = decompress(data, compressor_of_value(entry.compressor), digest.size_bytes)
            if blobs.setdefault(digest, data) != data:
                # Two contents for one digest: the store is to see the right one, and the other is to be told.
                if Digest.of(data, digest.function) != digest:
                    raise DigestMismatch(digest, Digest.of(data, digest.function))
                blobs[digest] = data
        except StatusError as failure:
            failed[place] = failure
    return blobs, failed


def _batch(
    digests: Sequence[Digest], blobs: Mapping[Digest, bytes], compressor: Compressor
) -> re_pb2.BatchReadBlobsResponse:
    """The answer for `digests`, in their order."""
    response = re_pb2.BatchReadBlobsResponse()
    for digest in digests:
        data = blobs.get(digest)
        if data is None:
            response.responses.add(digest=digest.to_proto(), status=_MISSING)
            continue
        if compressor is not Compressor.IDENTITY and len(data) >= COMPRESSED_FROM_BYTES:
            packed = compress(data, compressor)
            if len(packed) < len(data):
                response.responses.add(digest=digest.to_proto(), data=packed, compressor=compressor.value, status=_OK)
                continue
        response.responses.add(digest=digest.to_proto(), data=data, status=_OK)
    return response
