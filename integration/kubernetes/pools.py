"""A server without workers of its own, and an autoscaler that gets them as pods."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from integration.action_log import Run, needless, read
from integration.bazel import Bazel, execution_flags, running_bazel
from integration.installation import Death
from integration.kubernetes.faults import FaultProxy
from integration.kubernetes.nodes import Container, Nodes
from integration.outcome import Outcome
from integration.process import Process
from integration.server import READY_SECONDS, REXEC, Server, running_server
from integration.waiting import wait_until
from integration.workspace import lay_out_shims
from integration.workspaces import generate_chaos
from rexec.toml import toml_value

IDLE_SECONDS = 3.0
MAX_WORKERS = 6
_CHECKOUT = Path(__file__).parent.parent.parent


class Pools:
    """The server, the autoscaler, and the pods as the API server has them."""

    def __init__(self, server: Server, folder: Path, nodes: Nodes) -> None:
        self.server = server
        self._folder = folder
        self._nodes = nodes
        self._since = time.time()
        self.autoscaler = self._start()

    def restart_autoscaler(self) -> None:
        """SIGKILL, and a successor."""
        self.autoscaler.kill()
        self.autoscaler = self._start()

    def containers(self) -> list[Container]:
        """Those of the pods since the pools are there."""
        return [container for container in self._nodes.containers() if container.started_at >= self._since]

    def is_anyone_there(self) -> bool:
        """Whether a worker runs."""
        return any(container.ended_at is None for container in self.containers())

    def ps(self) -> str:
        """What `rexec ps` prints."""
        return self._printed("ps")

    def workers(self) -> str:
        """What `rexec workers` prints."""
        return self._printed("workers")

    def _printed(self, command: str) -> str:
        words = (*REXEC, command, "--server", f"grpc://{self.server.address}")
        return subprocess.run(words, cwd=_CHECKOUT, capture_output=True, text=True, timeout=60, check=True).stdout

    def _start(self) -> Process:
        log = self._folder / "autoscaler.log"
        said_before = log.stat().st_size if log.exists() else 0
        process = Process(
            (
                *REXEC,
                "autoscale",
                "--server",
                f"grpc://{self.server.address}",
                "--config",
                str(self._folder / "pools.toml"),
            ),
            log,
            cwd=_CHECKOUT,
        )

        def follows() -> bool:
            process.expect_running()
            said = log.read_bytes()[said_before:]
            return b"follows the scheduler" in said and b"the pods are watched" in said

        wait_until(follows, "the autoscaler to know the work and the pods", READY_SECONDS)
        return process


@contextmanager
def running_pools(
    folder: Path, nodes: Nodes, kubeconfig: Path, namespace: str, pools: Sequence[dict[str, object]] = ({},)
) -> Iterator[Pools]:
    """Pools on the nodes; each has the options given, and else those of a test."""
    with running_server(folder / "server", slots=0) as server:
        template = nodes.template(folder)
        lines = [
            "[autoscale]",
            f'server = "grpc://{server.address}"',
            f"namespace = {json.dumps(namespace)}",
            f"kubeconfig = {json.dumps(str(kubeconfig))}",
        ]
        for options in pools:
            pool = {
                "name": "cpu",
                "image": "here",
                "pod_template": template,
                "max": MAX_WORKERS,
                "idle_seconds": IDLE_SECONDS,
                "target_wait_seconds": 1.0,
                "start_seconds": 2.0,
                "drain_seconds": 60.0,
                "memory_bytes": 1 << 30,
                "disk_bytes": 4 << 30,
                **options,
            }
            lines += ["[[autoscale.pools]]", *(f"{name} = {toml_value(value)}" for name, value in pool.items())]
        (folder / "pools.toml").write_text("\n".join(lines))
        running = Pools(server, folder, nodes)
        try:
            yield running
        finally:
            running.autoscaler.stop()


def posted_pods(proxy: FaultProxy) -> list[float]:
    """When the creation of each pod was asked for."""
    return [
        at
        for at, (method, target) in zip(proxy.times, list(proxy.requests), strict=False)
        if method == "POST" and target.endswith("/pods")
    ]


class Build:
    """300 actions, what they write down of themselves, and a Bazel that has them run."""

    def __init__(self, bazel: Bazel, log: Path) -> None:
        self.bazel = bazel
        self._log = log

    def runs(self) -> list[Run]:
        return read(self._log) if self._log.exists() else []

    def wait_for_runs(self, number: int) -> None:
        """Return once so many actions have begun."""
        wait_until(lambda: len(self.runs()) >= number, f"{number} actions", 180)

    def expect_right(self, outcome: Outcome, deaths: Sequence[Death] = ()) -> None:
        """Everything was built, without a word of failure, and nothing twice but what ran on a worker that was killed."""
        complaints = [line for line in outcome.stderr.splitlines() if line.startswith(("ERROR", "WARNING", "FAILED"))]
        assert complaints == []
        assert outcome.processes.elsewhere == {}
        assert outcome.processes.remote + outcome.processes.cache_hits == generate_chaos.ACTIONS
        for name, value in generate_chaos.expected_values().items():
            assert int((self.bazel.bin / "rules" / f"{name}.txt").read_text()) == value, name
        assert {run.action for run in self.runs()} == generate_chaos.action_names()
        assert needless(self.runs(), deaths) == []
        if not deaths:
            assert len(self.runs()) == generate_chaos.ACTIONS


@contextmanager
def building(folder: Path, server: Server, *more_flags: str) -> Iterator[Build]:
    """A Bazel with the workspace, that asks for many actions at once."""
    workspace = folder / "workspace"
    workspace.mkdir(parents=True)
    lay_out_shims(workspace)
    log = folder / "actions.log"
    compiler = generate_chaos.write(workspace, log)
    flags = (*execution_flags(server.address), "--jobs=40", f"--repo_env=CC={compiler}", *more_flags)
    with running_bazel(workspace, folder / "bazel", flags) as bazel:
        yield Build(bazel, log)


def most_workers(containers: Sequence[Container]) -> int:
    """The most that ran at the same time."""
    changes = []
    for container in containers:
        changes += [(container.started_at, 1), (container.ended_at or time.time(), -1)]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
