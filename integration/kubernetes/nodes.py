"""Nodes for the tests: a stand-in for their kubelets as a process, and what it wrote down."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from integration.kubernetes.kubelet import NODES
from integration.process import Process, descendants_of, end_by_pid
from integration.waiting import wait_until

READY_SECONDS = 60.0
_CHECKOUT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Container:
    """A container that was started, as a process of this machine. Times are seconds since 1970."""

    pod: str
    pid: int
    started_at: float
    ended_at: float | None = None
    exit_code: int | None = None


class Nodes:
    """Nodes whose pods are processes of this machine."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    def template(self, folder: Path, **spec: object) -> str:
        """The name of a pod template in `folder` that asks for these nodes, and what else `spec` says."""
        asks = {
            "nodeSelector": {NODES: self.name},
            # Nothing is to be moved when the stand-in is slow to say that its nodes are well.
            "tolerations": [{"operator": "Exists"}],
            **spec,
        }
        (folder / "pod.yaml").write_text(json.dumps({"spec": asks}))
        return "pod.yaml"

    def containers(self) -> list[Container]:
        """All that were started, in this order."""
        found: dict[tuple[str, int], Container] = {}
        log = self.folder / "log"
        for line in log.read_text().splitlines() if log.exists() else ():
            what, pod, pid, when, *code = line.split()
            key = (pod, int(pid))
            if what == "start":
                found[key] = Container(pod, int(pid), float(when))
            else:
                began = found[key]
                found[key] = Container(pod, began.pid, began.started_at, float(when), int(code[0]))
        return list(found.values())

    def output(self, container: str = "worker") -> str:
        """What containers of that name have printed, of all pods."""
        return "\n".join(file.read_text(errors="replace") for file in sorted(self.folder.glob(f"*/{container}.log")))


@contextmanager
def running_nodes(kubeconfig: Path, folder: Path, arguments: Sequence[str] = (), number: int = 2) -> Iterator[Nodes]:
    """Nodes that take pods; at the end they and all their processes are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    nodes = Nodes(f"test-{uuid.uuid4().hex[:8]}", folder)
    # `rexec` of a pod's command is the one that is tested here.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kubelet = Process(
        (
            sys.executable,
            "-m",
            "integration.kubernetes.kubelet",
            *("--kubeconfig", str(kubeconfig), "--nodes", nodes.name, "--number", str(number)),
            *("--folder", str(folder), *arguments),
        ),
        folder / "kubelet.log",
        cwd=_CHECKOUT,
        environment={**os.environ, "PATH": path},
    )
    try:

        def is_ready() -> bool:
            kubelet.expect_running()
            return (folder / "ready").exists()

        wait_until(is_ready, "nodes that take pods", READY_SECONDS)
        yield nodes
    finally:
        below = descendants_of(kubelet.pid)
        try:
            kubelet.stop()
        finally:
            end_by_pid(below)
