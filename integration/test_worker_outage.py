"""The server is away for a minute while actions run: they end, their worker keeps what they made, and reports it when the
server is back. With the defaults, and with clients that come back by themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from integration.bazel import execution_flags, running_bazel
from integration.execution import awaited, begin, blob
from integration.process import Process
from integration.server import running_server
from integration.waiting import wait_until
from integration.workspace import lay_out_shims
from tests.gate import Gate

OUTAGE_SECONDS = 61.0
"""What is promised is a minute."""

_SECONDS = 60.0
_LARGE_BYTES = 5_000_000
"""More than one message takes, so that it goes another way than small outputs."""

# Bazel's default of five retries is for seconds.
_PATIENT = ("--remote_retries=100",)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path / "gate") as gate:
        yield gate


def said(worker: Process, event: str) -> list[dict[str, Any]]:
    """The lines of the worker's log with this event."""
    lines = [json.loads(line) for line in worker.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def away_since(worker: Process) -> float:
    """When the worker said that its stream broke, on the clock on the wall."""
    wait_until(lambda: bool(said(worker, "no stream to the scheduler")), "the worker to notice", _SECONDS)
    (first, *_) = said(worker, "no stream to the scheduler")
    return datetime.fromisoformat(first["timestamp"]).timestamp()


def test_actions_end_while_the_server_is_away_for_a_minute_and_are_reported_afterwards(
    tmp_path: Path, gate: Gate
) -> None:
    log = tmp_path / "runs"

    def script(name: str, output: str) -> str:
        return f"echo {name} begins >>{log}; {gate.wait}; {output}; echo {name} ends >>{log}"

    def runs() -> list[str]:
        return sorted(log.read_text().splitlines()) if log.exists() else []

    workspace = tmp_path / "workspace"
    workspace.mkdir()
    lay_out_shims(workspace)
    (workspace / "BUILD.bazel").write_text(
        f"""genrule(name = "built", outs = ["built.txt"], cmd = "{script("bazel", "echo built >$@")}")"""
    )
    with running_server(tmp_path / "server", slots=0) as server:
        worker = server.start_worker(slots=2)
        flags = (*execution_flags(server.address), *_PATIENT)
        with running_bazel(workspace, tmp_path / "bazel", flags) as bazel:
            with grpc.insecure_channel(server.address) as channel:
                make_large = f"head -c {_LARGE_BYTES} /dev/zero >large; echo small >small"
                name, call = begin(channel, script("client", make_large), output_paths=["large", "small"])
                build = bazel.start("build", "//:built")
                wait_until(lambda: runs() == ["bazel begins", "client begins"], "both actions to run", _SECONDS)
                server.kill()
                with pytest.raises(grpc.RpcError) as caught:
                    list(call)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            since = away_since(worker)
            gate.open()
            gate.open()
            once = ["bazel begins", "bazel ends", "client begins", "client ends"]
            wait_until(lambda: runs() == once, "both actions to end without a server", _SECONDS)
            wait_until(lambda: time.time() - since > OUTAGE_SECONDS, "a minute to pass", OUTAGE_SECONDS + 10)
            worker.expect_running()
            build.expect_running()

            server.restart()
            with grpc.insecure_channel(server.address) as channel:
                response = awaited(channel, name)
                assert (response.status.code, response.result.exit_code) == (0, 0)
                assert not response.cached_result
                outputs = {output.path: output.digest for output in response.result.output_files}
                assert outputs["large"].size_bytes == _LARGE_BYTES
                assert blob(channel, outputs["small"]) == b"small\n"
            assert build.wait().expect().processes.remote == 1
            assert (bazel.bin / "built.txt").read_text() == "built\n"
        # None of them ran again, and it was the worker that had been there before.
        assert runs() == once
        worker.expect_running()
        assert [line["held"] for line in said(worker, "attached to the scheduler")] == [0, 2]
        assert said(worker, "the store is reached again")
