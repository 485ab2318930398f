"""Splitting stored blobs: the chunks of a blob are made and stored when they are first asked for, whoever stored the blob.

What the chunks of a blob are is remembered, for a limited number of chunks, and made anew when it was forgotten or when
the store has dropped one of them. Of several requests for one blob the first does the work for all. Blobs are read and cut
piece by piece, in threads: a run holds a few MiB, however large the blob is.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from cas.chunking import ChunkingFunction, chunker
from cas.digest import Digest
from cas.errors import BlobNotFound, NotFound, StoreFull
from cas.hashing import DigestFunction
from cas.instances import Instance
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES, BlobStore

MAX_KEPT_CHUNKS: Final = 100_000
"""Chunks remembered, of all blobs together: some 30 MB, for some 50 GB of blobs."""

MAX_RUNS: Final = 4
"""Blobs that are split at the same time. Each holds up to 10 MiB and a thread; more would not be faster."""


class SplitKey(NamedTuple):
    """What an answer is remembered by. The parameters of the functions are fixed (cas/chunking.py)."""

    instance_name: str
    digest: Digest
    function: ChunkingFunction


class Splits:
    """The chunks of blobs, made on demand."""

    def __init__(self, *, max_kept_chunks: int = MAX_KEPT_CHUNKS, max_runs: int = MAX_RUNS) -> None:
        self._max_kept_chunks = max_kept_chunks
        self._runs = asyncio.Semaphore(max_runs)
        self._kept: OrderedDict[SplitKey, tuple[Digest, ...]] = OrderedDict()
        """Answers, the one used longest ago first."""
        self._kept_chunks = 0
        self._turns: dict[SplitKey, _Turn] = {}
        """The blobs that are asked for now."""

    @property
    def kept_chunks(self) -> int:
        """How many chunks are remembered."""
        return self._kept_chunks

    async def chunks_of(
        self, instance: Instance, digest: Digest, function: ChunkingFunction, max_chunks: int
    ) -> Sequence[Digest]:
        """The chunks that make up the blob, in order; all of them are stored.

        Raises BlobNotFound, NotFound for a blob of more than `max_chunks` chunks, StoreFull if the store does not keep all
        chunks.
        """
        store = instance.store
        if digest.size_bytes < function.whole_below_bytes:
            if await store.find_missing([digest]):
                raise BlobNotFound(digest)
            return (digest,)
        key = SplitKey(instance.name, digest, function)
        async with self._turn(key):
            chunks = self._kept.get(key, ())
            missing = await store.find_missing([digest, *chunks])
            if digest in missing:
                raise BlobNotFound(digest)
            if chunks and not missing:
                self._kept.move_to_end(key)
                return chunks
            async with self._runs:
                chunks = await split(store, digest, function, max_chunks)
            self._keep(key, chunks)
            return chunks

    @asynccontextmanager
    async def _turn(self, key: SplitKey) -> AsyncIterator[None]:
        """One caller at a time for each key. The next one goes on if the one before was cancelled."""
        turn = self._turns.setdefault(key, _Turn())
        turn.callers += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.callers -= 1
            if turn.callers == 0:
                del self._turns[key]

    def _keep(self, key: SplitKey, chunks: tuple[Digest, ...]) -> None:
        self._kept_chunks += len(chunks) - len(self._kept.pop(key, ()))
        self._kept[key] = chunks
        while self._kept_chunks > self._max_kept_chunks:
            _, forgotten = self._kept.popitem(last=False)
            self._kept_chunks -= len(forgotten)


class _Turn:
    """Who waits for the chunks of one blob."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.callers = 0


async def split(store: BlobStore, digest: Digest, function: ChunkingFunction, max_chunks: int) -> tuple[Digest, ...]:
    """Cut a stored blob and store the chunks; see Splits.chunks_of."""
    if digest.size_bytes > max_chunks * function.max_chunk_bytes:
        raise _too_many(digest, max_chunks)
    # In a thread, for the first one loads numpy.
    cutter = await asyncio.to_thread(chunker, function)
    digests: list[Digest] = []
    async with store.open(digest) as pieces:
        async for piece in pieces:
            await _store(store, await asyncio.to_thread(_fed, cutter.feed, piece, digest.function), digests)
            if len(digests) > max_chunks:
                raise _too_many(digest, max_chunks)
    await _store(store, await asyncio.to_thread(_named, cutter.finish(), digest.function), digests)
    if len(digests) > max_chunks:
        raise _too_many(digest, max_chunks)
    # A store with little room may have dropped the first chunks for the last.
    if missing := await store.find_missing(digests):
        raise StoreFull(f"the store has no room for all chunks of {digest}: {len(missing)} of {len(digests)} are gone")
    return tuple(digests)


def _fed(feed: Callable[[bytes], list[bytes]], piece: bytes, function: DigestFunction) -> list[tuple[Digest, bytes]]:
    return _named(feed(piece), function)


def _named(chunks: list[bytes], function: DigestFunction) -> list[tuple[Digest, bytes]]:
    return [(Digest.of(chunk, function), chunk) for chunk in chunks]


async def _store(store: BlobStore, chunks: Sequence[tuple[Digest, bytes]], digests: list[Digest]) -> None:
    """Store those chunks that the store lacks, and add all to `digests`. Raises what the store says of the first failure."""
    digests += [digest for digest, _ in chunks]
    blobs = dict(chunks)
    missing = await store.find_missing(blobs) if blobs else set()
    small = [(digest, blobs[digest]) for digest in missing if digest.size_bytes <= SMALL_BLOB_BYTES]
    if small:
        for failure in (await store.write_many(small)).values():
            raise failure
    for digest in missing:
        if digest.size_bytes > SMALL_BLOB_BYTES:
            await store.put(digest, _pieces(blobs[digest]))


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for position in range(0, len(data), CHUNK_BYTES):
        yield data[position : position + CHUNK_BYTES]


def _too_many(digest: Digest, max_chunks: int) -> NotFound:
    """REAPI, ContentAddressableStorage.SplitBlob, "Errors": this is how a server says that there is no answer."""
    return NotFound(f"blob {digest} has more than {max_chunks} chunks, which do not fit into one answer")
