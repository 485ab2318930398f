"""`rexec serve` is killed or stopped while actions run and wait, and is started again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2

from cas.digest import Digest
from cas.errors import Code
from integration.server import Server, running_server
from integration.waiting import wait_until
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.methods import methods_of
from tests.gate import Gate

_SECONDS = 90.0

_EXECUTION = methods_of(re_pb2, "Execution")


def _digest(message: Any) -> Digest:
    return Digest.of(message.SerializeToString())


def _begin(channel: grpc.Channel, script: str) -> tuple[str, Any]:
    """Execute a shell script: the operation's name, and the call."""
    command = re_pb2.Command(arguments=["/bin/sh", "-c", script])
    root = re_pb2.Directory()
    action = re_pb2.Action(command_digest=_digest(command).to_proto(), input_root_digest=_digest(root).to_proto())
    request = re_pb2.BatchUpdateBlobsRequest()
    for message in (command, root, action):
        request.requests.add(digest=_digest(message).to_proto(), data=message.SerializeToString())
    update = methods_of(re_pb2, "ContentAddressableStorage")["BatchUpdateBlobs"]
    channel.unary_unary(update.path, update.request_type.SerializeToString, update.response_type.FromString)(
        request, timeout=_SECONDS
    )
    call: Any = channel.unary_stream(
        _EXECUTION["Execute"].path, re_pb2.ExecuteRequest.SerializeToString, operations_pb2.Operation.FromString
    )(re_pb2.ExecuteRequest(action_digest=_digest(action).to_proto()), timeout=_SECONDS)
    return next(call).name, call


def _waits(channel: grpc.Channel, name: str) -> Any:
    """WaitExecution."""
    return channel.unary_stream(
        _EXECUTION["WaitExecution"].path,
        re_pb2.WaitExecutionRequest.SerializeToString,
        operations_pb2.Operation.FromString,
    )(re_pb2.WaitExecutionRequest(name=name), timeout=_SECONDS)


def _awaited(channel: grpc.Channel, name: str) -> re_pb2.ExecuteResponse:
    """What WaitExecution says in the end. Raises grpc.RpcError."""
    last = list(_waits(channel, name))[-1]
    response = re_pb2.ExecuteResponse()
    assert last.done
    assert last.response.Unpack(response)
    return response


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path / "gate") as gate:
        yield gate


_ENDS: dict[str, Callable[[Server], None]] = {"killed": Server.kill, "stopped": Server.stop}


@pytest.mark.parametrize("end", _ENDS)
def test_an_action_on_a_worker_apart_runs_on_and_its_client_comes_back(tmp_path: Path, gate: Gate, end: str) -> None:
    runs = tmp_path / "runs"
    with running_server(tmp_path / "server", slots=0) as server:
        server.start_worker(slots=1)
        with grpc.insecure_channel(server.address) as channel:
            running, stream = _begin(channel, f"echo run >> {runs}; {gate.wait}; echo done")
            wait_until(runs.exists, "the action to run", _SECONDS)
            waiting, other = _begin(channel, f"echo second >> {runs}")
            _ENDS[end](server)
            for call in (stream, other):
                with pytest.raises(grpc.RpcError) as caught:
                    list(call)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        server.restart()
        with grpc.insecure_channel(server.address) as channel:
            gate.open()
            response = _awaited(channel, running)
            assert response.status.code == Code.OK
            assert response.result.exit_code == 0
            assert not response.cached_result
            assert _awaited(channel, waiting).result.exit_code == 0
        assert runs.read_text() == "run\nsecond\n"


def test_an_action_of_the_local_worker_runs_again_and_that_counts_for_nothing(tmp_path: Path, gate: Gate) -> None:
    """The local worker ends with its server."""
    runs = tmp_path / "runs"

    def wait_for_run(number: int) -> None:
        wait_until(
            lambda: runs.exists() and len(runs.read_text().splitlines()) == number, f"run {number}", _SECONDS
        )  # fmt: skip

    with running_server(tmp_path / "server", slots=1) as server:
        with grpc.insecure_channel(server.address) as channel:
            name, _stream = _begin(channel, f"echo run >> {runs}; {gate.wait}")
            wait_for_run(1)
            server.kill()
        server.restart()
        for number in (2, 3):  # as often as an action may be tried
            with grpc.insecure_channel(server.address) as channel:
                stream = _waits(channel, name)
                next(stream)
                wait_for_run(number)
                server.kill()
            server.restart()
        for _ in range(4):  # for those of its forerunners too that are still about to be killed
            gate.open()
        with grpc.insecure_channel(server.address) as channel:
            response = _awaited(channel, name)
        assert response.status.code == Code.OK
        assert response.result.exit_code == 0


def test_without_a_journal_everything_is_forgotten(tmp_path: Path, gate: Gate) -> None:
    config = tmp_path / "rexec.toml"
    config.write_text("[scheduler]\njournal = false\n")
    with running_server(tmp_path / "server", slots=0, extra_flags=("--config", str(config))) as server:
        with grpc.insecure_channel(server.address) as channel:
            name, _stream = _begin(channel, "true")
            server.kill()
        server.restart()
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
            _awaited(channel, name)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert not list((tmp_path / "server" / "state").glob("scheduler.sqlite3*"))
