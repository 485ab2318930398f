"""`python -m tests.worker.killed_agent WORK_DIR PLACE ISOLATION [USER]`: an agent that runs one action with inputs and outputs.

It kills itself with SIGKILL at the PLACE named, in the middle of what it does there; with "nowhere" it tells how the action ended
and leaves. All that the action starts has the variable MARK, with the work directory. With a number for USER that is who it is
from before the agent starts: everything was read by then, because such a user may have no access to this interpreter.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cas.memory import MemoryStore
from rexec.worker import output_tree
from rexec.worker.blob_files import BlobFiles
from rexec.worker.kept_rooms import KeptRooms
from rexec.worker.link import Link
from rexec.worker.start import run_agent
from tests.worker.actions import File, Inputs, Worker, settings_for
from tests.worker.scheduler import Stream

PR_SET_DUMPABLE = 4
INPUTS = 20
SCRIPT = "cat d/*; mkdir o; for i in 1 2 3; do echo output $i > o/$i; done; (setsid sleep 1000 &); exec tools/end"
END_SCRIPT = """#!/bin/sh
if [ "$KILL" = running ]; then setsid sleep 1001 & echo > ready; sleep 1002; fi
exit 5
"""


def killing_at(owner: Any, name: str, count: int) -> None:
    """The call with that number is never made."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, counted)


def kill_when_ready(work_dir: str) -> None:
    """The action runs, and so does all that it has started."""
    while not list(Path(work_dir).glob("w/*/root/ready")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


PLACES: dict[str, Callable[[], None]] = {
    "fetching": lambda: killing_at(BlobFiles, "_rename", INPUTS // 2),
    "laying_out": lambda: killing_at(os, "link", INPUTS // 2),
    "running": lambda: threading.Thread(target=kill_when_ready, args=sys.argv[1:2], daemon=True).start(),
    "collecting": lambda: killing_at(output_tree, "hasher", 2),
    "uploading": lambda: killing_at(MemoryStore, "write_many", 1),
    "cleaning_up": lambda: killing_at(KeptRooms, "keep", 1),
    "nowhere": lambda: None,
}


def become(user: int) -> None:
    """Give up root for good, as if the process had been started by that user."""
    version("rexec")  # reads modules of its own
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # Who has changed its user is not looked into, and what it starts could not be either.
    if ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0):
        raise OSError("cannot become an ordinary process")


async def main(work_dir: str, place: str, isolation: str, user: str = "") -> None:
    if user:
        become(int(user))
    store = MemoryStore()
    stream = Stream()

    @asynccontextmanager
    async def dial() -> AsyncIterator[Link]:
        yield stream

    worker = Worker(None, Inputs(store), Path(work_dir))  # type: ignore[arg-type] # leases only
    inputs = {
        "d": {f"{number:02}": f"input {number}\n".encode() for number in range(INPUTS)},
        "tools": {"end": File(END_SCRIPT.encode(), True)},
    }
    env = {"KILL": place, "PATH": os.environ["PATH"], "MARK": work_dir}
    lease = await worker.lease("/bin/sh", "-c", SCRIPT, inputs=inputs, env=env, output_paths=["o"])
    PLACES[place]()

    async def schedule() -> None:
        await stream.hello()
        stream.lease(lease)
        finished = await stream.finished()
        printed = await worker.read(finished.action_result.stdout_digest)
        told = f"finished {finished.failure} {finished.action_result.exit_code} {printed.count(b'input')}"
        sys.stdout.write(f"{told} {len(finished.action_result.output_directories)}\n")
        sys.stdout.flush()
        stream.acknowledge(finished)
        os.kill(os.getpid(), signal.SIGTERM)

    scheduling = asyncio.create_task(schedule())
    await run_agent(settings_for(Path(work_dir), isolation=isolation), dial, lambda _instance: store)
    scheduling.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
