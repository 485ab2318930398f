"""Stores that wrap stores: `Verified` guards what is written, `Tiered` puts a fast store before a slow one.

The outermost store of an instance is a `Verified`; the stores within may then trust what they are given.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Self

import structlog

from cas.digest import EMPTY, Digest, hasher
from cas.errors import BlobNotFound, DigestMismatch, StatusError
from cas.hashing import hash_of
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES, BlobStore, extent_of

log = structlog.get_logger()

HASH_INLINE_BYTES = 256 << 10
"""Hashing this much takes about 0.15 ms with SHA-256, as long as the hop to a thread; more would hold up the event loop."""

LEAD_CHUNKS = 8
"""How many pieces a fill may be ahead of the reader it streams to before it stops waiting for him."""


class Verified:
    """A store that takes only bytes which are what their digest names, and that always has the empty blob.

    Raises DigestMismatch from put; write_many returns one for each blob that is wrong. The blobs within are whole but not
    yet checked while they arrive, so the chunks raise before they end if they are wrong, and nothing becomes visible. A
    blob that exists already may be accepted without a look at the bytes sent.
    """

    def __init__(self, inner: BlobStore) -> None:
        self._inner = inner

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        return await self._inner.find_missing(
            [digest for digest in digests if digest.size_bytes or not is_empty(digest)]
        )

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        blobs = await self._inner.read_many([digest for digest in digests if not is_empty(digest)])
        for digest in digests:
            if is_empty(digest):
                blobs[digest] = b""
        return blobs

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        if sum(len(data) for _, data in blobs) <= HASH_INLINE_BYTES:
            failures = _mismatches(blobs)
        else:
            failures = await asyncio.get_running_loop().run_in_executor(None, _mismatches, blobs)
        good = [(digest, data) for digest, data in blobs if digest not in failures and not is_empty(digest)]
        if good:
            failures |= await self._inner.write_many(good)
        return failures

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        if is_empty(digest):
            extent_of(digest, offset, limit)
            yield _pieces(b"")
            return
        async with self._inner.open(digest, offset, limit) as pieces:
            yield pieces

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        if not is_empty(digest):
            async with aclosing(_verified(digest, chunks)) as verified:
                await self._inner.put(digest, verified)
            return
        async for _ in _verified(digest, chunks):
            pass


def is_empty(digest: Digest) -> bool:
    """Whether it is the empty blob, which always exists (REAPI, ContentAddressableStorage)."""
    return digest.size_bytes == 0 and digest == EMPTY[digest.function]


def _mismatches(blobs: Sequence[tuple[Digest, bytes]]) -> dict[Digest, StatusError]:
    failures: dict[Digest, StatusError] = {}
    for digest, data in blobs:
        if len(data) != digest.size_bytes:
            failures[digest] = DigestMismatch(digest, f"{len(data)} bytes")
        elif (actual := hash_of(data, digest.function)) != digest.hash:
            failures[digest] = DigestMismatch(digest, Digest(actual, len(data), digest.function))
    return failures


async def _verified(digest: Digest, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """`chunks`, raising DigestMismatch as soon as they are too many, and before they end if they are not the blob.

    A long chunk is hashed in a thread while the inner store writes it.
    """
    loop = asyncio.get_running_loop()
    hash_so_far = hasher(digest.function, digest.size_bytes)
    size_bytes = 0
    hashing: asyncio.Future[object] | None = None
    async for chunk in chunks:
        size_bytes += len(chunk)
        if size_bytes > digest.size_bytes:
            raise DigestMismatch(digest, f"at least {size_bytes} bytes")
        if hashing is not None:
            await hashing
            hashing = None
        if len(chunk) > HASH_INLINE_BYTES:
            hashing = loop.run_in_executor(None, hash_so_far.update, chunk)
        else:
            hash_so_far.update(chunk)
        yield chunk
        del chunk  # or it would stay in memory for as long as a slow client takes to send the next
    if hashing is not None:
        await hashing
    actual = Digest(hash_so_far.hexdigest(), size_bytes, digest.function)
    if actual != digest:
        raise DigestMismatch(digest, actual)


class Tiered:
    """Read from a fast store, filling it from a slow one that has the last word. Use it as an async context manager.

    What the slow store lacks is missing even if the fast one has it: the slow store is the one that others share, and the
    one that must keep the blobs alive. Written is to the slow store first; small blobs go to the fast one as well, large
    ones get there when they are first read. Failures of the fast store to take a blob are no failures.

    A large blob that several want at once is read from the slow store once. The first reader gets the pieces as they
    arrive, unless he is slower than the fill; he and the others read what they still want from the fast store afterwards.
    """

    def __init__(self, fast: BlobStore, slow: BlobStore) -> None:
        self._fast = fast
        self._slow = slow
        self._fills: dict[Digest, _Fill] = {}
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for fill in self._fills.values():
            fill.task.cancel()
        await self._tasks.__aexit__(None, None, None)
        for fill in self._fills.values():
            # Cancelled before it began, so that it could not say so itself.
            fill.ended.set()
            fill.changed.set()

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        return await self._slow.find_missing(digests)

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        blobs = await self._fast.read_many(digests)
        rest = [digest for digest in dict.fromkeys(digests) if digest not in blobs]
        if rest and (found := await self._slow.read_many(rest)):
            await self._fast.write_many(list(found.items()))
            blobs |= found
        return blobs

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        failures = await self._slow.write_many(blobs)
        await self._fast.write_many([(digest, data) for digest, data in blobs if digest not in failures])
        return failures

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        await self._slow.put(digest, chunks)

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        async with AsyncExitStack() as stack:
            try:
                pieces = await stack.enter_async_context(self._fast.open(digest, offset, limit))
            except BlobNotFound:
                pieces = await self._open_slow(stack, digest, offset, limit)
            yield pieces

    async def _open_slow(
        self, stack: AsyncExitStack, digest: Digest, offset: int, limit: int | None
    ) -> AsyncIterator[bytes]:
        if digest.size_bytes <= SMALL_BLOB_BYTES:
            data = (await self.read_many([digest])).get(digest)
            if data is None:
                raise BlobNotFound(digest)
            start, end = extent_of(digest, offset, limit)
            return _pieces(data[start:end])
        if offset != 0 or (limit is not None and limit < digest.size_bytes):
            # A part of a large blob: fetching all of it could take far longer than the caller's part.
            return await stack.enter_async_context(self._slow.open(digest, offset, limit))
        fill = self._fills.get(digest)
        if fill is not None:
            await fill.ended.wait()
            return await self._open_rest(stack, digest, 0)
        fill = _Fill()
        fill.task = self._tasks.create_task(self._run(fill, digest))
        self._fills[digest] = fill
        # Called whenever the reader goes away, so that the fill no longer collects pieces for him.
        stack.callback(fill.abandon)
        await fill.changed.wait()
        if fill.failure is not None:
            raise fill.failure
        return self._along(stack, fill, digest)

    async def _open_rest(self, stack: AsyncExitStack, digest: Digest, offset: int) -> AsyncIterator[bytes]:
        try:
            return await stack.enter_async_context(self._fast.open(digest, offset))
        except BlobNotFound:
            return await stack.enter_async_context(self._slow.open(digest, offset))

    async def _along(self, stack: AsyncExitStack, fill: _Fill, digest: Digest) -> AsyncIterator[bytes]:
        position = 0
        while True:
            while fill.pieces:
                piece = fill.pieces.popleft()
                position += len(piece)
                yield piece
            if fill.ended.is_set() or fill.lagging:
                break
            fill.changed.clear()
            await fill.changed.wait()
        if position == digest.size_bytes:
            return
        await fill.ended.wait()
        async for piece in await self._open_rest(stack, digest, position):
            yield piece

    async def _run(self, fill: _Fill, digest: Digest) -> None:
        try:
            async with self._slow.open(digest) as pieces:
                fill.changed.set()
                await self._fast.put(digest, fill.copied(pieces))
        except BlobNotFound as reason:
            fill.failure = reason
        except StatusError as reason:
            log.info("fast store was not filled", digest=str(digest), reason=str(reason))
        except Exception:
            # The edge of this task: the reader asks the slow store himself, and gets its answer or its failure.
            log.exception("filling the fast store failed", digest=str(digest))
        finally:
            del self._fills[digest]
            fill.ended.set()
            fill.changed.set()


class _Fill:
    """One large blob on its way from the slow store to the fast one, and to the reader who asked first."""

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()
        self.lagging = False
        """The reader did not keep up, or is gone: he gets no more pieces from here."""
        self.failure: BlobNotFound | None = None
        self.changed = asyncio.Event()
        self.ended = asyncio.Event()

    def abandon(self) -> None:
        self.lagging = True
        self.pieces.clear()

    async def copied(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self.lagging = self.lagging or len(self.pieces) >= LEAD_CHUNKS
            if not self.lagging:
                self.pieces.append(chunk)
            self.changed.set()
            yield chunk


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for position in range(0, len(data), CHUNK_BYTES):
        yield data[position : position + CHUNK_BYTES]
