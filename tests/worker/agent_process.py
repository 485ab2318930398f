"""`python -m tests.worker.agent_process WORK_DIR SCRIPT`: an agent in a process of its own, fed one action in process.

The test that starts it kills it, so it must not share the test's process. It says "running" once the command runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cas.memory import MemoryStore
from rexec.worker.link import Link
from rexec.worker.settings import IsolationKind
from rexec.worker.start import run_agent
from tests.worker.actions import Inputs, Worker, settings_for
from tests.worker.scheduler import Stream


async def main(work_dir: str, script: str, *flags: str) -> None:
    store = MemoryStore()
    stream = Stream()

    @asynccontextmanager
    async def dial() -> AsyncIterator[Link]:
        yield stream

    async def schedule() -> None:
        await stream.hello()
        worker = Worker(None, Inputs(store), Path(work_dir))  # type: ignore[arg-type] # leases only
        lease = await worker.lease("/bin/sh", "-c", script)
        stream.lease(lease)
        await stream.running(lease.lease_id)
        sys.stdout.write("running\n")
        sys.stdout.flush()
        finished = await stream.finished()
        sys.stdout.write(f"finished {finished.failure} {finished.action_result.exit_code}\n")
        sys.stdout.flush()
        stream.acknowledge(finished)
        if "leave" in flags:
            os.kill(os.getpid(), signal.SIGTERM)

    # "orphan": the parent that was there at the start is not the parent any more.
    parent_pid = os.getppid() if "die" in flags else os.getpid() if "orphan" in flags else 0
    isolation = next((flag for flag in flags if flag in list(IsolationKind)), "none")
    settings = settings_for(Path(work_dir), drain_grace_seconds=600.0, parent_pid=parent_pid, isolation=isolation)
    scheduling = asyncio.create_task(schedule())
    await run_agent(settings, dial, lambda _instance: store)
    scheduling.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
