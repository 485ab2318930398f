"""How fast this machine cuts blobs into chunks, and what a SplitBlob holds in memory.

    python -m bench.chunking [--mebibytes N]

MB/s (1e6 bytes of blob per second of CPU time, the best of three turns, so that other load on the machine matters little):
of each chunking function, of the same rule applied byte by byte in Python, and of a whole SplitBlob and SpliceBlob over a
store on disk and over one in memory, which includes hashing every chunk twice and writing it. The data are random, fed in
pieces of CHUNK_BYTES. The last lines are the peak of the memory that Python and numpy allocate during a SplitBlob over a
store on disk, for two sizes of blob.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import process_time

import structlog

from cas.action_cache import MemoryActionCache
from cas.chunking import FAST_CDC_AVERAGE_BYTES, ChunkingFunction, chunker
from cas.chunking_fastcdc import MASKS, NORMALIZATION
from cas.chunking_gear import gear_table
from cas.chunking_splice import Splices
from cas.chunking_split import Splits
from cas.compose import Verified
from cas.digest import Digest, hasher
from cas.disk import DiskStore
from cas.hashing import DigestFunction
from cas.instances import Instance
from cas.memory import MemoryStore
from cas.store import CHUNK_BYTES, BlobStore

TURNS = 3
PLAIN_BYTES = 4 << 20
"""What the loop over bytes gets: more takes too long."""

MANY = 1 << 20
"""More chunks than any blob here has."""


def best_seconds(work: Callable[[], object]) -> float:
    """The least CPU time of TURNS runs."""
    seconds = []
    for _ in range(TURNS):
        start = process_time()
        work()
        seconds.append(process_time() - start)
    return min(seconds)


def pieces_of(size_bytes: int) -> Iterator[bytes]:
    """Random pieces, the same each time."""
    rng = random.Random(54)
    return (rng.randbytes(CHUNK_BYTES) for _ in range(size_bytes // CHUNK_BYTES))


def cut(function: ChunkingFunction, pieces: list[bytes]) -> int:
    """How many chunks `pieces` have."""
    cutter = chunker(function)
    return sum([len(cutter.feed(piece)) for piece in pieces]) + len(cutter.finish())


def cut_plainly(data: bytes) -> int:
    """How many positions FastCDC would cut at, with a loop over the bytes."""
    table = [int(value) for value in gear_table()]
    mask = MASKS[FAST_CDC_AVERAGE_BYTES.bit_length() - 1 + NORMALIZATION]
    count = 0
    gear = 0
    for byte in data:
        gear = ((gear << 1) + table[byte]) & 0xFFFFFFFFFFFFFFFF
        if not gear & mask:
            count += 1
    return count


async def sent(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def stored(store: BlobStore, size_bytes: int) -> Digest:
    """A blob that is in the store."""
    hash_so_far = hasher(DigestFunction.SHA256, size_bytes)
    for piece in pieces_of(size_bytes):
        hash_so_far.update(piece)
    digest = Digest(hash_so_far.hexdigest(), size_bytes)
    await store.put(digest, sent(pieces_of(size_bytes)))
    return digest


@asynccontextmanager
async def on_disk() -> AsyncIterator[BlobStore]:
    with tempfile.TemporaryDirectory() as directory:
        async with DiskStore(Path(directory) / "cas", 4 << 30) as store:
            yield Verified(store)


@asynccontextmanager
async def in_memory() -> AsyncIterator[BlobStore]:
    yield Verified(MemoryStore(4 << 30))


async def measure_services(size_bytes: int) -> None:
    """Print how fast blobs are split and spliced, chunks stored."""
    for opener in (in_memory, on_disk):
        for function in ChunkingFunction:
            async with opener() as store, opener() as other:
                digest = await stored(store, size_bytes)
                instance = Instance("", store, MemoryActionCache())
                start = process_time()
                chunks = await Splits().chunks_of(instance, digest, function, MANY)
                split_seconds = process_time() - start
                for chunk in chunks:
                    async with store.open(chunk) as pieces:
                        await other.put(chunk, pieces)
                start = process_time()
                await Splices().splice(other, digest, chunks)
                splice_seconds = process_time() - start
            speeds = f"{size_bytes / 1e6 / split_seconds:8.0f} {size_bytes / 1e6 / splice_seconds:8.0f}"
            print(f"{function.name + ' ' + opener.__name__:26} {speeds}")


async def measure_memory(size_bytes: int) -> None:
    """Print the peak of what is allocated while a blob is split."""
    for function in ChunkingFunction:
        for blob_bytes in (size_bytes // 4, size_bytes):
            async with on_disk() as store:
                digest = await stored(store, blob_bytes)
                chunker(function)
                tracemalloc.start()
                await Splits().chunks_of(Instance("", store, MemoryActionCache()), digest, function, MANY)
                _, peak_bytes = tracemalloc.get_traced_memory()
                tracemalloc.stop()
            print(f"{function.name:16} blob of {blob_bytes >> 20:5} MiB: {peak_bytes / (1 << 20):6.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast this machine cuts blobs into chunks.")
    parser.add_argument("--mebibytes", type=int, default=128, help="size of the blob (default: 128)")
    size_bytes = parser.parse_args().mebibytes << 20
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    pieces = list(pieces_of(size_bytes))
    print(f"{'cut alone':26} {'MB/s':>8}")
    for function in ChunkingFunction:
        print(f"{function.name:26} {size_bytes / 1e6 / best_seconds(partial(cut, function, pieces)):8.0f}")
    plain = b"".join(pieces[: PLAIN_BYTES // CHUNK_BYTES])
    print(f"{'byte by byte':26} {len(plain) / 1e6 / best_seconds(partial(cut_plainly, plain)):8.0f}")
    del pieces, plain
    print(f"\n{'with storing, MB/s':26} {'split':>8} {'splice':>8}")
    asyncio.run(measure_services(size_bytes))
    print("\npeak memory")
    asyncio.run(measure_memory(size_bytes))


if __name__ == "__main__":
    main()
