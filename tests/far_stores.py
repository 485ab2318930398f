"""Stores and action caches that are elsewhere, and those made of them, for the contracts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from grpc import aio
from obstore.store import LocalStore
from obstore.store import MemoryStore as ObjectsInMemory

from cas.action_cache import ActionCache, MemoryActionCache
from cas.action_cache_disk import DiskActionCache
from cas.action_cache_objects import ObjectActionCache
from cas.action_cache_remote import RemoteActionCache
from cas.action_cache_sharded import ShardedActionCache
from cas.bucket import Bucket
from cas.compose import Tiered, Verified
from cas.connection_settings import ConnectionSettings
from cas.disk import DiskStore
from cas.instances import Instance, Instances
from cas.memory import MemoryStore
from cas.objects import ObjectStore
from cas.remote import CHANNEL_OPTIONS, RemoteStore
from cas.services.action_cache import ActionCacheService
from cas.services.bytestream import ByteStream
from cas.services.cas import ContentAddressableStorage
from cas.sharded import Sharded
from cas.store import BlobStore
from cas.uploads import Uploads
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2
from rexec.rpc import RpcServer
from rexec.scheduler_channel import following_channel


@asynccontextmanager
async def remote(_path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    """A store behind our own services, over a real connection to the second of two servers."""
    instances = Instances([Instance("team/one", Verified(MemoryStore(max_bytes)), MemoryActionCache(10))])
    # What a broken stream has uploaded is given up at once: kept for its resumption it would hold room in the store.
    async with Uploads(resume_seconds=0) as uploads:
        server = RpcServer()
        server.add(re_pb2, "ContentAddressableStorage", ContentAddressableStorage(instances))
        server.add(bytestream_pb2, "ByteStream", ByteStream(instances, uploads))
        port = server.listen("127.0.0.1:0")
        await server.start()
        try:
            connection = ConnectionSettings()
            address = f"grpc://127.0.0.1:{port}"
            async with following_channel(["grpc://127.0.0.1:1", address], connection, lambda: 1) as channel:
                yield RemoteStore(channel, "team/one")
        finally:
            await server.stop(0)


@asynccontextmanager
async def objects(_path: Path, _max_bytes: int) -> AsyncIterator[BlobStore]:
    async with Bucket(ObjectsInMemory(), "memory") as bucket:
        yield ObjectStore(bucket)


@asynccontextmanager
async def objects_in_files(path: Path, _max_bytes: int) -> AsyncIterator[BlobStore]:
    async with Bucket(LocalStore(path, mkdir=True), "files", "below/") as bucket:
        yield Verified(ObjectStore(bucket, expires_seconds=86400.0, trusted_seconds=0.0))


@asynccontextmanager
async def objects_behind_a_disk(path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    async with (
        Bucket(ObjectsInMemory(), "memory") as bucket,
        DiskStore(path, max_bytes) as near,
        Tiered(near, ObjectStore(bucket)) as store,
    ):
        yield Verified(store)


@asynccontextmanager
async def a_single_shard(_path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    yield Sharded({"only": MemoryStore(max_bytes)})


@asynccontextmanager
async def three_shards(path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    async with DiskStore(path, max_bytes) as disk, remote(path, max_bytes) as far:
        yield Sharded({"memory": MemoryStore(max_bytes), "disk": disk, "far": far})


@asynccontextmanager
async def three_shards_and_two_replicas(path: Path, max_bytes: int) -> AsyncIterator[BlobStore]:
    async with DiskStore(path, max_bytes) as disk, remote(path, max_bytes) as far:
        yield Verified(Sharded({"memory": MemoryStore(max_bytes), "disk": disk, "far": far}, replicas=2))


@asynccontextmanager
async def results_elsewhere(_path: Path, max_entries: int) -> AsyncIterator[ActionCache]:
    """Results behind our own service, over a real connection."""
    results, store = MemoryActionCache(max_entries), MemoryStore()
    names = ("", "main", "one", "two", "x" * 300)
    server = RpcServer()
    server.add(re_pb2, "ActionCache", ActionCacheService(Instances(Instance(name, store, results) for name in names)))
    port = server.listen("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
            yield RemoteActionCache(channel)
    finally:
        await server.stop(0)


@asynccontextmanager
async def results_in_objects(_path: Path, _max_entries: int) -> AsyncIterator[ActionCache]:
    async with Bucket(ObjectsInMemory(), "memory", "some/prefix/") as bucket:
        yield ObjectActionCache(bucket)


@asynccontextmanager
async def results_in_shards(path: Path, max_entries: int) -> AsyncIterator[ActionCache]:
    async with (
        results_elsewhere(path, max_entries) as far,
        DiskActionCache(path / "results.sqlite3", max_entries=max_entries, max_bytes=1 << 30) as disk,
    ):
        yield ShardedActionCache({"far": far, "disk": disk, "memory": MemoryActionCache(max_entries)}, replicas=2)
