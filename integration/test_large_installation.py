"""The configurations of deploy/kubernetes/overlays/large, as they are but for addresses and paths, on this machine: three servers
before an object store, two schedulers with one journal, a frontend, TLS and tokens everywhere."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from integration.conformance.actions import run, stdout_of
from integration.conformance.client import connected
from integration.conformance.options import Options
from integration.object_server import ObjectServer, running_object_server
from integration.process import Process
from integration.server import READY_SECONDS, REXEC, free_port
from integration.waiting import wait_until

_CHECKOUT = Path(__file__).parent.parent
_LARGE = _CHECKOUT / "deploy" / "kubernetes" / "overlays" / "large" / "config"
_SHARDS = 3
ACTION_SECONDS = 90


class Large:
    """The roles as processes. Names of pods become ports of localhost, which the certificate names, too."""

    def __init__(self, folder: Path, objects: ObjectServer, stack: ExitStack) -> None:
        self._folder = folder
        self._objects = objects
        self._stack = stack
        self.secrets = folder / "secrets"
        script = _CHECKOUT / "deploy" / "kubernetes" / "make-secrets.sh"
        subprocess.run(["bash", str(script), "--tls", str(self.secrets)], check=True, capture_output=True, timeout=60)
        self._ports = {f"rexec-cas-{number}.rexec-cas-pods:8980": free_port() for number in range(_SHARDS)}
        self._ports |= {f"rexec-scheduler-{number}.rexec-scheduler-pods:8981": free_port() for number in range(2)}
        for address in list(self._ports)[:_SHARDS]:
            self._start("cas", address, "front", "serve", "--slots=0")
        self.schedulers = [
            self._start("scheduler", address, "front", "scheduler", f"--state-dir={folder / address.partition('.')[0]}")
            for address in list(self._ports)[_SHARDS:]
        ]
        self._ports["rexec:8980"] = free_port()
        self._start("frontend", "rexec:8980", "front", "frontend")
        self.address = f"localhost:{self._ports['rexec:8980']}"
        self._process(
            "worker",
            *("worker", f"--server=grpcs://{self.address}", "--slots=1", f"--work-dir={folder / 'work'}"),
            *(f"--tls-ca={self.secrets / 'ca.crt'}", f"--token-file={self.secrets / 'worker.token'}"),
        )

    def options(self) -> Options:
        """Of a client."""
        return Options(
            self.address,
            tls=True,
            tls_ca=str(self.secrets / "ca.crt"),
            token=(self.secrets / "client.token").read_text(),
        )

    def _start(self, role: str, address: str, token: str, *command: str) -> Process:
        name = address.partition(".")[0].partition(":")[0]
        own = self._folder / f"{name}-own"
        own.mkdir()
        shutil.copy(self.secrets / f"{token}.token", own / "token")
        places = {
            "/etc/rexec-own": own,
            "/etc/rexec-tokens": self.secrets,
            "/etc/rexec-tls": self.secrets,
            "/etc/rexec-authority": self.secrets,
            "/etc/rexec-bucket/key": self._objects.access_key_file,
            "/var/lib/rexec/state": self._folder / f"{name}-state",
            "/var/lib/rexec": self._folder,
        }
        text = (_LARGE / f"{role}.toml").read_text()
        for path, place in places.items():
            text = text.replace(path, str(place))
        for other, port in self._ports.items():
            text = text.replace(other, f"localhost:{port}")
        text = re.sub(r"0\.0\.0\.0:898[01]", f"127.0.0.1:{self._ports[address]}", text)
        text = text.replace("0.0.0.0:8982", f"127.0.0.1:{free_port()}")
        text = text.replace("[store.objects]\n", f'[store.objects]\nendpoint = "{self._objects.endpoint}"\n')
        file = self._folder / f"{name}.toml"
        file.write_text(text)
        return self._process(name, *command, f"--config={file}")

    def _process(self, name: str, *arguments: str) -> Process:
        process = Process((*REXEC, *arguments), self._folder / f"{name}.log", cwd=_CHECKOUT)
        self._stack.callback(_end, process)
        # One that stands by says so and nothing else; a worker tells when it is attached.
        said = ("Ctrl-C", "stands by", "attached to the scheduler")

        def is_ready() -> bool:
            process.expect_running()
            return any(word in process.log.read_text() for word in said)

        wait_until(is_ready, name, READY_SECONDS)
        return process


def _end(process: Process) -> None:
    if process.is_running():
        process.stop()


@contextmanager
def _large(folder: Path) -> Iterator[Large]:
    with running_object_server(folder / "objects") as objects, ExitStack() as stack:
        yield Large(folder, objects, stack)


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Large]:
    with _large(tmp_path) as running:
        yield running


async def test_actions_run_and_go_on_when_a_scheduler_is_killed(large: Large) -> None:
    async with connected(large.options()) as client:
        result = await asyncio.wait_for(run(client, "echo first"), ACTION_SECONDS)
        assert await stdout_of(client, result) == b"first\n"
        (leads,) = [scheduler for scheduler in large.schedulers if "stands by" not in scheduler.log.read_text()]
        leads.kill()
        result = await asyncio.wait_for(run(client, "echo second"), ACTION_SECONDS)
        assert await stdout_of(client, result) == b"second\n"
