"""to_the_end: what was begun is ended, and the caller hears of his cancellation afterwards."""

from __future__ import annotations

import asyncio

import pytest

from cas.cancellation import to_the_end


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancelled_caller_waits_for_the_end(fails: bool) -> None:
    began, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        await may_end.wait()
        ended.set()
        if fails:
            raise ValueError("seen by nobody")

    caller = asyncio.create_task(to_the_end(work()))
    await began.wait()
    for _ in range(2):  # also a caller that is cancelled again
        caller.cancel()
        await asyncio.wait([caller], timeout=0.001)
        assert not caller.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


async def test_the_result_and_the_failure_are_passed_on() -> None:
    async def works() -> int:
        return 3

    async def fails() -> int:
        raise ValueError("no")

    assert await to_the_end(works()) == 3
    with pytest.raises(ValueError, match="no"):
        await to_the_end(fails())
