"""The API server that the tests talk to: the one of $KUBECONFIG, or one that scripts start and stop.

REXEC_KUBERNETES_SCRIPTS names a directory with up.sh and down.sh: up.sh starts etcd, the API server, the controller manager and
the scheduler on the ports that the environment names (API_PORT, ETCD_PORT, ETCD_PEER, KCM_PORT, SCHED_PORT) with their state in
K8S_RUN, and returns once they answer; the kubeconfig of an administrator is then K8S_RUN/certs/admin.kubeconfig, and the pid of
each process in K8S_RUN/NAME.pid. up.sh starts again what has been killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from integration.process import is_alive
from integration.server import free_port
from integration.waiting import wait_until

SCRIPTS = "REXEC_KUBERNETES_SCRIPTS"
UP_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """An API server, and who we are to it."""

    kubeconfig: Path
    """Of an administrator."""
    scripts: Path | None = None
    """If it is ours."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of the scripts."""

    def kill_api_server(self) -> None:
        """SIGKILL to the API server alone. Raises AssertionError if it is not ours."""
        if self.scripts is None:
            raise AssertionError("the cluster of $KUBECONFIG is not ours to stop")
        pid = int(Path(self.environment["K8S_RUN"], "apiserver.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), f"the end of the API server, process {pid}", 10)

    def start_api_server(self) -> None:
        """Start it again after `kill_api_server`; returns once it answers."""
        assert self.scripts is not None
        _run(self.scripts / "up.sh", self.environment)


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """The cluster; gone at the end of the block if it is ours. Raises AssertionError that says what to set."""
    scripts = os.environ.get(SCRIPTS)
    if named := os.environ.get("KUBECONFIG"):
        yield Cluster(Path(named))
        return
    if not scripts:
        raise AssertionError(
            "no Kubernetes API server: set KUBECONFIG to the file of a cluster where you may do everything, "
            f"or {SCRIPTS} to a directory with up.sh and down.sh (see integration/kubernetes/cluster.py)"
        )
    run = folder / "kubernetes"
    ports = {name: str(free_port()) for name in ("API_PORT", "ETCD_PORT", "ETCD_PEER", "KCM_PORT", "SCHED_PORT")}
    # Two processes of 1.20 would else listen on fixed ports as well, on all addresses, and there could be one server only.
    quiet = {name: f"{os.environ.get(name, '')} --port=0" for name in ("KCM_ARGS", "SCHED_ARGS")}
    environment = {**os.environ, **ports, **quiet, "K8S_RUN": str(run)}
    try:
        _run(Path(scripts) / "up.sh", environment)
        yield Cluster(run / "certs" / "admin.kubeconfig", Path(scripts), environment)
    finally:
        _run(Path(scripts) / "down.sh", environment)


def _run(script: Path, environment: dict[str, str]) -> None:
    ended = subprocess.run(
        ["bash", str(script)], env=environment, capture_output=True, text=True, timeout=UP_SECONDS, check=False
    )
    if ended.returncode != 0:
        raise AssertionError(f"{script} ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}")
