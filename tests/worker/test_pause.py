"""An agent whose machine is short of something takes no leases, says why, and goes on when it is over."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cas.digest import Digest
from cas.memory import MemoryStore
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.agent import Agent
from rexec.worker.blob_files import FileKey
from tests.worker.actions import Inputs, Worker, make_context
from tests.worker.scheduler import Scheduler, Stream

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


class Machine:
    """What an agent finds out about its machine."""

    def __init__(self, worker: Worker, agent: Agent, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worker, self.agent, self.stream = worker, agent, stream
        self.free_disk_bytes = self.available_memory_bytes = 100_000 * MIB
        self.load = 0.1
        monkeypatch.setattr(worker.context.workspace, "free_bytes", lambda: self.free_disk_bytes)
        monkeypatch.setattr(agent._condition._gauge, "available_bytes", lambda: self.available_memory_bytes)
        monkeypatch.setattr("rexec.worker.condition.load", lambda: self.load)

    async def says(self, text: str) -> None:
        """Until a heartbeat says that, or that nothing is amiss."""

        def wanted(message: worker_pb2.FromWorker) -> bool:
            reason = message.heartbeat.pause_reason
            return message.HasField("heartbeat") and (text in reason if text else not reason)

        await self.stream.until(wanted)


@pytest_asyncio.fixture
async def machine(tmp_path: Path, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    context = await make_context(
        tmp_path / "work", store, least_free_disk_bytes=512 * MIB, least_available_memory_bytes=256 * MIB,
        max_load_per_core=2.0,
    )  # fmt: skip
    scheduler = Scheduler()
    agent = Agent(context, scheduler.dial, "session")
    running = asyncio.create_task(agent.run())
    stream = await scheduler.stream()
    machine = Machine(Worker(context, Inputs(store), tmp_path / "work"), agent, stream, monkeypatch)
    await stream.hello()
    yield machine
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    context.workspace.close()


@pytest.mark.parametrize(
    ("figure", "bad", "said"),
    [
        ("free_disk_bytes", 100 * MIB, "100 MiB left on the disk"),
        ("available_memory_bytes", 100 * MIB, "100 MiB of memory left"),
        ("load", 1e6, "load average 1000000.0"),
    ],
)
async def test_what_is_short_stops_leases_until_it_is_over(
    machine: Machine, figure: str, bad: float, said: str
) -> None:
    stream = machine.stream
    await stream.credit(3)
    good = getattr(machine, figure)
    lease = await machine.worker.lease("/bin/sh", "-c", "echo went on")
    setattr(machine, figure, bad)
    await stream.credit(0)
    await machine.says(said)
    # One that was on its way is run all the same.
    stream.lease(lease)
    finished = await stream.finished()
    assert await machine.worker.stdout(finished) == "went on\n"
    setattr(machine, figure, good)
    await stream.credit(3)
    await machine.says("")


async def test_the_cache_gives_way_to_what_must_be_free(machine: Machine) -> None:
    context = machine.worker.context
    inputs = {"f": b"x" * 1000}
    await machine.worker.sh("true", inputs=inputs)
    key = FileKey(Digest.of(inputs["f"]), False)
    assert os.path.exists(context.files.files.path(key))  # noqa: ASYNC240
    machine.free_disk_bytes = 100 * MIB
    await machine.says("disk")
    assert not os.path.exists(context.files.files.path(key))  # noqa: ASYNC240
    assert context.files.used_bytes == 0


async def test_a_cache_on_another_disk_is_left_alone(machine: Machine) -> None:
    context = machine.worker.context
    context.cache_is_beside = False
    inputs = {"f": b"x" * 1000}
    await machine.worker.sh("true", inputs=inputs)
    machine.free_disk_bytes = 100 * MIB
    await machine.says("disk")
    assert FileKey(Digest.of(inputs["f"]), False) in context.files


@pytest.mark.parametrize("isolation", ["none", "landlock", "bubblewrap"])
def test_an_action_that_fills_the_disk_is_for_another_worker_and_the_next_one_runs(
    tmp_path: Path, isolation: str
) -> None:
    """On a small disk of its own: a mount that only the agent's namespace has."""
    work = tmp_path / "work"
    work.mkdir()
    agent = f"{sys.executable} -m tests.worker.agent_process {work}"
    script = "head -c 100000000 /dev/zero > f; df -P . | tail -1 >&2; exit 3"
    first, second = (f"{agent} '{run}' leave {isolation}" for run in (script, "echo > f; exit 4"))
    steps = f"mount -t tmpfs -o size=32m none {work} && {first} && {second}"
    ended = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", steps],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    told = [line for line in ended.stdout.splitlines() if line.startswith("finished")]
    assert told == ["finished 1 3", "finished 0 4"], ended
