"""Filling the workers and the store, for cases about what waits and what is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from integration.conformance.actions import Stage, Started, action, stage_of, started
from integration.conformance.blobs import fresh
from integration.conformance.case import NotSupported
from integration.conformance.client import Client

MOST_SLOTS = 64
"""Servers with more free slots than this cannot be filled by the kit."""


class Busy:
    """Slots that are taken."""

    def __init__(self, blockers: list[Started]) -> None:
        self._blockers = blockers

    async def release(self) -> None:
        """End what holds the slots; what waits gets its turn."""
        await asyncio.gather(*(blocker.cancel() for blocker in self._blockers))


@asynccontextmanager
async def all_busy(client: Client, *, fillers: int = 4, seconds: int = 300) -> AsyncIterator[Busy]:
    """Every slot runs something until the block ends or `release` is called.

    `fillers` are short actions that wait first in line: workers that take work ahead of time take these.
    """
    async with AsyncExitStack() as stack:
        blockers: list[Started] = []
        for _ in range(MOST_SLOTS):
            blocker = await stack.enter_async_context(started(client, await action(client, f"sleep {seconds}")))
            blockers.append(blocker)
            if not blocker.latest.HasField("metadata"):
                raise NotSupported("operations do not tell their stage, so nobody knows when all slots are taken")
            try:
                async with asyncio.timeout(1.5):
                    await blocker.reach(Stage.EXECUTING)
            except TimeoutError:
                break
        else:
            raise NotSupported(f"more than {MOST_SLOTS} slots are free")
        for _ in range(fillers):
            await stack.enter_async_context(started(client, await action(client, "true")))
        yield Busy([blocker for blocker in blockers if stage_of(blocker.latest) != Stage.COMPLETED])


async def evict(client: Client) -> None:
    """Write more than the store holds, so that everything that was not used meanwhile is gone."""
    client.options.need("store_bytes")
    left = client.options.store_bytes * 5 // 4
    while left > 0:
        await client.put(*(fresh(1 << 20) for _ in range(2)))
        left -= 2 << 20
