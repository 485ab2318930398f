"""One stream of bytes to several stores at once, at the pace of the slowest, going on without those that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from cas.digest import Digest
from cas.errors import StatusError
from cas.shard import Shard
from cas.store import BlobStore


async def upload(shards: Sequence[Shard[BlobStore]], digest: Digest, chunks: AsyncIterator[bytes]) -> list[StatusError]:
    """Put the blob into all `shards`. Returns no failures if at least one of them has it, else one for each.

    What `chunks` raises is raised, and no shard keeps anything then.
    """
    branches = [_Branch() for _ in shards]
    async with asyncio.TaskGroup() as tasks:
        for branch, shard in zip(branches, shards, strict=True):
            branch.task = tasks.create_task(_put(shard, digest, branch))
        try:
            async for chunk in chunks:
                if not await _send(branches, chunk):
                    break
        except Exception as reason:  # noqa: BLE001 - raised below; the stores hear of it in place of an end
            failure: Exception | None = reason
        else:
            failure = None
        await _send(branches, failure)
    if failure is not None:
        raise failure
    failures = [result for branch in branches if (result := branch.task.result()) is not None]
    return failures if len(failures) == len(shards) else []


class _SenderFailed(Exception):
    """The bytes broke off: what a store hears in place of their end, so that it is not taken for the store's own failure."""


class _Branch:
    """One store's share of the stream."""

    task: asyncio.Task[StatusError | None]

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(1)

    async def chunks(self) -> AsyncIterator[bytes]:
        while (item := await self.queue.get()) is not None:
            if isinstance(item, Exception):
                raise _SenderFailed from item
            yield item


async def _send(branches: Sequence[_Branch], item: bytes | Exception | None) -> bool:
    """Give `item` to every store that still takes some. False if none does."""
    for branch in branches:
        if branch.task.done():
            continue
        giving = asyncio.ensure_future(branch.queue.put(item))
        try:
            # A store may stop listening while it has not taken the piece before: it failed, or has the blob already.
            await asyncio.wait([giving, branch.task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            giving.cancel()
            with suppress(asyncio.CancelledError):
                await giving
    return not all(branch.task.done() for branch in branches)


async def _put(shard: Shard[BlobStore], digest: Digest, branch: _Branch) -> StatusError | None:
    try:
        with shard.asked() as store:
            await store.put(digest, branch.chunks())
    except StatusError as failure:
        return failure
    except _SenderFailed:
        pass
    return None
