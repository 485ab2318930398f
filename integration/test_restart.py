"""`rexec serve` is killed or stopped while actions run and wait, and is started again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from cas.errors import Code
from integration.execution import awaited, begin, waits
from integration.server import Server, running_server
from integration.waiting import wait_until
from tests.gate import Gate

_SECONDS = 90.0


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
            running, stream = begin(channel, f"echo run >> {runs}; {gate.wait}; echo done")
            wait_until(runs.exists, "the action to run", _SECONDS)
            waiting, other = begin(channel, f"echo second >> {runs}")
            _ENDS[end](server)
            for call in (stream, other):
                with pytest.raises(grpc.RpcError) as caught:
                    list(call)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        server.restart()
        with grpc.insecure_channel(server.address) as channel:
            gate.open()
            response = awaited(channel, running)
            assert response.status.code == Code.OK
            assert response.result.exit_code == 0
            assert not response.cached_result
            assert awaited(channel, waiting).result.exit_code == 0
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
            name, _stream = begin(channel, f"echo run >> {runs}; {gate.wait}")
            wait_for_run(1)
            server.kill()
        server.restart()
        for number in (2, 3):  # as often as an action may be tried
            with grpc.insecure_channel(server.address) as channel:
                stream = waits(channel, name)
                next(stream)
                wait_for_run(number)
                server.kill()
            server.restart()
        for _ in range(4):  # for those of its forerunners too that are still about to be killed
            gate.open()
        with grpc.insecure_channel(server.address) as channel:
            response = awaited(channel, name)
        assert response.status.code == Code.OK
        assert response.result.exit_code == 0


def test_without_a_journal_everything_is_forgotten(tmp_path: Path, gate: Gate) -> None:
    config = tmp_path / "rexec.toml"
    config.write_text("[scheduler]\njournal = false\n")
    with running_server(tmp_path / "server", slots=0, extra_flags=("--config", str(config))) as server:
        with grpc.insecure_channel(server.address) as channel:
            name, _stream = begin(channel, "true")
            server.kill()
        server.restart()
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
            awaited(channel, name)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert not list((tmp_path / "server" / "state").glob("scheduler.sqlite3*"))
