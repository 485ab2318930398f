"""Several schedulers, of which one is in charge: each new stream is tried at the next address."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from rexec.worker.link import Dial, Link


def in_turn(dials: Sequence[Dial]) -> Dial:
    """A Dial that begins with the first of `dials` and goes on to the next whenever a stream has ended, however it did.

    Also after a stream that was in use: one that ends is a scheduler that stops, so the other one is likely to be in charge; and
    if not, it says so at once and the next attempt is back where it was.
    """
    if not dials:
        raise ValueError("no scheduler to dial, expected at least one")
    ended = 0

    @asynccontextmanager
    async def dial() -> AsyncIterator[Link]:
        nonlocal ended
        try:
            async with dials[ended % len(dials)]() as link:
                yield link
        finally:
            ended += 1

    return dial
