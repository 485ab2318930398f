"""`rexec serve --processes`: any of its processes may die while actions run, and none is left behind when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.longrunning import operations_pb2
from grpc import StatusCode, aio

from cas.digest import Digest
from cas.errors import Unavailable
from cas.remote import CHANNEL_OPTIONS, RemoteStore
from integration.process import descendants_of, is_alive
from integration.server import Server, free_port, running_server
from integration.waiting import wait_until
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.methods import methods_of

CLIENTS = 4
EXECUTE = methods_of(re_pb2, "Execution")["Execute"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path / "server", slots=2, extra_flags=("--processes", "2")) as started:
        yield started


def parts_of(server: Server, words: str) -> list[int]:
    """The pids of the server's own processes with `words` on their command line."""
    return sorted(pid for pid, command in server.process.children().items() if f" {words} " in f"{command} ")


class Build:
    """Clients that run one action after the other; what is lost with a connection they do again, as real ones do."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.done = 0
        self.lost_connections = 0
        self.stopping = False

    async def run(self, client: int) -> None:
        number = 0
        while not self.stopping:
            await self._until_done(f"{client} {number}")
            number += 1
            self.done += 1

    async def _until_done(self, name: str) -> None:
        while True:
            # A connection for each action, so that both frontends have some.
            async with aio.insecure_channel(self._server.address, options=CHANNEL_OPTIONS) as channel:
                try:
                    assert await _output_of(channel, name) == f"{name}\n".encode()
                except aio.AioRpcError as error:
                    if error.code() != StatusCode.UNAVAILABLE:
                        raise
                    self.lost_connections += 1
                except Unavailable:
                    # From the store, of a connection that broke.
                    self.lost_connections += 1
                else:
                    return

    async def reach(self, more: int) -> None:
        """Return once so many more actions are done."""
        wanted = self.done + more
        await asyncio.to_thread(wait_until, lambda: self.done >= wanted, f"{more} more actions", 90)


async def _output_of(channel: aio.Channel, name: str) -> bytes:
    command = re_pb2.Command(arguments=["/bin/sh", "-c", f"sleep 0.2; echo {name}"])
    root = re_pb2.Directory()
    action = re_pb2.Action(
        command_digest=Digest.of(command.SerializeToString()).to_proto(),
        input_root_digest=Digest.of(root.SerializeToString()).to_proto(),
    )
    contents = [message.SerializeToString() for message in (command, root, action)]
    store = RemoteStore(channel, "")
    failures = await store.write_many([(Digest.of(data), data) for data in contents])
    for failure in failures.values():
        raise failure
    execute = channel.unary_stream(
        EXECUTE.path,
        request_serializer=EXECUTE.request_type.SerializeToString,
        response_deserializer=EXECUTE.response_type.FromString,
    )
    request = re_pb2.ExecuteRequest(action_digest=Digest.of(contents[2]).to_proto())
    last: operations_pb2.Operation | None = None
    async for operation in execute(request, timeout=60):
        assert isinstance(operation, operations_pb2.Operation)
        last = operation
    assert last is not None
    assert last.done
    response = re_pb2.ExecuteResponse()
    assert last.response.Unpack(response)
    assert response.status.code == 0, response.status
    assert response.result.exit_code == 0
    if response.result.stdout_raw:
        return bytes(response.result.stdout_raw)
    digest = Digest.from_proto(response.result.stdout_digest)
    return (await store.read_many([digest]))[digest]


async def test_whatever_dies_comes_back_while_actions_run_and_no_action_fails(server: Server) -> None:
    build = Build(server)
    async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
        for client in range(CLIENTS):
            tasks.create_task(build.run(client))
        await build.reach(8)
        for words in ("part core", "part frontend", "worker", "part frontend", "part core"):
            before = parts_of(server, words)
            os.kill(before[0], signal.SIGKILL)

            def replaced(words: str = words, before: list[int] = before) -> bool:
                now = parts_of(server, words)
                return len(now) == len(before) and before[0] not in now

            await asyncio.to_thread(wait_until, replaced, f"another {words}", 60)
            await build.reach(12)
        build.stopping = True
    assert [len(parts_of(server, words)) for words in ("part core", "part frontend", "worker")] == [1, 2, 1]
    server.process.expect_running()
    server.stop()  # fails if a process is left behind


def test_no_process_outlives_a_supervisor_that_is_killed(server: Server) -> None:
    below = descendants_of(server.process.pid)
    assert len(below) >= 4
    server.kill()
    wait_until(lambda: not any(map(is_alive, below)), "the end of all parts", 30)
    server.restart()
    assert len(parts_of(server, "part frontend")) == 2


def test_the_metrics_of_all_processes_are_on_one_page(server: Server) -> None:
    def page() -> str:
        with urllib.request.urlopen(f"http://{server._metrics_address}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    shown = [f'rexec_process_up{{process="{process}"}} 1.0' for process in ("core", "frontend 1", "frontend 2")]
    wait_until(lambda: all(line in page() for line in shown), "all processes on the page", 30)
    assert page().count("# TYPE rexec_process_up ") == 1
    assert 'rexec_slots{process="core"} 2.0' in page()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_server_on_the_port_is_refused(server: Server, tmp_path: Path, processes: int) -> None:
    refused = _served(server.address, tmp_path / "other", processes)
    assert refused.returncode != 0
    assert "the port is in use" in refused.stderr
    assert server.process.is_running()


def test_a_server_whose_state_directory_is_taken_says_so_and_ends(server: Server) -> None:
    refused = _served(f"127.0.0.1:{free_port()}", server.folder / "state", 2)
    assert refused.returncode != 0
    assert "is in use by another" in refused.stderr
    assert "the core cannot start: exit code 1" in refused.stderr
    assert "started again" not in refused.stderr


def _served(address: str, state: Path, processes: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rexec", "serve", "--listen", address, "--state-dir", str(state), "--slots", "0"]
    return subprocess.run(
        [*command, "--processes", str(processes)], capture_output=True, text=True, timeout=60, check=False
    )
