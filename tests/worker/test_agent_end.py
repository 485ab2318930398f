"""An agent that is told to end just when its stream breaks ends all the same (behaviour 12)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cas.memory import MemoryStore
from rexec.worker.agent import Agent
from tests.worker.actions import make_context
from tests.worker.scheduler import SECONDS, Scheduler


@pytest.mark.parametrize("steps_between", range(6))
@pytest.mark.parametrize("told_by", ["drain", "cancel"])
async def test_a_stream_that_breaks_in_the_same_moment_keeps_no_agent_alive(
    tmp_path: Path, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, told_by: str, steps_between: int
) -> None:
    """Where the agent is in its ending of the stream, when it is told, depends on the steps of the event loop between."""
    monkeypatch.setattr("rexec.worker.present_stream.FAREWELL_SECONDS", 0.01)
    context = await make_context(tmp_path / "work", store, reconnect_min_seconds=0.001, reconnect_max_seconds=0.001)
    scheduler = Scheduler()
    agent = Agent(context, scheduler.dial, "session")
    running = asyncio.create_task(agent.run())
    try:
        stream = await scheduler.stream()
        await stream.hello()
        await stream.credit(3)
        stream.cut()
        for _ in range(steps_between):
            await asyncio.sleep(0)
        if told_by == "drain":
            agent.drain("SIGTERM", 60.0)
        else:
            running.cancel()
        ended, _ = await asyncio.wait([running], timeout=SECONDS)
        assert ended, "the agent goes on"
        assert running.cancelled() == (told_by == "cancel")
    finally:
        # One that missed it goes on for ever, and its task group takes no second cancellation: each task gets its own.
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.gather(running, return_exceptions=True)
        context.workspace.close()
