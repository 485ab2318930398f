"""Blobs in memory: the store of tests, of the fast tier, and of a server that may forget everything when it stops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from cas.digest import Digest
from cas.errors import BlobNotFound, DigestMismatch, StatusError, StoreFull
from cas.ledger import Ledger
from cas.store import CHUNK_BYTES, extent_of

ENTRY_BYTES = 512
"""Charged for each blob beside its content: the digest, the ledger's entry and the bytes object. Without it, blobs of a
few bytes each would take many times the memory that `max_bytes` allows."""


class MemoryStore:
    """A bounded BlobStore that forgets the blobs used longest ago."""

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        """`max_bytes` bounds the content of all blobs plus ENTRY_BYTES for each."""
        self.blobs: dict[Digest, bytes] = {}
        """What is held now. For reading only."""
        self._ledger = Ledger(max_bytes, charge=lambda size_bytes: size_bytes + ENTRY_BYTES)

    @property
    def used_bytes(self) -> int:
        """Room taken by the blobs held."""
        return self._ledger.used_bytes

    @property
    def max_bytes(self) -> int:
        """The bound."""
        return self._ledger.max_bytes

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        return self._ledger.find_missing(digests, 0.0)

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        return {digest: self.blobs[digest] for digest in digests if self._ledger.touch(digest, 0.0) is not None}

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        failures: dict[Digest, StatusError] = {}
        held = {digest for digest, _ in blobs}
        for digest, data in blobs:
            if self._ledger.touch(digest, 0.0) is not None:
                continue
            if len(data) != digest.size_bytes:
                failures[digest] = DigestMismatch(digest, f"{len(data)} bytes")
                continue
            try:
                self._ledger.require_room(digest)
                self._reserve(self._ledger.charge(digest.size_bytes), held)
            except StoreFull as full:
                failures[digest] = full
                continue
            self.blobs[digest] = bytes(data)
            self._ledger.keep(digest, 0.0)
        return failures

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        if self._ledger.touch(digest, 0.0) is None:
            raise BlobNotFound(digest)
        start, end = extent_of(digest, offset, limit)
        yield _pieces(self.blobs[digest], start, end)

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        if self._ledger.touch(digest, 0.0) is not None:
            return
        self._ledger.require_room(digest)
        data = bytearray()
        reserved = self._ledger.charge(0)
        self._reserve(reserved)
        try:
            async for chunk in chunks:
                if len(data) + len(chunk) > digest.size_bytes:
                    raise DigestMismatch(digest, f"at least {len(data) + len(chunk)} bytes")
                # Room is taken as the bytes arrive: a size that is only claimed must not push others out.
                self._reserve(len(chunk))
                reserved += len(chunk)
                data += chunk
                del chunk
            if len(data) != digest.size_bytes:
                raise DigestMismatch(digest, f"{len(data)} bytes")
            if digest in self._ledger:
                return
            self.blobs[digest] = bytes(data)
            self._ledger.keep(digest, 0.0)
            reserved = 0
        finally:
            self._ledger.release(reserved)

    def _reserve(self, amount_bytes: int, held: Container[Digest] = ()) -> None:
        for victim in self._ledger.reserve(amount_bytes, held):
            del self.blobs[victim]


async def _pieces(data: bytes, start: int, end: int) -> AsyncIterator[bytes]:
    for position in range(start, end, CHUNK_BYTES):
        yield data[position : min(position + CHUNK_BYTES, end)]
