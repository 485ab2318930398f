"""What actions are held to: descriptors, files, processes and memory; and what is told of those that took more."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cas.errors import Code
from cas.memory import MemoryStore
from protos.rexec.scheduler.v1 import record_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker import limits
from rexec.worker.limits import ActionLimits
from rexec.worker.memory_watch import MemoryWatch, WatchLimits
from rexec.worker.process_table import all_processes, lies_in
from rexec.worker.settings import MemoryLimit
from rexec.worker.start import runner_of
from tests.worker.actions import Inputs, Worker, make_context

MIB = 1 << 20
NONE = worker_pb2.Finished.NONE
PATH = {"PATH": os.environ["PATH"]}


@pytest_asyncio.fixture
async def small(tmp_path: Path, store: MemoryStore) -> AsyncIterator[Worker]:
    """A worker on which an action may have little."""
    context = await make_context(
        tmp_path / "work", store, max_open_files=2000, max_processes=50, file_max_bytes=1 << 20, cache_max_bytes=1 << 20,
        resources={"memory": 400 * MIB},
    )  # fmt: skip
    yield Worker(context, Inputs(store), tmp_path / "work")
    context.workspace.close()


def takes(mebibytes: int, then: str = "time.sleep(1000)") -> list[str]:
    return [sys.executable, "-c", f"import time; x = b'x' * ({mebibytes} << 20); {then}"]


def left_in(directory: Path) -> list[int]:
    return [pid for pid, process in all_processes().items() if not process.is_dead and lies_in(pid, str(directory))]


async def test_every_process_is_held_to_the_limits(small: Worker) -> None:
    for _ in range(20):
        finished = await small.sh("ulimit -n; ulimit -f; sh -c 'ulimit -n; ulimit -f'", env=PATH)
        assert (await small.stdout(finished)).split() == ["2000", "2048"] * 2
    finished = await small.sh("sleep 0.3; ulimit -Hn; ulimit -Hf; ulimit -c; ulimit -Hc", env=PATH)
    assert (await small.stdout(finished)).split() == ["2000", "2048", "0", "0"]


def test_processes_without_end_that_are_held_to_them_already_do_not_keep_the_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def tree_of(_pid: int) -> list[int]:
        """As if the first one, which comes without limits, started another whenever somebody looks."""
        if len(started) > 4:
            raise AssertionError("looked for processes again and again")
        process = subprocess.Popen(["sleep", "1000"])
        if started:
            for kind, bound in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 500)):
                resource.prlimit(process.pid, kind, (bound, bound))
        started.append(process)
        return [process.pid for process in started]

    monkeypatch.setattr(limits, "tree_of", tree_of)
    try:
        ActionLimits(max_open_files=500).apply(0, with_descendants=True)
        assert resource.prlimit(started[0].pid, resource.RLIMIT_NOFILE) == (500, 500)
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_limit_that_is_in_the_agents_own_way_is_not_taken_on_by_it() -> None:
    kinds = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
    before = [resource.getrlimit(kind) for kind in kinds]
    with ActionLimits(max_open_files=100, file_max_bytes=1 << 20, own_file_max_bytes=2 << 20).taken_on():
        assert [resource.getrlimit(kind) for kind in kinds] == before
    with ActionLimits(max_open_files=1024, file_max_bytes=2 << 20, own_file_max_bytes=2 << 20).taken_on():
        assert [resource.getrlimit(kind)[0] for kind in kinds] == [1024, 2 << 20]
    assert [resource.getrlimit(kind) for kind in kinds] == before


async def test_the_agents_own_limits_are_left_alone(small: Worker) -> None:
    before = [resource.getrlimit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)]
    await small.sh("true")
    assert [resource.getrlimit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)] == before


async def test_a_file_that_grows_too_large_ends_its_writer_and_is_told_of(small: Worker) -> None:
    finished = await small.run("/usr/bin/head", "-c", "2000000", "/dev/zero")
    assert finished.action_result.exit_code == 0, "a pipe is no file"
    finished = await small.sh("head -c 2000000 /dev/zero > f; exit $?", output_paths=["f"], env=PATH)
    assert (finished.status.code, finished.failure, finished.action_result.exit_code) == (0, NONE, 153)
    assert "[worker] file_max_bytes" in finished.message
    assert [file.digest.size_bytes for file in finished.action_result.output_files] == [1 << 20]


async def test_a_sparse_file_larger_than_any_disk_is_never_made(small: Worker) -> None:
    finished = await small.sh("truncate -s 1E f; exit $?", output_paths=["f"], env=PATH)
    assert finished.action_result.exit_code != 0
    assert all(file.digest.size_bytes <= 1 << 20 for file in finished.action_result.output_files)


async def test_an_action_above_its_slots_share_is_killed_alone_and_told_so(small: Worker) -> None:
    assert small.context.memory_bytes == 400 * MIB
    gate = small.work_dir / "gate"
    os.mkfifo(gate)
    neighbour = asyncio.create_task(small.sh(f"cat {gate}", env=PATH))
    async with asyncio.timeout(30):
        finished = await small.run(*takes(300))
        writer = await asyncio.to_thread(os.open, gate, os.O_WRONLY)
        os.write(writer, b"well\n")
        os.close(writer)
        assert await small.stdout(await neighbour) == "well\n"
    assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, NONE)
    assert finished.status.message == finished.message
    assert finished.message.startswith("killed: ")
    assert finished.message.endswith(" MiB, slot 200 MiB")
    assert 200 * MIB < finished.exceeded_memory_bytes < 400 * MIB
    assert left_in(small.work_dir) == []


async def test_what_it_printed_and_made_before_is_kept(small: Worker) -> None:
    script = (
        f"echo so far; echo partial > out; exec {sys.executable} -c 'x = b\"x\" * (300 << 20); input()' < /dev/zero"
    )
    async with asyncio.timeout(30):
        finished = await small.sh(script, output_paths=["out"])
    assert finished.exceeded_memory_bytes
    assert await small.read(finished.action_result.stdout_digest) == b"so far\n"
    assert await small.outputs(finished) == {"out": b"partial\n"}


@pytest.mark.parametrize("demand", [record_pb2.Demand(memory_bytes=400 * MIB), record_pb2.Demand(slots=2)])
async def test_an_action_that_was_given_more_may_take_more(small: Worker, demand: record_pb2.Demand) -> None:
    finished = await small.run(*takes(250, "time.sleep(0.5)"), demand=demand)
    assert (finished.status.code, finished.action_result.exit_code) == (0, 0)


async def test_memory_of_processes_side_by_side_is_added_up(small: Worker) -> None:
    one = f"{sys.executable} -c 'import time; x = b\"x\" * (80 << 20); time.sleep(1000)'"
    async with asyncio.timeout(30):
        finished = await small.sh(f"{one} & {one} & setsid {one} & wait", env=PATH)
    assert finished.exceeded_memory_bytes > 200 * MIB


@pytest.mark.parametrize("limit", [MemoryLimit.MACHINE, MemoryLimit.OFF])
async def test_the_share_can_be_left_unenforced(tmp_path: Path, store: MemoryStore, limit: MemoryLimit) -> None:
    context = await make_context(tmp_path / "work", store, memory_limit=limit, resources={"memory": 100 * MIB})
    finished = await Worker(context, Inputs(store), tmp_path / "work").run(*takes(150, "time.sleep(0.5)"))
    assert (finished.status.code, finished.action_result.exit_code) == (0, 0)
    context.workspace.close()


async def test_an_action_killed_for_the_machines_sake_is_run_elsewhere(tmp_path: Path, store: MemoryStore) -> None:
    context = await make_context(tmp_path / "work", store)
    limits = WatchLimits(keeps_to_share=True, least_available_bytes=256 * MIB)
    watch = MemoryWatch(limits=limits, available_bytes=lambda: 100 * MIB)
    context.runner._memory = watch
    async with asyncio.timeout(30):
        finished = await Worker(context, Inputs(store), tmp_path / "work").run(*takes(50))
    assert finished.failure == worker_pb2.Finished.INFRASTRUCTURE
    assert "the most of all actions, when the machine had 100 MiB of memory left" in finished.message
    assert not finished.HasField("action_result")
    assert left_in(tmp_path / "work") == []
    context.workspace.close()


BOMBS = {
    "children": "for i in $(seq 1000); do sleep 100 & done; sleep 1000",
    "generations": "f() { if [ $1 -lt 9 ]; then f $(($1+1)) | f $(($1+1)) & fi; sleep 100; }; f 0; sleep 1000",
    "orphans": "for i in $(seq 1000); do (sleep 100 &); done; sleep 1000",
    "sessions": "for i in $(seq 1000); do (setsid sleep 100 &); done; sleep 1000",
}
"""Each stops by itself at about a thousand processes: a real one would take those of the whole machine, if that is too busy to
let the watch look in time."""


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
async def test_a_fork_bomb_is_bounded_and_ended(small: Worker, bomb: str) -> None:
    async with asyncio.timeout(60):
        finished = await small.sh(bomb, env=PATH)
    assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, NONE)
    assert "more than 50 processes ([worker] max_processes)" in finished.message
    assert not finished.exceeded_memory_bytes, "more memory would not help it"
    assert left_in(small.work_dir) == []


async def test_orphans_that_end_do_not_pile_up_while_the_action_runs(small: Worker) -> None:
    processes = small.context.runner._processes
    ready = small.work_dir / "ready"
    os.mkfifo(ready)
    script = f"for i in 1 2 3 4 5 6 7 8 9; do (true &); done; (sleep 1000 &); echo > {ready}; sleep 1000"
    running = asyncio.create_task(small.sh(script, env=PATH))
    async with asyncio.timeout(30):
        await asyncio.to_thread(ready.read_bytes)
        while {len(pids) for pids in processes.orphans().values()} != {1}:
            await asyncio.to_thread(os.sched_yield)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert left_in(small.work_dir) == []


async def test_the_watch_is_set_up_as_configured(small: Worker) -> None:
    runner = runner_of(small.context.settings, small.context.runner._processes, small.context.workspace)
    assert runner._memory._limits.max_processes == 50
    assert runner._memory._limits.keeps_to_share
    assert runner._memory._limits.least_available_bytes > 0
