"""Work that must not be left half done when its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work` without passing a cancellation on to it: for what a thread does to files, and for cleaning up.

    The cancellation is raised afterwards.
    """
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as cancelled:
            cancellation = cancelled
    if cancellation is not None:
        if not task.cancelled():
            task.exception()  # seen
        raise cancellation
    return task.result()


async def in_thread(threads: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do blocking work in a thread. If the call is cancelled it still waits for the thread to end, then says so: only then
    may files be closed, removed, or declared whole."""
    return await to_the_end(asyncio.get_running_loop().run_in_executor(threads, lambda: work(*args, **kwargs)))
