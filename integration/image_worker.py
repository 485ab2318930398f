"""A worker in an image of a user's own, as a pod runs it: the agent beside it, its root read-only, the user without a name."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integration.process import Process, children_of, end_by_pid
from integration.root_filesystem import RootFilesystem
from integration.server import REXEC
from integration.waiting import wait_until

PLACE = "/rexec/agent"
"""Where the agent is inside."""
_CHECKOUT = Path(__file__).parent.parent
_SECONDS = 60


@dataclass(frozen=True)
class Worker:
    """An agent that has attached."""

    name: str
    process: Process
    properties: dict[str, list[str]]


@contextmanager
def attached(
    address: str,
    image: RootFilesystem,
    folder: Path,
    *,
    host: str = "127.0.0.1",
    program: Sequence[str] = (f"{PLACE}/run",),
    options: Sequence[str] = (),
    authority: Path | None = None,
    first_process: bool = False,
) -> Iterator[Worker]:
    """The agent in that root, once the server knows it. It has to leave in order when it is told to end. With an `authority`, a
    file of this machine, it is asked for over TLS; that the agent is shown it is up to the options."""
    layer = folder / "layer"
    layer.mkdir()
    name = folder.name.replace("_", "-")[:40]
    command = image.command(
        layer,
        [*program, "worker", "--server", f"{_scheme(authority)}://{host}:{address.rpartition(':')[2]}", "--name", name,
         "--slots", "1", "--work-dir", "/rexec/work", *options],
        first_process,
    )  # fmt: skip
    process = Process(command, folder / "worker.log", cwd=Path("/"))
    try:
        found: dict[str, list[str]] = {}

        def is_known() -> bool:
            process.expect_running()
            found.update(workers_of(address, authority).get(name, {}))
            return bool(found)

        wait_until(is_known, f"worker {name} to attach", _SECONDS)
        yield Worker(name, process, found)
        if first_process:
            (inner,) = children_of(process.pid)
            os.kill(inner, signal.SIGTERM)
            wait_until(lambda: not process.is_running(), f"worker {name} to leave", _SECONDS)
        assert process.stop() == 0, process.log_tail()
    finally:
        if process.is_running():
            below = set(children_of(process.pid))
            process.kill()
            end_by_pid(below)


def _scheme(authority: Path | None) -> str:
    return "grpc" if authority is None else "grpcs"


def workers_of(address: str, authority: Path | None = None) -> dict[str, dict[str, list[str]]]:
    """Properties of the workers, by name."""
    listed = subprocess.run(
        [*REXEC, "workers", "--json", "--server", f"{_scheme(authority)}://{address}",
         *(() if authority is None else ("--tls-ca", str(authority)))],
        cwd=_CHECKOUT, capture_output=True, text=True, timeout=_SECONDS, check=True,
    )  # fmt: skip
    found = {}
    for line in listed.stdout.splitlines():
        worker = json.loads(line)
        properties: dict[str, list[str]] = {}
        for each in worker["properties"]:
            properties.setdefault(each["name"], []).append(each["value"])
        found[worker["name"]] = properties
    return found


def pod(root: Path, agent: Path, **changes: Any) -> RootFilesystem:
    """A user's image as a pod runs it: the agent and an empty volume beside it."""
    given: dict[str, Any] = {"shown": {PLACE: agent}, "scratch": ["/rexec/work"], **changes}
    return RootFilesystem(root, **given)
