"""The one interface of storage.

Small blobs and large blobs take different roads (ARCHITECTURE.md, decision 2): `read_many` and `write_many` move whole
small blobs in one call, without a task, a thread hop or a temporary file for each; `open` and `put` move one blob of any
size in pieces. Every store offers both roads for every blob; callers choose by size, at `SMALL_BLOB_BYTES`.

Every implementation and every composition passes tests/contracts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cas.digest import Digest
from cas.errors import MalformedRequest, OffsetOutOfRange, StatusError

SMALL_BLOB_BYTES = 1 << 20
"""Blobs up to this size are moved whole. Batch requests are bounded by 4 MiB messages, and one blob of 1 MiB is the most
that a caller may hold in memory without having been asked."""

CHUNK_BYTES = 1 << 20
"""The size of the pieces that large blobs are moved in: a thread hop costs about 0.1 ms, so smaller ones do not pay."""


class BlobStore(Protocol):
    """Blobs by digest. A store may forget blobs at will, but never shows bytes that are not what the digest names.

    Stores do not check what they are given unless they say so; `Verified` does (cas/compose.py).
    """

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        """Those of `digests` that the store does not have. The others count as used now, and are kept longer."""
        ...

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        """The whole blobs among `digests` that the store has; what it has not is left out. For small blobs."""
        ...

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        """Store whole small blobs. Returns the failures by digest; a blob that is not named there is durable."""
        ...

    def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The blob's bytes from `offset`, at most `limit` of them, in pieces of at most CHUNK_BYTES.

        Entering raises BlobNotFound, and OffsetOutOfRange if `offset` is past the end; an offset equal to the size gives
        nothing. While it is entered the blob stays readable even if the store forgets it.
        """
        ...

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        """Store a blob of any size. It becomes visible when it is whole, or not at all: if `chunks` raises or the call is
        cancelled nothing is left behind. Raises StoreFull, and DigestMismatch where the number of bytes is wrong."""
        ...


def extent_of(digest: Digest, offset: int, limit: int | None) -> tuple[int, int]:
    """Where a read of `digest` starts and ends (exclusive).

    Raises OffsetOutOfRange unless 0 <= offset <= size (google.bytestream.ReadRequest.read_offset), MalformedRequest for a
    negative limit.
    """
    if not 0 <= offset <= digest.size_bytes:
        raise OffsetOutOfRange(f"offset {offset} is outside of blob {digest}")
    if limit is None:
        return offset, digest.size_bytes
    if limit < 0:
        raise MalformedRequest(f"a read limit of {limit} bytes is negative")
    return offset, min(digest.size_bytes, offset + limit)
