"""CPU microseconds per operation of each store, in one process, without gRPC.

    python -m bench.stores [--directory DIR]

CPU time of the whole process, threads included, so that other load on the machine matters little. DIR should lie on the
disk in question; a temporary directory is made in it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from cas.action_cache import ActionCache, ActionKey, MemoryActionCache
from cas.action_cache_disk import DiskActionCache
from cas.compose import Tiered, Verified
from cas.digest import Digest
from cas.disk import DiskStore
from cas.memory import MemoryStore
from cas.store import CHUNK_BYTES, BlobStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

KIB, MIB = 1 << 10, 1 << 20
BOUND = 4 << 30


def blobs(count: int, size_bytes: int) -> list[tuple[Digest, bytes]]:
    """Different random blobs."""
    contents = (os.urandom(size_bytes) for _ in range(count))
    return [(Digest.of(content), content) for content in contents]


async def measure(operation: Callable[[int], Awaitable[object]], count: int) -> float:
    """CPU microseconds of one `operation`, over `count` of them with the numbers from 0."""
    started = time.process_time()
    for number in range(count):
        await operation(number)
    return (time.process_time() - started) / count * 1e6


async def in_chunks(data: bytes) -> AsyncIterator[bytes]:
    for position in range(0, len(data), CHUNK_BYTES):
        yield data[position : position + CHUNK_BYTES]


async def drain(store: BlobStore, digest: Digest) -> None:
    async with store.open(digest) as pieces:
        async for _ in pieces:
            pass


async def measure_store(name: str, store: BlobStore) -> None:
    single, batches, large = blobs(1000, KIB), [blobs(100, KIB) for _ in range(10)], blobs(8, 16 * MIB)
    digests = [digest for digest, _ in single]
    missing = [Digest(os.urandom(32).hex(), 1) for _ in range(1000)]
    # The directories of a store on disk are made by the first few hundred blobs.
    await store.write_many(blobs(1000, KIB))
    rows = {
        "write 1 KiB": await measure(lambda number: store.write_many([single[number]]), 1000),
        "write 100 x 1 KiB": await measure(lambda number: store.write_many(batches[number]), 10),
        "read 1 KiB": await measure(lambda number: store.read_many([digests[number]]), 1000),
        "open 1 KiB": await measure(lambda number: drain(store, digests[number]), 1000),
        "read 100 x 1 KiB": await measure(lambda number: store.read_many([d for d, _ in batches[number]]), 10),
        "find 1, there": await measure(lambda number: store.find_missing([digests[number]]), 1000),
        "find 1000, there": await measure(lambda _: store.find_missing(digests), 100),
        "find 1000, missing": await measure(lambda _: store.find_missing(missing), 100),
        "put 16 MiB, per MiB": await measure(lambda number: store.put(large[number][0], in_chunks(large[number][1])), 8)
        / 16,
        "open 16 MiB, per MiB": await measure(lambda number: drain(store, large[number][0]), 8) / 16,
    }
    print(f"\n{name}")
    for row, microseconds in rows.items():
        print(f"  {row:24}{microseconds:10.1f}")


async def measure_action_cache(name: str, cache: ActionCache) -> None:
    keys = [ActionKey("main", Digest(os.urandom(32).hex(), 140)) for _ in range(2000)]
    output = re_pb2.OutputFile(path="bazel-out/k8-fastbuild/bin/a/b/c.o", digest=keys[0].action_digest.to_proto())
    result = re_pb2.ActionResult(output_files=[output] * 3, stdout_raw=b"x" * 300)
    rows = {
        "put": await measure(lambda number: cache.put(keys[number], result), 2000),
        "get": await measure(lambda number: cache.get(keys[number]), 2000),
    }
    print(f"\n{name}")
    for row, microseconds in rows.items():
        print(f"  {row:24}{microseconds:10.1f}")


async def main(directory: Path | None) -> None:
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        disk = await stack.enter_async_context(DiskStore(root / "disk", BOUND))
        slow = await stack.enter_async_context(DiskStore(root / "slow", BOUND))
        verified = await stack.enter_async_context(DiskStore(root / "verified", BOUND))
        print("CPU microseconds per operation")
        await measure_store("MemoryStore", MemoryStore(BOUND))
        await measure_store("Verified(MemoryStore)", Verified(MemoryStore(BOUND)))
        await measure_store("DiskStore", disk)
        await measure_store("Verified(DiskStore)", Verified(verified))
        tiered = await stack.enter_async_context(Tiered(MemoryStore(BOUND), slow))
        await measure_store("Tiered(MemoryStore, DiskStore)", tiered)
        await measure_action_cache("MemoryActionCache", MemoryActionCache())
        results = DiskActionCache(root / "results.sqlite3", max_entries=10_000, max_bytes=BOUND)
        await measure_action_cache("DiskActionCache", await stack.enter_async_context(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, help="where to make the temporary directory")
    asyncio.run(main(parser.parse_args().directory))
