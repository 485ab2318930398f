"""Drained workers as processes: they end what they run, leave with exit status 0 and are gone for the scheduler at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.edge.test_status_commands import told
from tests.whole.client import Client, whole_server

GUARD_SECONDS = 60


@asynccontextmanager
async def worker_process(
    folder: Path, server: str, name: str, configuration: str = ""
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker of the server that is attached."""
    config = folder / f"{name}.toml"
    config.write_text(
        f'[worker]\nproperties = {{ only = ["{name}"], pool = ["p"] }}\nannounce = ["os", "no-such-program"]\n{configuration}'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rexec", "worker", "--server", server, "--name", name, "--slots", "2",
        "--work-dir", str(folder / name), "--config", str(config), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(GUARD_SECONDS):
            while b"attached to the scheduler" not in (line := await process.stderr.readline()):
                assert line, "the worker ended before it was attached"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Blocked:
    """A script that says when it runs, and then waits until it is let go on."""

    def __init__(self, folder: Path) -> None:
        self._runs, self._go = folder / "runs", folder / "go"
        os.mkfifo(self._runs)
        os.mkfifo(self._go)
        self.script = f"echo > {self._runs}; read line < {self._go}; exit 7"

    async def runs(self) -> None:
        async with asyncio.timeout(GUARD_SECONDS):
            await asyncio.to_thread(self._runs.read_text)

    async def go_on(self) -> None:
        async with asyncio.timeout(GUARD_SECONDS):
            await asyncio.to_thread(self._go.write_text, "\n")


async def states(client: Client) -> dict[str, tuple[str, str, int]]:
    """State, reason and number of running actions of each worker, by its name."""
    shown = await told("workers", "--json", "--server", client.server)
    assert shown.status == 0, shown.errors
    found = [json.loads(line) for line in shown.output.splitlines()]
    return {worker["name"]: (worker["state"], worker["reason"], len(worker["running"])) for worker in found}


async def test_a_worker_that_is_drained_ends_what_it_runs_and_leaves(tmp_path: Path) -> None:
    blocked = Blocked(tmp_path)
    async with whole_server(tmp_path) as client, worker_process(tmp_path, client.server, "leaving") as process:
        platform = {"properties": [{"name": "only", "value": "leaving"}]}
        action = await client.action(blocked.script, platform=platform)
        response = asyncio.create_task(client.execute(action))
        await blocked.runs()
        drained = await told("drain", "leaving", "--server", client.server, "--reason", "new kernel")
        assert (drained.status, drained.errors) == (0, "")
        assert drained.output.splitlines()[1].split()[:3] == ["leaving", "1", "0"]
        assert (await states(client))["leaving"] == ("draining", "drained: new kernel", 1)
        assert process.returncode is None
        await blocked.go_on()
        assert (await response).result.exit_code == 7
        async with asyncio.timeout(GUARD_SECONDS):
            assert await process.wait() == 0
        assert "leaving" not in await states(client)
        again = await told("drain", "leaving", "--server", client.server)
        assert (again.status, again.output) == (1, "")
        assert "no worker that you may drain is named leaving" in again.errors


async def test_idle_workers_leave_at_once_whoever_tells_them(tmp_path: Path) -> None:
    async with (
        whole_server(tmp_path) as client,
        worker_process(tmp_path, client.server, "first") as first,
        worker_process(tmp_path, client.server, "second") as second,
    ):
        first.send_signal(signal.SIGTERM)
        drained = await told("drain", "--property", "only=second", "--json", "--server", client.server)
        assert json.loads(drained.output)["name"] == "second"
        async with asyncio.timeout(GUARD_SECONDS):
            assert (await first.wait(), await second.wait()) == (0, 0)
        # Not "away": both have said that they leave.
        assert set(await states(client)) & {"first", "second"} == set()


async def test_what_a_worker_cannot_end_in_time_is_run_by_another_one(tmp_path: Path) -> None:
    blocked = Blocked(tmp_path)
    second_time = f"if [ -e {tmp_path}/ran ]; then exit 3; fi; touch {tmp_path}/ran; "
    configuration = "drain_grace_seconds = 0.1\n"
    async with whole_server(tmp_path) as client, worker_process(tmp_path, client.server, "spot", configuration) as spot:
        platform = {"properties": [{"name": "pool", "value": "p"}]}
        action = await client.action(second_time + blocked.script, platform=platform)
        response = asyncio.create_task(client.execute(action))
        await blocked.runs()
        spot.send_signal(signal.SIGTERM)
        async with asyncio.timeout(GUARD_SECONDS):
            assert await spot.wait() == 0
        assert "spot" not in await states(client)
        async with worker_process(tmp_path, client.server, "other"):
            assert (await response).result.exit_code == 3
