"""Workers that are taken out of service during a build, by a signal or by `rexec drain`: processes, and Bazel as the client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.bazel import Bazel, execution_flags, running_bazel
from integration.process import Process, descendants_of, end_by_pid
from integration.server import REXEC, Server, running_server
from integration.waiting import wait_until
from integration.workspace import lay_out_shims
from tests.gate import Gate

SECONDS = 60.0

# What an action is to do comes from an input, so that it is the same kind of action whatever it does.
_BUILD = """
[genrule(
    name = name,
    srcs = [name + ".sh"],
    outs = [name + ".txt"],
    cmd = "sh $< && echo $@ >$@",
) for name in ["first", "second"]]
"""


@dataclass
class Bench:
    """A server without workers of its own, and a Bazel with a workspace of two actions. What an action starts and ends with
    is written down outside of its input root."""

    server: Server
    bazel: Bazel
    folder: Path

    def let(self, name: str, script: str) -> None:
        """Say what an action does; it is another action after that."""
        log = self.folder / f"{name}.log"
        log.unlink(missing_ok=True)
        (self.bazel.workspace / f"{name}.sh").write_text(f"echo begins >>{log}\n{script}\necho ends >>{log}\n")

    def log(self, name: str) -> list[str]:
        log = self.folder / f"{name}.log"
        return log.read_text().split() if log.exists() else []

    def wait_for_begin(self, name: str, times: int = 1) -> None:
        wait_until(lambda: self.log(name).count("begins") == times, f"begin {times} of {name}", SECONDS)

    def rexec(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of rexec for this server."""
        command = (*REXEC, *arguments, "--server", f"grpc://{self.server.address}")
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)

    def states(self) -> dict[str, str]:
        """State of each worker, by name."""
        shown = self.rexec("workers", "--json")
        assert shown.returncode == 0, shown.stderr
        return {worker["name"]: worker["state"] for worker in map(json.loads, shown.stdout.splitlines())}

    def wait_for_state(self, worker: str, state: str) -> None:
        wait_until(lambda: self.states().get(worker) == state, f"{worker} to be {state}", SECONDS)

    def why_again(self) -> list[tuple[str, bool]]:
        """Why actions were queued again, and whether that counted as an attempt: from the server's log."""
        lines = [json.loads(line) for line in self.server.process.log.read_text().splitlines() if line.startswith("{")]
        return [(line["reason"], line["counted"]) for line in lines if line["event"] == "action queued again"]

    @contextmanager
    def worker(self, name: str, configuration: str = "", pool: str = "p") -> Iterator[Process]:
        """A worker with one slot that is attached."""
        config = self.folder / f"{name}.toml"
        config.write_text(f'[worker]\nproperties = {{ pool = ["{pool}"] }}\n{configuration}')
        log = self.folder / f"{name}.worker.log"
        log.unlink(missing_ok=True)
        process = Process(
            (
                *REXEC, "worker", "--server", f"grpc://{self.server.address}", "--name", name, "--slots", "1",
                "--work-dir", str(self.folder / f"{name}.work"), "--config", str(config),
            ),
            log,
        )  # fmt: skip
        try:

            def is_ready() -> bool:
                process.expect_running()
                return self.states().get(name) == "ready"

            wait_until(is_ready, f"{name} to be attached", SECONDS)
            yield process
        finally:
            below = descendants_of(process.pid)
            process.kill()
            end_by_pid(below)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("drain")
    workspace = folder / "workspace"
    workspace.mkdir()
    lay_out_shims(workspace)
    (workspace / "BUILD.bazel").write_text(_BUILD)
    with (
        running_server(folder / "server", slots=0) as server,
        running_bazel(workspace, folder / "bazel", execution_flags(server.address)) as bazel,
    ):
        yield Bench(server, bazel, folder)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path / "gate") as gate:
        yield gate


def test_a_worker_that_gets_a_signal_ends_what_it_runs_and_gets_nothing_more(bench: Bench, gate: Gate) -> None:
    bench.let("first", gate.wait)
    bench.let("second", "true")
    with bench.worker("leaving") as leaving, ExitStack() as stack:
        build = bench.bazel.start("build", "//:first")
        bench.wait_for_begin("first")
        os.kill(leaving.pid, signal.SIGTERM)
        bench.wait_for_state("leaving", "draining")
        stack.enter_context(bench.worker("other"))
        gate.open()
        assert build.wait().expect().processes.remote == 1
        assert leaving.ended() == 0
        assert "worker has left" in leaving.log_tail()
        assert bench.log("first") == ["begins", "ends"]
        # It is gone, not away.
        assert bench.states() == {"other": "ready"}
        assert bench.bazel.build("//:second").expect().processes.remote == 1


def test_while_the_only_worker_leaves_actions_wait_for_another_one(bench: Bench, gate: Gate) -> None:
    bench.let("first", gate.wait)
    with bench.worker("leaving") as leaving:
        build = bench.bazel.start("build", "//:first")
        bench.wait_for_begin("first")
        os.kill(leaving.pid, signal.SIGTERM)
        bench.wait_for_state("leaving", "draining")
        bench.let("second", gate.wait)
        gate.open()
        build.wait().expect()
        assert leaving.ended() == 0
    another = bench.bazel.start("build", "//:second")
    wait_until(lambda: "queued" in bench.rexec("ps", "--json").stdout, "the action to wait", SECONDS)
    assert bench.log("second") == []
    with bench.worker("other"):
        gate.open()
        another.wait().expect()
    assert bench.log("second") == ["begins", "ends"]


@pytest.mark.parametrize(("seconds", "why"), [(4, "would not end in time"), (0, "did not end in time")])
def test_what_a_worker_on_short_notice_cannot_end_is_run_once_by_another_one(
    bench: Bench, gate: Gate, seconds: int, why: str
) -> None:
    """It is handed back at once where such an action is known to take longer than the notice, else when that is over."""
    name = "first" if seconds else "second"
    notice_seconds = 1.5
    with bench.worker("spot", f"drain_grace_seconds = {notice_seconds}") as spot:
        bench.let(name, f"sleep {seconds}")
        bench.bazel.build(f"//:{name}").expect()
        bench.let(name, gate.wait)
        build = bench.bazel.start("build", f"//:{name}")
        bench.wait_for_begin(name)
        before = bench.why_again()
        os.kill(spot.pid, signal.SIGTERM)
        assert spot.ended() == 0
    with bench.worker("other"):
        bench.wait_for_begin(name, times=2)
        gate.open()
        outcome = build.wait().expect()
    assert outcome.processes.remote == 1
    assert bench.log(name) == ["begins", "begins", "ends"]
    ((reason, counted),) = bench.why_again()[len(before) :]
    assert why in reason
    assert not counted


def test_a_second_signal_does_not_wait(bench: Bench, gate: Gate) -> None:
    bench.let("first", gate.wait)
    with bench.worker("leaving", "drain_grace_seconds = 600") as leaving:
        build = bench.bazel.start("build", "//:first")
        bench.wait_for_begin("first")
        os.kill(leaving.pid, signal.SIGTERM)
        bench.wait_for_state("leaving", "draining")
        leaving.expect_running()
        os.kill(leaving.pid, signal.SIGTERM)
        assert leaving.ended() == 0
        assert bench.log("first") == ["begins"]
    with bench.worker("other"):
        bench.wait_for_begin("first", times=2)
        gate.open()
        build.wait().expect()


def test_idle_workers_that_are_drained_leave_at_once(bench: Bench) -> None:
    with (
        bench.worker("a", pool="x") as a,
        bench.worker("b", pool="y") as b,
        bench.worker("c", pool="y") as c,
        bench.worker("d", pool="z") as d,
    ):
        # One that an earlier test has killed is away until the scheduler gives it up.
        wait_until(lambda: set(bench.states()) == {"a", "b", "c", "d"}, "only the workers of this test", 60)
        by_name = bench.rexec("drain", "a", "--wait", "--timeout", "30")
        assert (by_name.returncode, by_name.stderr.splitlines()[-1]) == (0, "rexec: it has left")
        assert bench.states() == {"b": "ready", "c": "ready", "d": "ready"}
        by_property = bench.rexec("drain", "--property", "pool=y", "--wait", "--timeout", "30")
        assert (by_property.returncode, by_property.stderr.splitlines()[-1]) == (0, "rexec: all 2 have left")
        assert bench.states() == {"d": "ready"}
        everyone = bench.rexec("drain", "--all", "--wait", "--timeout", "30")
        assert everyone.returncode == 0
        assert bench.states() == {}
        assert [process.ended() for process in (a, b, c, d)] == [0, 0, 0, 0]


def test_waiting_for_a_worker_shows_what_it_still_runs_and_may_be_given_up(bench: Bench, gate: Gate) -> None:
    bench.let("first", gate.wait)
    with bench.worker("busy") as busy:
        build = bench.bazel.start("build", "//:first")
        bench.wait_for_begin("first")
        given_up = bench.rexec("drain", "busy", "--wait", "--timeout", "0.5")
        assert given_up.returncode == 1
        assert "0 of 1 have left; still there: busy (1 action)" in given_up.stderr
        assert "not left within 0.5 s" in given_up.stderr
        busy.expect_running()
        gate.open()
        waited = bench.rexec("drain", "busy", "nobody", "--wait", "--timeout", "30")
        build.wait().expect()
        assert busy.ended() == 0
        # The name that nobody has is what the status is for; whether `busy` was still there is a matter of luck.
        assert waited.returncode == 1
        assert "nobody" in waited.stderr
    assert bench.log("first") == ["begins", "ends"]
