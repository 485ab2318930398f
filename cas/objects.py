"""A store in an object store: what a large installation shares, and what is left when every other disk is lost.

    PREFIX/cas/sha256/ab/HASH-SIZE      one object a blob; the function and size are part of a blob's name (REAPI, Digest)

Nothing is ever deleted here: a lifecycle rule of the bucket deletes what is older than `expires_days`. What is used lives
on: a blob that is found to have passed half of its time is written anew, by copying, before it is told to be present.
So whoever is told of a blob has at least the other half of the time to use it, and a presence may be remembered for
`trusted_seconds` (cas/seen.py); a blob that someone deletes by hand is noticed when it is read, or after that time.

The bytes are not trusted, for others can write to a bucket: a blob that is read whole is checked against its digest, one
that turns out wrong counts as missing until it has been written again, and so does one of a wrong size. A large blob is
checked while it is passed on and its last piece is held back until the hash is right. Of a part of a large blob only the
size of the whole is checked; clients that resume a read check the whole themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Final

import structlog

from cas.at_once import for_each
from cas.bucket import Bucket, Found, ObjectNotFound
from cas.digest import Digest, hasher
from cas.disk_transfer import measured
from cas.errors import BlobNotFound, DigestMismatch, StatusError, Unavailable
from cas.hashing import hash_of
from cas.seen import Seen
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES, extent_of

log = structlog.get_logger()

AT_ONCE: Final = 64
"""Requests that one call makes at the same time."""
MAX_DAMAGED: Final = 100_000


def key_of(digest: Digest) -> str:
    """Where a blob lies in the bucket. The first digits spread the blobs: object stores divide their work by prefix."""
    return f"cas/{digest.function.name.lower()}/{digest.hash[:2]}/{digest.hash}-{digest.size_bytes}"


class ObjectStore:
    """A BlobStore in a bucket, which is the caller's to open and close. Raises Unavailable where the bucket does not answer."""

    def __init__(
        self,
        bucket: Bucket,
        *,
        expires_seconds: float = 0.0,
        trusted_seconds: float = 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`expires_seconds` after they were written the bucket deletes objects, never if it is 0."""
        self._bucket = bucket
        self._expires_seconds = expires_seconds
        self._trusted_seconds = trusted_seconds
        self._clock = clock
        self._seen = Seen(clock)
        self._damaged: dict[Digest, str] = {}
        """Which version of a blob's object holds other bytes. Others may write it again, so its name alone does not tell."""

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        missing: set[Digest] = set()

        async def look(digest: Digest) -> None:
            if not await self._find(digest):
                missing.add(digest)

        await for_each((digest for digest in dict.fromkeys(digests) if digest not in self._seen), look, AT_ONCE)
        return missing

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        blobs: dict[Digest, bytes] = {}

        async def take(digest: Digest) -> None:
            data = await self._read(digest)
            if data is not None:
                blobs[digest] = data

        await for_each(dict.fromkeys(digests), take, AT_ONCE)
        return blobs

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        failures: dict[Digest, StatusError] = {}

        # Also what is there, as far as we know: another server may know better, and have sent the client here.
        async def write(digest: Digest) -> None:
            data = wanted[digest]
            if len(data) != digest.size_bytes:
                failures[digest] = DigestMismatch(digest, f"{len(data)} bytes")
                return
            try:
                await self._bucket.put(key_of(digest), bytes(data))
            except StatusError as failure:
                failures[digest] = failure
            else:
                self._written(digest)

        wanted = dict(blobs)
        await for_each(wanted, write, AT_ONCE)
        return failures

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        async with aclosing(measured(digest, chunks)) as whole:
            if digest.size_bytes <= SMALL_BLOB_BYTES:
                await self._bucket.put(key_of(digest), b"".join([chunk async for chunk in whole]))
            else:
                await self._bucket.upload(key_of(digest), whole, digest.size_bytes)
        self._written(digest)

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        if digest.size_bytes <= SMALL_BLOB_BYTES:
            data = await self._read(digest)
            if data is None:
                raise BlobNotFound(digest)
            start, end = extent_of(digest, offset, limit)
            yield _cut(data[start:end])
            return
        if digest in self._damaged:
            await self._require(digest)
        try:
            start, end = extent_of(digest, offset, limit)
        except StatusError:
            await self._require(digest)
            raise
        if start == end:
            await self._require(digest)
            yield _cut(b"")
            return
        try:
            async with self._bucket.open(key_of(digest), start, end) as (found, pieces):
                if found.size_bytes != digest.size_bytes:
                    self._lose(digest, found, f"{found.size_bytes} bytes")
                    raise BlobNotFound(digest)
                whole = end - start == digest.size_bytes
                async with aclosing(
                    self._checked(digest, found, pieces) if whole else _all(pieces, end - start)
                ) as checked:
                    yield checked
        except ObjectNotFound:
            self._seen.forget(digest)
            raise BlobNotFound(digest) from None

    async def _require(self, digest: Digest) -> None:
        if not await self._find(digest):
            raise BlobNotFound(digest)

    async def _find(self, digest: Digest) -> bool:
        """Whether the blob is there, made young again if it is old."""
        try:
            found = await self._bucket.head(key_of(digest))
            if found.size_bytes != digest.size_bytes:
                self._lose(digest, found, f"{found.size_bytes} bytes")
                return False
            if self._damaged.get(digest) == found.version:
                return False
            self._damaged.pop(digest, None)
            if self._expires_seconds and self._clock() >= found.modified + self._expires_seconds / 2:
                return await self._renew(digest, found)
        except ObjectNotFound:
            return False
        self._note(digest, found.modified)
        return True

    async def _renew(self, digest: Digest, found: Found) -> bool:
        try:
            await self._bucket.renew(key_of(digest))
        except Unavailable:
            # It is not gone yet, and will be tried again; near its end it is safer to have it uploaded anew.
            return self._clock() < found.modified + self._expires_seconds * 3 / 4
        self._note(digest, self._clock())
        return True

    async def _read(self, digest: Digest) -> bytes | None:
        try:
            data, found = await self._bucket.get(key_of(digest), digest.size_bytes, digest.size_bytes)
        except ObjectNotFound:
            self._seen.forget(digest)
            return None
        if found.size_bytes != digest.size_bytes or len(data) != digest.size_bytes:
            self._lose(digest, found, f"{found.size_bytes} bytes")
            return None
        if await _hash(digest, data) != digest.hash:
            self._lose(digest, found, "other bytes")
            return None
        return data

    async def _checked(self, digest: Digest, found: Found, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """`pieces`, of which the last one comes only if all of them are the blob. Raises BlobNotFound otherwise."""
        hash_so_far, size_bytes, held = hasher(digest.function, digest.size_bytes), 0, b""
        loop = asyncio.get_running_loop()
        async for piece in pieces:
            if held:
                yield held
            held = piece
            size_bytes += len(piece)
            await loop.run_in_executor(None, hash_so_far.update, piece)
        if size_bytes < digest.size_bytes:
            raise Unavailable(f"the object store broke off after {size_bytes} bytes of blob {digest}")
        if size_bytes != digest.size_bytes or hash_so_far.hexdigest() != digest.hash:
            self._lose(digest, found, "other bytes")
            raise BlobNotFound(digest)
        yield held

    def _written(self, digest: Digest) -> None:
        self._damaged.pop(digest, None)
        self._note(digest, self._clock())

    def _note(self, digest: Digest, modified: float) -> None:
        until = self._clock() + self._trusted_seconds
        self._seen.note(digest, min(until, modified + self._expires_seconds / 2) if self._expires_seconds else until)

    def _lose(self, digest: Digest, found: Found, what: str) -> None:
        log.warning(
            "an object is not the blob that it is named after", bucket=self._bucket.name, key=key_of(digest), has=what
        )
        self._seen.forget(digest)
        self._damaged[digest] = found.version
        if len(self._damaged) > MAX_DAMAGED:
            self._damaged.pop(next(iter(self._damaged)))


async def _hash(digest: Digest, data: bytes) -> str:
    if len(data) <= 64 << 10:  # about as long as the hop to a thread
        return hash_of(data, digest.function)
    return await asyncio.get_running_loop().run_in_executor(None, hash_of, data, digest.function)


async def _all(pieces: AsyncIterator[bytes], size_bytes: int) -> AsyncGenerator[bytes, None]:
    """`pieces`, raising Unavailable if they are fewer bytes than were asked for."""
    left = size_bytes
    async for piece in pieces:
        left -= len(piece)
        yield piece
    if left:
        raise Unavailable(f"the object store broke off {left} bytes before the end")


async def _cut(data: bytes) -> AsyncGenerator[bytes, None]:
    for position in range(0, len(data), CHUNK_BYTES):
        yield data[position : position + CHUNK_BYTES]
