"""Builds the stores that the [store] section asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import structlog

from cas.action_cache import ActionCache, Complete, MemoryActionCache
from cas.action_cache_disk import DiskActionCache
from cas.action_cache_objects import ObjectActionCache
from cas.bucket_s3 import open_bucket
from cas.compose import Tiered, Verified
from cas.config import StoreSettings
from cas.disk import DiskStore
from cas.memory import MemoryStore
from cas.objects import ObjectStore
from cas.remembered import Remembered
from cas.shared_disk import SharedDisk
from cas.store import BlobStore

log = structlog.get_logger()

MEMORY_DEFAULT_MAX_BYTES = 1 << 30

SMALL_STORE_BYTES = 1 << 30
"""Below this, a build of ordinary size cannot keep what it makes."""


@dataclass(frozen=True, slots=True)
class Stores:
    """What a server keeps: every blob written is checked, every action result answered is complete."""

    blobs: BlobStore
    action_cache: ActionCache
    used_bytes: Callable[[], int]
    """Room taken by the blobs, for the metrics."""


def directory_of(settings: StoreSettings) -> Path:
    """The directory that `settings` names, with the user's home filled in. Raises ValueError if there is none."""
    if not settings.directory:
        raise ValueError("directory is empty; a store on disk needs one")
    return Path(settings.directory).expanduser()


Sharing = Literal["alone", "owner", "guest", "without"]
"""Whether other processes of this machine use a store on disk too, and whether this one decides what stays in it. "without" is
a process that keeps nothing on the disk, and may be one of several with the same configuration."""


@asynccontextmanager
async def open_stores(settings: StoreSettings, sharing: Sharing = "alone") -> AsyncIterator[Stores]:
    """The stores of `settings`, closed at the end; not those of another server. Raises DirectoryUnusable and BucketUnusable if
    they cannot be opened."""
    if settings.kind == "memory":
        memory = MemoryStore(settings.max_bytes or MEMORY_DEFAULT_MAX_BYTES)
        _tell_if_small(memory.max_bytes)
        blobs = Verified(memory)
        results = MemoryActionCache(settings.action_cache_max_entries)
        yield Stores(blobs, Complete(results, blobs), lambda: memory.used_bytes)
        return
    directory = directory_of(settings)
    if settings.kind == "objects":
        async with _objects(settings, directory / "near", sharing) as stores:
            yield stores
        return
    disk_results = DiskActionCache(
        directory / "action-cache.sqlite3",
        max_entries=settings.action_cache_max_entries,
        max_bytes=settings.action_cache_max_bytes,
        shared=sharing == "owner",
        guest=sharing == "guest",
        checkpoint_seconds=settings.sync_seconds,
    )
    if sharing == "guest":
        async with SharedDisk(directory / "cas") as guest, disk_results:
            blobs = Verified(guest)
            # The owner counts what is there.
            yield Stores(blobs, Complete(disk_results, blobs), lambda: 0)
        return
    disk = DiskStore(
        directory / "cas", settings.max_bytes, shared=sharing == "owner", sync_seconds=settings.sync_seconds
    )
    async with disk, disk_results:
        _tell_if_small(disk.max_bytes)
        blobs = Verified(disk)
        yield Stores(blobs, Complete(disk_results, blobs), lambda: disk.used_bytes)


@asynccontextmanager
async def _objects(settings: StoreSettings, directory: Path, sharing: Sharing) -> AsyncIterator[Stores]:
    """A bucket, behind a cache on this machine's disk that may lose everything it has."""
    expires_seconds = settings.objects.expires_days * 86400.0
    async with AsyncExitStack() as stack:
        used_bytes: Callable[[], int]
        bucket = await stack.enter_async_context(open_bucket(settings.objects))
        far = ObjectStore(bucket, expires_seconds=expires_seconds, trusted_seconds=settings.objects.trusted_seconds)
        results = ObjectActionCache(bucket, expires_seconds=expires_seconds)
        if sharing == "without":
            blobs = Verified(Remembered(far, settings.memory_bytes))
            yield Stores(blobs, Complete(results, blobs), int)
            return
        near: BlobStore
        if sharing == "guest":
            near = await stack.enter_async_context(SharedDisk(directory))
            used_bytes = int  # the owner counts what is there
        else:
            disk = DiskStore(
                directory, settings.max_bytes, shared=sharing == "owner", sync_seconds=settings.sync_seconds
            )
            near = await stack.enter_async_context(disk)
            used_bytes = partial(getattr, disk, "used_bytes")
        blobs = Verified(await stack.enter_async_context(Tiered(near, far)))
        yield Stores(blobs, Complete(results, blobs), used_bytes)


def _tell_if_small(max_bytes: int) -> None:
    if max_bytes < SMALL_STORE_BYTES:
        log.warning(
            "the store is small: files larger than it cannot be kept, see [store] max_bytes", max_bytes=max_bytes
        )
