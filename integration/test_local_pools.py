"""Worker processes that come and go with the work: `rexec serve --workers 0..3`, with real actions."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from google.longrunning import operations_pb2
from grpc import aio

from cas.digest import Digest
from cas.remote import CHANNEL_OPTIONS, RemoteStore
from integration.bazel import execution_flags, running_bazel
from integration.process import children_of, is_alive
from integration.server import REXEC, Server, running_server
from integration.waiting import wait_until
from integration.workspace import lay_out_workspace
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.settings import SchedulerSettings
from tests.whole.client import Client

POOL = """
[[autoscale.pools]]
name = "local"
kind = "local"
idle_seconds = 2
target_wait_seconds = 1
start_seconds = 2
"""

LATENCY_SECONDS = 5.0
"""From Execute to the start of a process. Generous, for a machine that is busy with other things; what it was is printed."""


@dataclass(frozen=True)
class Ran:
    """What became of one action."""

    operation: operations_pb2.Operation

    @property
    def response(self) -> re_pb2.ExecuteResponse:
        found = re_pb2.ExecuteResponse()
        assert self.operation.response.Unpack(found), self.operation
        return found

    def expect(self) -> re_pb2.ActionResult:
        """Raises AssertionError unless it succeeded."""
        response = self.response
        assert response.status.code == 0, response.status
        assert response.result.exit_code == 0, response.result
        return response.result


@contextmanager
def pooled(folder: Path, workers: str, *flags: str, config: str = "", more: str = "") -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rexec.toml"
    file.write_text(config + POOL + more)
    with running_server(folder, 1, ("--workers", workers, "--config", str(file), *flags)) as server:
        yield server


def run_all(server: Server, scripts: list[str], meanwhile: Callable[[], None] = lambda: None) -> list[Ran]:
    """Run so many actions at once; `meanwhile` is called in a thread when all have been sent."""

    async def run() -> list[Ran]:
        async with aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            client = Client(channel, RemoteStore(channel, ""), f"grpc://{server.address}")
            actions: list[Digest] = [await client.action(script) for script in scripts]
            async with asyncio.TaskGroup() as tasks:
                waiting = [tasks.create_task(client.operations(action)) for action in actions]
                tasks.create_task(asyncio.to_thread(meanwhile))
            return [Ran((await each)[-1]) for each in waiting]

    return asyncio.run(run())


def workers_below(pid: int) -> dict[int, str]:
    """Worker processes by pid, with their names."""
    found = {child: command.split() for child, command in children_of(pid).items()}
    return {
        child: words[words.index("--name") + 1]
        for child, words in found.items()
        if "worker" in words and "--name" in words
    }


def entries(server: Server, event: str) -> list[dict[str, object]]:
    """What the server has logged."""
    lines = server.process.log.read_text(errors="replace").splitlines()
    return [entry for line in lines if line.startswith("{") and (entry := json.loads(line))["event"] == event]


def at(entry: dict[str, object]) -> datetime:
    return datetime.fromisoformat(str(entry["timestamp"]))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pooled(tmp_path_factory.mktemp("pool"), "0..3") as server:
        yield server


def none_left(server: Server) -> None:
    wait_until(lambda: not workers_below(server.process.pid), "the end of all workers", 60)


def test_a_burst_starts_workers_and_they_go_when_it_is_over(one: Server) -> None:
    assert workers_below(one.process.pid) == {}
    wait_until(lambda: "0 to 3 local workers" in one.process.log.read_text(), "the greeting", 30)
    most = 0

    def watch() -> None:
        nonlocal most
        wait_until(lambda: len(workers_below(one.process.pid)) == 3, "three workers", 60)
        most = len(workers_below(one.process.pid))

    ran = run_all(one, [f"sleep 0.3; echo burst {number}" for number in range(20)], watch)
    results = [each.expect() for each in ran]
    assert most == 3
    names = {result.execution_metadata.worker for result in results}
    assert 1 <= len(names) <= 3
    assert all(re.fullmatch(r"local-[a-z0-9]{5}", name) for name in names)
    none_left(one)
    counts = one.counts()
    assert counts.executed == 20, "nothing was run twice"
    folders = sorted(path.name for path in (one.folder / "state" / "pools" / "local").iterdir() if path.is_dir())
    assert folders == ["worker-1", "worker-2", "worker-3"]

    queued = min(result.execution_metadata.queued_timestamp.ToDatetime() for result in results)
    first = min(at(entry) for entry in entries(one, "pool changes")).replace(tzinfo=None)
    latency_seconds = (first - queued).total_seconds()
    print(f"from Execute to the start of processes: {latency_seconds:.3f} s")
    assert latency_seconds < LATENCY_SECONDS


def test_bazel_builds_from_nothing_and_back_to_nothing(one: Server, tmp_path: Path) -> None:
    none_left(one)
    before = one.counts()
    workspace = lay_out_workspace("cpp", tmp_path / "workspace")
    with running_bazel(workspace, tmp_path / "bazel", execution_flags(one.address)) as bazel:
        outcome = bazel.build("//...").expect()
    none_left(one)
    assert outcome.processes.elsewhere == {}
    one.expect_executions(before, outcome.processes.remote)


def test_the_next_burst_finds_the_directories_of_the_first(one: Server) -> None:
    before = one.counts()
    for each in run_all(one, [f"echo again {number}" for number in range(6)]):
        each.expect()
    none_left(one)
    one.expect_executions(before, 6)
    folders = sorted(path.name for path in (one.folder / "state" / "pools" / "local").iterdir() if path.is_dir())
    assert folders == ["worker-1", "worker-2", "worker-3"]


def test_a_worker_that_is_killed_costs_a_retry_and_no_build(one: Server, tmp_path: Path) -> None:
    flags = [tmp_path / f"started-{number}" for number in range(4)]
    killed: list[int] = []

    def kill_one() -> None:
        wait_until(lambda: any(flag.exists() for flag in flags), "the first action", 60)
        wait_until(lambda: bool(workers_below(one.process.pid)), "a worker", 10)
        killed.append(min(workers_below(one.process.pid)))
        one.kill_worker(killed[0])

    scripts = [f"touch {flag}; sleep 2; echo {number}" for number, flag in enumerate(flags)]
    for each in run_all(one, scripts, kill_one):
        each.expect()
    assert killed
    assert not is_alive(killed[0])
    none_left(one)


def test_what_a_killed_worker_ran_starts_again_without_the_grace(one: Server, tmp_path: Path) -> None:
    starts, go = tmp_path / "starts", tmp_path / "go"
    killed_at: list[float] = []

    def started() -> list[float]:
        return [float(line) for line in starts.read_text().split()] if starts.exists() else []

    def kill_it() -> None:
        wait_until(lambda: bool(started()), "the first start", 60)
        (worker,) = workers_below(one.process.pid)
        killed_at.append(time.time())
        one.kill_worker(worker)
        wait_until(lambda: len(started()) == 2, "the second start", 60)
        go.touch()

    run_all(one, [f"date +%s.%N >> {starts}; until test -e {go}; do sleep 0.05; done"], kill_it)[0].expect()
    seconds = started()[1] - killed_at[0]
    print(f"from the end of a worker to the second start of what it ran: {seconds:.3f} s")
    assert seconds < SchedulerSettings().grace_seconds
    none_left(one)


def test_a_server_that_was_killed_and_started_again_goes_on_with_the_build(tmp_path: Path) -> None:
    flag = tmp_path / "started"
    with pooled(tmp_path / "server", "0..2") as server:

        def restart() -> None:
            wait_until(flag.exists, "the first action", 60)
            workers = set(workers_below(server.process.pid))
            server.kill()
            wait_until(lambda: not any(map(is_alive, workers)), "the end of the workers", 30)
            server.restart()

        async def run() -> Ran:
            async with aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
                client = Client(channel, RemoteStore(channel, ""), f"grpc://{server.address}")
                action = await client.action(f"touch {flag}; sleep 3; echo done")
                restarting = asyncio.create_task(asyncio.to_thread(restart))
                with pytest.raises(aio.AioRpcError):
                    await client.operations(action)
                await restarting
                return Ran((await client.operations(action))[-1])

        asyncio.run(run()).expect()
        none_left(server)


def test_a_minimum_is_kept_and_replaced(tmp_path: Path) -> None:
    with pooled(tmp_path, "1..2") as server:
        wait_until(lambda: len(workers_below(server.process.pid)) == 1, "the one that is kept", 60)
        (first,) = workers_below(server.process.pid)
        wait_until(lambda: bool(entries(server, "worker has come")), "its coming", 60)
        server.kill_worker(first)
        wait_until(lambda: bool(set(workers_below(server.process.pid)) - {first}), "another one", 60)
        run_all(server, ["echo one"])[0].expect()


def test_actions_of_a_pool_start_with_its_environment(tmp_path: Path) -> None:
    config = "[worker.environment]\nPATH = '/bin:/usr/bin'\nKEPT = 'kept'\nCHANGED = 'before'\n"
    with pooled(tmp_path, "0..1", config=config, more="environment = {CHANGED = 'after = $HOME'}\n") as server:
        run_all(server, ["test \"$KEPT, $CHANGED\" = 'kept, after = $HOME'"])[0].expect()


def test_the_core_of_several_processes_owns_the_pool(tmp_path: Path) -> None:
    with pooled(tmp_path, "0..2", "--processes", "2") as server:
        (core,) = (pid for pid, command in server.process.children().items() if "part core" in command)
        seen: set[int] = set()

        def watch() -> None:
            wait_until(lambda: bool(workers_below(core)), "a worker below the core", 60)
            seen.update(workers_below(core))

        for each in run_all(server, [f"sleep 0.2; echo {number}" for number in range(4)], watch):
            each.expect()
        assert seen
        wait_until(lambda: not workers_below(core), "the end of all workers", 60)


def test_why_workers_do_not_come_is_told_to_those_who_wait(tmp_path: Path) -> None:
    # What is configured for the one worker of a machine is not for several.
    config = "[worker]\ncache_dir = '/proc/nowhere'\nmetrics_listen = '127.0.0.1:1'\n"
    with pooled(tmp_path, "0..2", config=config) as server:
        obstacle = server.folder / "state" / "pools" / "local" / "worker-1" / "cache"
        obstacle.parent.mkdir(parents=True)
        obstacle.write_text("a file where a directory should be")

        def clear() -> None:
            wait_until(lambda: "cannot be used" in listed(server), "the reason in the list of operations", 60)
            obstacle.unlink()

        run_all(server, ["echo here"], clear)[0].expect()
        (told, *_) = entries(server, "a worker failed to start")
        assert str(obstacle) in str(told["why"])


def listed(server: Server) -> str:
    """What `rexec ps` shows."""
    command = [*REXEC, "ps", "--server", f"grpc://{server.address}"]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout
