"""The stores that a role works on: its own, or those of another server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from grpc import aio

from cas.action_cache import ActionCache, Complete
from cas.action_cache_remote import RemoteActionCache
from cas.action_cache_sharded import ShardedActionCache
from cas.bucket import BucketUnusable
from cas.config import StoreSettings
from cas.connection_settings import ConnectionSettings
from cas.file_lock import DirectoryUnusable
from cas.instances import Instance, Instances
from cas.remembered import Remembered
from cas.remote import RemoteStore
from cas.sharded import Sharded
from cas.store import BlobStore
from cas.stores import Sharing, directory_of, open_stores
from rexec.config import Config
from rexec.connection import CannotConnect
from rexec.scheduler_channel import FollowingHeaders, following_channel

ALONE_RETRY_SECONDS: Final = 30.0
REPLICA_RETRY_SECONDS: Final = 2.0
"""How long a shard that does not answer is tried again."""


class StoreUnusable(Exception):
    """The store cannot be opened or reached; the text says why."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a role works on."""

    instances: Instances
    used_bytes: Callable[[], int]
    """Room that the blobs take here, for the metrics."""
    directory: Path | None
    """Where a store of our own lies; None in memory and for one that is elsewhere."""


@asynccontextmanager
async def open_held(config: Config, sharing: Sharing = "alone") -> AsyncIterator[Held]:
    """The stores that [store] asks for; one on disk may be shared with other processes. Raises StoreUnusable."""
    store = config.store
    if store.kind == "remote":
        if not store.address:
            raise StoreUnusable('[store] kind is "remote", expected an address as well')
        async with remote_held(config, [store.address], store.connection or config.connection) as held:
            yield held
        return
    if store.kind == "sharded":
        async with sharded_held(config, store.connection or config.connection) as held:
            yield held
        return
    placed = _placed(config)
    try:
        opened = open_stores(placed, sharing)
        stores = await opened.__aenter__()
    except (BucketUnusable, DirectoryUnusable, OSError) as error:
        raise StoreUnusable(str(error)) from error
    try:
        instances = Instances(
            Instance(name, stores.blobs, stores.action_cache) for name in config.server.instance_names
        )  # fmt: skip
        yield Held(instances, stores.used_bytes, None if placed.kind == "memory" else directory_of(placed))
    finally:
        await opened.__aexit__(None, None, None)


@asynccontextmanager
async def remote_held(
    config: Config, servers: Sequence[str], connection: ConnectionSettings, place: Callable[[], int] = lambda: 0
) -> AsyncIterator[Held]:
    """The stores of the server whose index among `servers` is `place`, with the small blobs that pass by kept at hand.

    Raises StoreUnusable.
    """
    try:
        channel = following_channel(servers, connection, place)
        shown = FollowingHeaders(servers, connection, place)
    except (CannotConnect, ValueError) as error:
        raise StoreUnusable(str(error)) from error
    async with channel:
        names = config.server.instance_names
        # Of each instance its own: another server may keep them apart.
        kept_bytes = max(1, config.store.memory_bytes // len(names))
        yield Held(Instances(_instances(names, channel, shown, kept_bytes)), lambda: 0, None)


@asynccontextmanager
async def sharded_held(config: Config, connection: ConnectionSettings) -> AsyncIterator[Held]:
    """The stores of several servers as one, with the small blobs that pass by kept at hand. Raises StoreUnusable."""
    servers, replicas = config.store.shards, config.store.replicas
    # Where another server has the blob too, it is asked soon; else it is better to wait for one that is restarted.
    retry_seconds = ALONE_RETRY_SECONDS if replicas == 1 else REPLICA_RETRY_SECONDS
    names = config.server.instance_names
    kept_bytes = max(1, config.store.memory_bytes // len(names))
    async with AsyncExitStack() as stack:
        links: dict[str, tuple[aio.Channel, FollowingHeaders]] = {}
        try:
            for server in servers:
                shown = FollowingHeaders([server], connection, lambda: 0)
                links[server] = (following_channel([server], connection, lambda: 0), shown)
        except (CannotConnect, ValueError) as error:
            raise StoreUnusable(str(error)) from error
        for channel, _ in links.values():
            await stack.enter_async_context(channel)
        results: dict[str, ActionCache] = {
            server: RemoteActionCache(channel, shown, retry_seconds) for server, (channel, shown) in links.items()
        }
        action_cache = ShardedActionCache(results, replicas)
        instances = []
        for name in names:
            shards: dict[str, BlobStore] = {
                server: RemoteStore(channel, name, shown, retry_seconds) for server, (channel, shown) in links.items()
            }
            blobs = Remembered(Sharded(shards, replicas), kept_bytes)
            instances.append(Instance(name, blobs, Complete(action_cache, blobs)))
        yield Held(Instances(instances), lambda: 0, None)


def _instances(
    names: Iterable[str], channel: aio.Channel, shown: Iterable[tuple[str, str]], kept_bytes: int
) -> Iterable[Instance]:  # fmt: skip
    action_cache = RemoteActionCache(channel, shown)
    for name in names:
        yield Instance(name, Remembered(RemoteStore(channel, name, shown), kept_bytes), action_cache)


def _placed(config: Config) -> StoreSettings:
    """The store's settings, with its place filled in."""
    if config.store.directory:
        return config.store
    return msgspec.structs.replace(config.store, directory=str(config.state_path))
