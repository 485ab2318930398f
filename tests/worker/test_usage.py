"""What a command used up is measured and told with its result."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.memory_watch import LOOK_SECONDS, MAX_PAUSE_SECONDS, MAX_SHARE, MemoryWatch, memory_bytes_of
from rexec.worker.process_table import tree_of
from rexec.worker.runner import Runner
from tests.worker.actions import Worker

MIB = 1 << 20


def usage_of(finished: worker_pb2.Finished) -> worker_pb2.ResourceUsage:
    """The only one in the result."""
    (packed,) = finished.action_result.execution_metadata.auxiliary_metadata
    usage = worker_pb2.ResourceUsage()
    assert packed.Unpack(usage)
    return usage


async def test_memory_that_a_command_takes_is_told(worker: Worker) -> None:
    usage = usage_of(await worker.run(sys.executable, "-c", "x = b'x' * (700 << 20)"))
    assert 700 * MIB <= usage.peak_memory_bytes < 1000 * MIB


async def test_time_is_that_of_the_command_and_of_its_children(worker: Worker) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    for arguments in ([sys.executable, "-c", burn], ["/bin/sh", "-c", f"{sys.executable} -c '{burn}'; exit 3"]):
        usage = usage_of(await worker.run(*arguments))
        assert usage.user_seconds + usage.system_seconds >= 0.3
    assert (usage_of(await worker.run("/bin/true"))).user_seconds < 0.3


async def test_context_switches_and_written_bytes_are_told(worker: Worker) -> None:
    script = "head -c 3000000 /dev/zero > f; sync f; sleep 0.01; sleep 0.01"
    usage = usage_of(await worker.sh(script, env={"PATH": os.environ["PATH"]}))
    assert usage.voluntary_context_switches >= 2
    assert usage.written_bytes % 512 == 0


async def test_a_command_that_failed_or_ran_out_of_time_has_used_something_too(worker: Worker) -> None:
    assert usage_of(await worker.sh("exit 3")).peak_memory_bytes > 0
    assert usage_of(await worker.sh("sleep 1000", timeout_seconds=0.05)).peak_memory_bytes > 0


async def test_a_command_that_never_ran_has_used_nothing(worker: Worker) -> None:
    finished = await worker.run("/no/such/program")
    assert not finished.action_result.execution_metadata.auxiliary_metadata


async def test_processes_side_by_side_are_counted_together(worker: Worker, tmp_path: Path) -> None:
    ready, gate = [tmp_path / "ready1", tmp_path / "ready2"], tmp_path / "gate"
    for path in ready:
        os.mkfifo(path)
    watch = MemoryWatch()
    worker.context.runner = Runner(worker.context.runner._processes, 0.2, memory=watch)
    code = f"""
import os, sys, time
held = b"x" * (300 << 20)
open(sys.argv[1], "w").close()
while not os.path.exists({str(gate)!r}): time.sleep(0.02)
"""
    script = f"{sys.executable} hold.py {ready[0]} & {sys.executable} hold.py {ready[1]} & wait"
    running = asyncio.create_task(worker.sh(script, inputs={"hold.py": code.encode()}))
    async with asyncio.timeout(60):
        for path in ready:  # opening a pipe for reading waits until somebody writes
            await asyncio.to_thread(path.read_bytes)
        watch.look()
        gate.write_bytes(b"")
        usage = usage_of(await running)
    assert usage.peak_memory_bytes >= 600 * MIB


def test_a_process_that_is_gone_takes_nothing() -> None:
    gone = os.spawnv(os.P_NOWAIT, "/bin/true", ["true"])
    os.waitpid(gone, 0)
    assert memory_bytes_of([gone]) == 0
    assert tree_of(gone) == [gone]


async def test_looking_takes_a_bounded_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that cost 5 ms is followed by at least 200 times as long without one; but a costly one not by minutes."""
    loop = asyncio.get_running_loop()
    pauses: list[float] = []
    cpu = iter([0.0, 0.005, 1.0, 2.0])
    watch = MemoryWatch(cpu_clock=lambda: next(cpu))
    handle = loop.call_later(1000, lambda: None)

    def call_later(seconds: float, _callback: object) -> asyncio.TimerHandle:
        pauses.append(seconds)
        return handle

    monkeypatch.setattr(loop, "call_later", call_later)
    watch.began(os.getpid())
    watch._look_again()
    watch._look_again()
    monkeypatch.undo()
    assert pauses == [LOOK_SECONDS, pytest.approx(0.005 / MAX_SHARE), MAX_PAUSE_SECONDS]
    assert watch.ended(os.getpid()) > 0
    assert handle.cancelled()
