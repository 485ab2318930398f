"""`rexec logs` as a user runs it: a process that shows what an action prints, over its worker's death too."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2

from cas.digest import Digest
from integration.server import Server
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.methods import methods_of
from tests.gate import Gate

_SECONDS = 90
_CHECKOUT = Path(__file__).parent.parent


@contextmanager
def executing(server: Server, script: str) -> Iterator[tuple[str, Digest]]:
    """A shell script that runs as an action: the names of operation and action. Cancelled at the end of the block."""
    with grpc.insecure_channel(server.address) as channel:
        command = re_pb2.Command(arguments=["/bin/sh", "-c", script])
        root = re_pb2.Directory()
        action = re_pb2.Action(
            command_digest=_digest(command).to_proto(), input_root_digest=_digest(root).to_proto(), do_not_cache=True
        )
        request = re_pb2.BatchUpdateBlobsRequest()
        for message in (command, root, action):
            request.requests.add(digest=_digest(message).to_proto(), data=message.SerializeToString())
        update = methods_of(re_pb2, "ContentAddressableStorage")["BatchUpdateBlobs"]
        channel.unary_unary(update.path, update.request_type.SerializeToString, update.response_type.FromString)(
            request, timeout=_SECONDS
        )
        execute = methods_of(re_pb2, "Execution")["Execute"]
        call: Any = channel.unary_stream(
            execute.path, execute.request_type.SerializeToString, operations_pb2.Operation.FromString
        )(re_pb2.ExecuteRequest(action_digest=_digest(action).to_proto()), timeout=_SECONDS)
        try:
            yield next(call).name, _digest(action)
        finally:
            call.cancel()


@contextmanager
def rexec_logs(server: Server, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        (sys.executable, "-m", "rexec", "logs", "--server", f"grpc://{server.address}", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=_CHECKOUT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def lines(process: subprocess.Popen[bytes], number: int) -> list[bytes]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(number)]


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path / "gate") as gate:
        yield gate


def test_a_running_action_is_followed_and_a_completed_one_is_shown(rexec_server: Server, gate: Gate) -> None:
    script = f"echo one; echo oops >&2; {gate.wait}; echo two"
    with executing(rexec_server, script) as (operation, action):
        with rexec_logs(rexec_server, operation, "--follow") as process:
            assert lines(process, 1) == [b"one\n"]  # the action waits at its gate
            gate.open()
            output, errors = process.communicate(timeout=_SECONDS)
            assert (process.returncode, output, errors) == (0, b"two\n", b"oops\n")
        with rexec_logs(rexec_server, f"{action.hash}/{action.size_bytes}", "--stdout") as process:
            output, errors = process.communicate(timeout=_SECONDS)
            assert (process.returncode, output, errors) == (0, b"one\ntwo\n", b"")


def test_an_action_whose_worker_dies_is_followed_into_its_second_run(rexec_server: Server, gate: Gate) -> None:
    with (
        executing(rexec_server, f"echo run; {gate.wait}; echo end") as (operation, _action),
        rexec_logs(rexec_server, operation, "--follow") as process,
    ):
        assert lines(process, 1) == [b"run\n"]
        (worker,) = rexec_server.worker_pids()
        rexec_server.kill_worker(worker)
        empty, notice, again = lines(process, 3)
        assert empty == b"\n"
        assert b"runs again" in notice
        assert again == b"run\n"
        gate.open()
        output, _errors = process.communicate(timeout=_SECONDS)
        assert (process.returncode, output) == (0, b"end\n")


def test_an_unknown_operation_is_an_error_in_one_line(rexec_server: Server) -> None:
    with rexec_logs(rexec_server, "operations/unknown") as process:
        output, errors = process.communicate(timeout=_SECONDS)
        assert (process.returncode, output) == (1, b"")
        assert errors.startswith(b"Error: NOT_FOUND: no operation")
        assert errors.count(b"\n") == 1


def _digest(message: Any) -> Digest:
    return Digest.of(message.SerializeToString())
