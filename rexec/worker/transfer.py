"""Many blobs between a store and the disk: small ones in batches, large ones one by one, several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

from cas.batches import batches
from cas.digest import Digest
from cas.store import SMALL_BLOB_BYTES

CALLS_IN_FLIGHT: Final = 4
"""So that the latency of the store is paid about once and not for every blob."""

_BATCH_BYTES: Final = 3 << 20
"""Declared sizes in one call: a message of 4 MiB, gRPC's default limit, needs room for its framing."""

_BATCH_BLOBS: Final = 2_000
"""Blobs in one call, however small: the files of a batch are written or read in one step, which holds a thread."""


async def each_by_size(
    digests: Collection[Digest],
    small: Callable[[list[Digest]], Coroutine[Any, Any, None]],
    large: Callable[[Digest], Coroutine[Any, Any, None]],
) -> None:
    """Call `small` with batches of the small blobs and `large` with each large one, all at the same time.

    Raises what the first to fail raises; the others are cancelled then.
    """
    try:
        async with asyncio.TaskGroup() as group:
            little = (digest for digest in digests if digest.size_bytes <= SMALL_BLOB_BYTES)
            for batch in batches(little, _BATCH_BYTES, _BATCH_BLOBS):
                group.create_task(small(batch))
            for digest in digests:
                if digest.size_bytes > SMALL_BLOB_BYTES:
                    group.create_task(large(digest))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
