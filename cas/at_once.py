"""Many small pieces of work at the same time, but not too many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Do `work` for each of `items`, for at most `at_once` of them at the same time.

    Raises what the first that fails raises; the others are cancelled then.
    """
    wanted = list(items)
    rest = iter(wanted)

    async def in_turn() -> None:
        for item in rest:
            await work(item)

    if len(wanted) == 1:
        await work(wanted[0])
        return
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(at_once, len(wanted))):
                tasks.create_task(in_turn())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
