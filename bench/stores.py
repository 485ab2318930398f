"""CPU microseconds per operation of each store, in one process, without gRPC.

    python -m bench.stores [--directory DIR]

CPU time of the whole process, threads included, so that other load on the machine matters little. DIR should lie on the
disk in question; a temporary directory is made in it.

A guest of a shared store is measured against a DiskStore in turns of one run, because the disk's share of the cost changes
from minute to minute; the owner is in a process of its own, and what it does for the guest is a column beside it.
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
from statistics import median
from typing import TypedDict

from obstore.store import MemoryStore as ObjectsInMemory

from cas.action_cache import ActionCache, ActionKey, MemoryActionCache
from cas.action_cache_disk import DiskActionCache
from cas.bucket import Bucket
from cas.compose import Tiered, Verified
from cas.digest import Digest
from cas.disk import DiskStore
from cas.memory import MemoryStore
from cas.objects import ObjectStore
from cas.sharded import Sharded
from cas.shared_disk import SharedDisk
from cas.store import CHUNK_BYTES, BlobStore
from integration.process import cpu_seconds
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from tests.sharing import owner_process

KIB, MIB = 1 << 10, 1 << 20
BOUND = 4 << 30


class Bounds(TypedDict):
    max_entries: int
    max_bytes: int


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


def operations_of(
    store: BlobStore,
    single: list[tuple[Digest, bytes]],
    batch: list[tuple[Digest, bytes]],
    large: list[tuple[Digest, bytes]],
    missing: list[Digest],
) -> list[tuple[str, Callable[[int], Awaitable[object]], int]]:
    """What is measured of `store`: the name, what is done for each number from 0, and how often."""
    digests = [digest for digest, _ in single]
    return [
        ("write 1 KiB", lambda number: store.write_many([single[number]]), len(single)),
        ("write 100 x 1 KiB", lambda number: store.write_many(batch[100 * number : 100 * number + 100]), 3),
        ("read 1 KiB", lambda number: store.read_many([digests[number]]), len(single)),
        ("find 1, there", lambda number: store.find_missing([digests[number]]), len(single)),
        ("find 300, there", lambda _: store.find_missing(digests), 30),
        ("find 1000, missing", lambda _: store.find_missing(missing), 30),
        ("put 16 MiB, per MiB", lambda number: store.put(large[number][0], in_chunks(large[number][1])), 2),
    ]


async def measure_sharing(root: Path, rounds: int = 7) -> None:
    """DiskStore and SharedDisk in turns: the medians of their costs, the ratio, and the owner's cost for the guest."""
    async with AsyncExitStack() as stack:
        alone = await stack.enter_async_context(DiskStore(root / "alone", BOUND))
        owner = await stack.enter_async_context(owner_process(root / "shared", BOUND))
        guest = await stack.enter_async_context(SharedDisk(root / "shared"))
        stores: list[BlobStore] = [alone, guest]
        costs: dict[str, tuple[list[float], list[float], list[float]]] = {}
        for store in stores:
            await store.write_many(blobs(1000, KIB))  # makes the directories
        for turn in range(rounds):
            single, batch, large = blobs(300, KIB), blobs(300, KIB), blobs(2, 16 * MIB)
            missing = [Digest(os.urandom(32).hex(), 1) for _ in range(1000)]
            for place in (0, 1) if turn % 2 else (1, 0):
                store = stores[place]
                for row, operation, count in operations_of(store, single, batch, large, missing):
                    before = cpu_seconds(owner.pid)
                    cost = await measure(operation, count)
                    if isinstance(store, SharedDisk):
                        await store.report()
                    beside = (cpu_seconds(owner.pid) - before) / count * 1e6
                    scale = 16 if "MiB, per" in row else 1
                    found = costs.setdefault(row, ([], [], []))
                    found[place].append(cost / scale)
                    if place == 1:
                        found[2].append(beside / scale)
    print(f"\n{'SharedDisk beside DiskStore':26}{'DiskStore':>12}{'SharedDisk':>12}{'ratio':>8}{'its owner':>12}")
    for row, (of_alone, of_guest, of_owner) in costs.items():
        low, high = median(of_alone), median(of_guest)
        print(f"  {row:24}{low:12.1f}{high:12.1f}{high / low:8.2f}{sum(of_owner) / len(of_owner):12.1f}")


async def measure_far(far: BlobStore, name: str, count: int = 200) -> None:
    """Stores that take a request for each blob: fewer rounds, and what is remembered of a blob beside what is asked."""
    some, large = blobs(count, KIB), blobs(2, 16 * MIB)
    digests = [digest for digest, _ in some]
    missing = [Digest(os.urandom(32).hex(), 1) for _ in range(count)]
    rows = {
        "write 100 x 1 KiB": await measure(lambda number: far.write_many(some[100 * number : 100 * number + 100]), 2),
        "read 100 x 1 KiB": await measure(lambda number: far.read_many(digests[100 * number : 100 * number + 100]), 2),
        f"find {count}, written": await measure(lambda _: far.find_missing(digests), 10),
        f"find {count}, missing": await measure(lambda _: far.find_missing(missing), 3),
        "put 16 MiB, per MiB": await measure(lambda number: far.put(large[number][0], in_chunks(large[number][1])), 2)
        / 16,
        "open 16 MiB, per MiB": await measure(lambda number: drain(far, large[number][0]), 2) / 16,
    }
    print(f"\n{name}")
    for row, microseconds in rows.items():
        print(f"  {row:24}{microseconds:10.1f}")


async def measure_objects_and_shards(stack: AsyncExitStack) -> None:
    """Without a network: what the libraries and the spreading cost."""
    bucket = await stack.enter_async_context(Bucket(ObjectsInMemory(), "memory"))
    await measure_far(ObjectStore(bucket), "ObjectStore (objects in memory)")
    for replicas in (1, 2):
        shards: dict[str, BlobStore] = {f"grpc://cas-{number}:8980": MemoryStore(BOUND) for number in range(3)}
        await measure_far(Sharded(shards, replicas), f"Sharded (3 x MemoryStore, {replicas} of them for each blob)")


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


async def main(directory: Path | None, sharing: bool, far: bool) -> None:
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        disk = await stack.enter_async_context(DiskStore(root / "disk", BOUND))
        slow = await stack.enter_async_context(DiskStore(root / "slow", BOUND))
        verified = await stack.enter_async_context(DiskStore(root / "verified", BOUND))
        print("CPU microseconds per operation")
        if sharing:
            await measure_sharing(root)
            return
        await measure_objects_and_shards(stack)
        if far:
            return
        await measure_store("MemoryStore", MemoryStore(BOUND))
        await measure_store("Verified(MemoryStore)", Verified(MemoryStore(BOUND)))
        await measure_store("DiskStore", disk)
        await measure_store("Verified(DiskStore)", Verified(verified))
        tiered = await stack.enter_async_context(Tiered(MemoryStore(BOUND), slow))
        await measure_store("Tiered(MemoryStore, DiskStore)", tiered)
        await measure_sharing(root)
        await measure_action_cache("MemoryActionCache", MemoryActionCache())
        results = DiskActionCache(root / "results.sqlite3", max_entries=10_000, max_bytes=BOUND)
        await measure_action_cache("DiskActionCache", await stack.enter_async_context(results))
        shared = root / "shared.sqlite3"
        bounds = Bounds(max_entries=10_000, max_bytes=BOUND)
        owner = DiskActionCache(shared, shared=True, **bounds)
        await measure_action_cache("DiskActionCache, shared", await stack.enter_async_context(owner))
        guest = DiskActionCache(shared, guest=True, **bounds)
        await measure_action_cache("DiskActionCache, a guest", await stack.enter_async_context(guest))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, help="where to make the temporary directory")
    parser.add_argument("--sharing", action="store_true", help="only a guest beside a store of one process")
    parser.add_argument("--far", action="store_true", help="only the object store and the shards")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.directory, arguments.sharing, arguments.far))
