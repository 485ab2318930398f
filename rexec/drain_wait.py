"""Waiting for workers that were told to leave, until the last of them is gone.

They are known by their sessions: a worker of the same name that was started meanwhile is another one, and is not waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import grpc

from protos.rexec.scheduler.v1 import status_pb2
from rexec.status_client import CannotShow
from rexec.status_text import harmless

INTERVAL_SECONDS: Final = 1.0
"""Between two looks."""

PATIENCE_SECONDS: Final = 60.0
"""How long the server may be away meanwhile: as long as it may need to be started again."""

NAMED: Final = 5
"""Workers that are told by name of those that are still there."""

_PASSING: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def wait_until_gone(
    look: Callable[[], Awaitable[Sequence[status_pb2.FoundWorker]]],
    told: frozenset[str],
    say: Callable[[str], None],
    *,
    and_all_that_leave: bool = False,
    timeout_seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> bool:
    """Whether the workers with the sessions `told` are gone, False when time was over first. None: it takes what it takes.

    `look` gives the workers that there are. `and_all_that_leave` adds those that are leaving at the first look, for one who was
    not told all sessions. `say` is called with one line whenever there is something new. Raises CannotShow when the server
    refuses, or is away for longer than PATIENCE_SECONDS.
    """
    began_at = clock()
    answered_at = began_at
    said = ""
    count = 0
    while True:
        now = clock()
        try:
            found = await look()
        except CannotShow as failure:
            if not _is_passing(failure) or now - answered_at > PATIENCE_SECONDS:
                raise
            news = f"{failure}; trying again"
        else:
            answered_at = now
            if not count:
                if and_all_that_leave:
                    told |= {worker.worker_id for worker in found if worker.state == status_pb2.DRAINING}
                count = len(told)
            there = [worker for worker in found if worker.worker_id in told]
            news = _news(there, count)
            if not there:
                say(news)
                return True
        if news != said:
            say(news)
            said = news
        left_seconds = INTERVAL_SECONDS
        if timeout_seconds is not None:
            left_seconds = min(left_seconds, began_at + timeout_seconds - clock())
            if left_seconds <= 0:
                return False
        await pause(left_seconds)


def _is_passing(failure: CannotShow) -> bool:
    cause = failure.__cause__
    return isinstance(cause, grpc.aio.AioRpcError) and cause.code() in _PASSING


def _news(there: Sequence[status_pb2.FoundWorker], count: int) -> str:
    if not there:
        return f"all {count} have left" if count > 1 else "it has left"
    names = ", ".join(_described(worker) for worker in there[:NAMED])
    more = f" and {len(there) - NAMED} more" if len(there) > NAMED else ""
    return f"{count - len(there)} of {count} have left; still there: {names}{more}"


def _described(worker: status_pb2.FoundWorker) -> str:
    name = harmless(worker.name)
    if worker.state == status_pb2.AWAY:
        return f"{name} (away)"
    actions = len(worker.running) + worker.running_left_out
    return f"{name} ({actions} {'action' if actions == 1 else 'actions'})"
