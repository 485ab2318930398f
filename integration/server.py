"""Starts `rexec serve` and `rexec worker` as real processes and reads from their outside what they did.

The server keeps its port and state directory over `stop`, `kill` and `restart`, as a service manager would have it.
"""

import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from prometheus_client.parser import text_string_to_metric_families

from integration.process import Process, cpu_seconds, descendants_of, end_by_pid
from integration.waiting import wait_until
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2
from protos.grpc.health.v1 import health_pb2
from protos.methods import Method, methods_of

READY_SECONDS = 60.0
REXEC = (sys.executable, "-m", "rexec")
"""The command."""
_CHECKOUT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Counts:
    """The server's own counters since it started. A restart begins at zero."""

    executions: dict[str, int]
    """Result label -> actions that a worker ran to an end."""
    lookups: dict[str, int]
    """`hit` or `miss` -> GetActionResult calls with that outcome."""

    @property
    def executed(self) -> int:
        return sum(self.executions.values())

    @property
    def hits(self) -> int:
        return self.lookups.get("hit", 0)

    @classmethod
    def parse(cls, text: str) -> "Counts":
        """Read the Prometheus text format."""
        executions: dict[str, int] = {}
        lookups: dict[str, int] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "rexec_executions_total":
                    result = sample.labels["result"]
                    executions[result] = executions.get(result, 0) + int(sample.value)
                elif sample.name == "rexec_action_cache_lookups_total":
                    outcome = sample.labels["outcome"]
                    lookups[outcome] = lookups.get(outcome, 0) + int(sample.value)
        return cls(executions, lookups)


class Server:
    """One `rexec serve` on a free loopback port."""

    def __init__(
        self,
        folder: Path,
        slots: int,
        extra_flags: Sequence[str] = (),
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Start it with its state below `folder`. `slots` 0 means without local workers; `credentials` are those with which
        a client gets through to a server that speaks TLS.

        Raises AssertionError with the server's log when it does not get ready.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self._metrics_address = f"127.0.0.1:{free_port()}"
        self._flags = (
            "--listen",
            self.address,
            "--state-dir",
            str(folder / "state"),
            "--slots",
            str(slots),
            "--metrics-listen",
            self._metrics_address,
            *extra_flags,
        )
        self._slots = slots
        self._credentials = credentials
        self._workers: list[Process] = []
        self._left_behind: set[int] = set()
        self.process = self._start()

    def restart(self) -> None:
        """Start it again after `stop` or `kill`, with the same port and state."""
        self.process = self._start()

    def stop(self) -> None:
        """An orderly end (SIGTERM). Raises AssertionError when it fails, hangs or leaves processes behind."""
        below = descendants_of(self.process.pid)
        exit_code = self.process.stop()
        if exit_code not in (0, -15):
            raise AssertionError(f"the server ended with {exit_code}; its log ends with:\n{self.process.log_tail()}")
        wait_until(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in below),
            f"the end of the server's child processes {sorted(below)}",
            30,
        )

    def pids(self) -> list[int]:
        """Of the processes that answer clients or schedule."""
        return [self.process.pid]

    def kill(self) -> None:
        """SIGKILL to the server alone: what its workers do then is their affair."""
        self._left_behind |= descendants_of(self.process.pid)
        self.process.kill()

    def worker_pids(self) -> list[int]:
        """The server's own workers: those of its children with `worker` on their command line."""
        return sorted(pid for pid, command in self.process.children().items() if "worker" in command.split())

    def kill_worker(self, pid: int) -> None:
        """SIGKILL to one of the server's own workers; what it was running is ended with `close`."""
        self._left_behind |= descendants_of(pid)
        os.kill(pid, signal.SIGKILL)

    def start_worker(self, slots: int = 1) -> Process:
        """Start one more `rexec worker` that connects to this server; it ends with `close` at the latest."""
        number = len(self._workers)
        worker = Process(
            (
                *REXEC,
                "worker",
                "--server",
                f"grpc://{self.address}",
                "--slots",
                str(slots),
                "--work-dir",
                str(self.folder / f"worker-{number}"),
            ),
            self.folder / f"worker-{number}.log",
            cwd=_CHECKOUT,
        )
        self._workers.append(worker)
        return worker

    def kill_apart(self, worker: Process) -> None:
        """SIGKILL to a worker of `start_worker`; what it was running is ended with `close`."""
        self._left_behind |= descendants_of(worker.pid)
        worker.kill()

    def counts(self) -> Counts:
        """What the server counted so far."""
        with urllib.request.urlopen(f"http://{self._metrics_address}/metrics", timeout=10) as response:
            return Counts.parse(response.read().decode())

    def wait_for_executions(self, number: int, deadline_seconds: float = 120) -> None:
        """Return once at least so many actions have been run since the server's start."""

        def enough() -> bool:
            self.process.expect_running()
            return self.counts().executed >= number

        wait_until(enough, f"{number} executions", deadline_seconds)

    def expect_executions(self, before: Counts, number: int) -> None:
        """Raises AssertionError unless exactly so many actions have been run since `before` was taken.

        The client may know of the last result a moment before the counter does, so the count is waited for.
        """
        self.wait_for_executions(before.executed + number, deadline_seconds=10)
        executed = self.counts().executed - before.executed
        if executed != number:
            raise AssertionError(f"the server ran {executed} actions where {number} were expected")

    def cpu_seconds(self) -> float:
        """CPU time so far of the server and its own workers; the actions themselves are not in it."""
        return sum(map(cpu_seconds, [self.process.pid, *self.worker_pids()]))

    def close(self) -> None:
        """End everything this object started, whatever state it is in."""
        for worker in self._workers:
            below = descendants_of(worker.pid)
            try:
                worker.stop()
            finally:
                end_by_pid(below)
        below = descendants_of(self.process.pid) | self._left_behind
        try:
            if self.process.is_running():
                self.stop()
        finally:
            end_by_pid(below)

    def _start(self) -> Process:
        process = Process((*REXEC, "serve", *self._flags), self.folder / "server.log", cwd=_CHECKOUT)
        try:
            wait_until(
                lambda: self._is_ready(process),
                f"the server on {self.address} to answer",
                READY_SECONDS,
            )
        except BaseException:
            below = descendants_of(process.pid)
            process.kill()
            end_by_pid(below)
            raise
        return process

    def _is_ready(self, process: Process) -> bool:
        process.expect_running()
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            self.counts()
        except (OSError, urllib.error.URLError):
            return False
        if self._credentials is not None:
            return answers_health(self.address, self._credentials)
        return answers_capabilities(self.address)


@contextmanager
def running_server(
    folder: Path, slots: int, extra_flags: Sequence[str] = (), credentials: grpc.ChannelCredentials | None = None
) -> Iterator[Server]:
    """A server that is gone, with all it started, at the end of the block."""
    server = Server(folder, slots, extra_flags, credentials)
    try:
        yield server
    finally:
        server.close()


def answers_capabilities(address: str) -> bool:
    """Whether a REAPI server at host:port answers GetCapabilities now, for the instance without a name."""
    method = methods_of(remote_execution_pb2, "Capabilities")["GetCapabilities"]
    with grpc.insecure_channel(address) as channel:
        return _answers(channel, method)


def answers_health(address: str, credentials: grpc.ChannelCredentials) -> bool:
    """Whether a server at host:port answers a health check over TLS now: the one call that asks for no identity."""
    with grpc.secure_channel(address, credentials) as channel:
        return _answers(channel, methods_of(health_pb2, "Health")["Check"])


def _answers(channel: grpc.Channel, method: Method) -> bool:
    call = channel.unary_unary(
        method.path,
        request_serializer=method.request_type.SerializeToString,
        response_deserializer=method.response_type.FromString,
    )
    try:
        call(method.request_type(), timeout=5)
    except grpc.RpcError:
        return False
    return True


def free_port() -> int:
    """A loopback TCP port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
