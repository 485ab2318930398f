"""rexec in several processes on one machine, each of which can be killed and started again while the others go on.

Two installations: all roles apart (a scheduler, two frontends behind one port, workers), and everything in one process
beside which the workers run. Every process keeps its address and its state over a restart, as under a service manager.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from integration.process import Process, descendants_of, end_by_pid
from integration.server import free_port
from integration.waiting import wait_until

READY_SECONDS = 60.0
_REXEC = (sys.executable, "-m", "rexec")
_CHECKOUT = Path(__file__).parent.parent


class Role(StrEnum):
    """What a process does."""

    FRONTEND = "frontend"
    SCHEDULER = "scheduler"
    WORKER = "worker"
    SERVER = "server"
    """Everything but the workers."""


@dataclass(frozen=True, slots=True)
class Death:
    """A process that was killed or asked to end, and its successor. Times are those of the clock on the wall, as in the log
    of the actions."""

    member: str
    role: Role
    pid: int
    at: float
    ready_at: float
    """When the successor answered; of a worker, when it was started."""


class Member:
    """One place in the installation, taken by one process after the other."""

    def __init__(self, name: str, role: Role, arguments: Sequence[str], folder: Path, metrics: str | None) -> None:
        self.name = name
        self.role = role
        self._command = (*_REXEC, *arguments)
        self._log = folder / f"{name}.log"
        self._metrics = metrics
        self._left_behind: set[int] = set()
        self.process = self._start()

    def is_ready(self) -> bool:
        """Whether it answers. Raises AssertionError with its log when it has ended."""
        self.process.expect_running()
        if self._metrics is None:
            return True
        try:
            with urllib.request.urlopen(f"http://{self._metrics}/readyz", timeout=5) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def wait_until_ready(self) -> None:
        wait_until(self.is_ready, f"{self.name} to be ready", READY_SECONDS)

    def kill_and_start(self) -> Death:
        """SIGKILL to the process alone, a successor at once; returns when that answers."""
        pid, at = self.process.pid, time.time()
        self._left_behind |= descendants_of(pid)
        self.process.kill()
        return self._succeeded(pid, at)

    def end_and_start(self) -> Death:
        """The same with SIGTERM. Raises AssertionError when the old process does not end well."""
        pid, at = self.process.pid, time.time()
        exit_code = self.process.stop()
        if exit_code not in (0, -15):
            raise AssertionError(f"{self.name} ended with {exit_code}; its log ends with:\n{self.process.log_tail()}")
        return self._succeeded(pid, at)

    def take_turns(self) -> Death:
        """Start a successor that stands by, then ask the old process to end (SIGTERM): a rolling restart. Raises
        AssertionError when either fails."""
        old = self.process
        said_before = self._log.stat().st_size
        self.process = self._start()

        def stands_by() -> bool:
            self.process.expect_running()
            return b'"stands by"' in self._log.read_bytes()[said_before:]

        wait_until(stands_by, f"the next {self.name} to stand by", READY_SECONDS)
        at = time.time()
        exit_code = old.stop()
        if exit_code not in (0, -15):
            raise AssertionError(f"{self.name} ended with {exit_code}; its log ends with:\n{old.log_tail()}")
        self.wait_until_ready()
        return Death(self.name, self.role, old.pid, at, time.time())

    def said_at(self, event: str, after: float) -> float:
        """When the log of this place first says that event after a moment. Raises AssertionError when it does not."""
        for line in self._log.read_text().splitlines():
            if line.startswith("{") and f'"event": "{event}"' in line:
                when = datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
                if when >= after:
                    return when
        raise AssertionError(f"{self.name} did not say {event!r}; its log ends with:\n{self.process.log_tail()}")

    def close(self) -> None:
        """End the process and all that it and those before it have started."""
        below = self._left_behind | descendants_of(self.process.pid)
        try:
            if self.process.is_running():
                self.process.stop()
        finally:
            end_by_pid(below)

    def _succeeded(self, pid: int, at: float) -> Death:
        self.process = self._start()
        self.wait_until_ready()
        return Death(self.name, self.role, pid, at, time.time())

    def _start(self) -> Process:
        return Process(self._command, self._log, cwd=_CHECKOUT)


class Installation:
    """Members that work together."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        """Where clients go."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.members: list[Member] = []

    def add(self, name: str, role: Role, *arguments: str) -> Member:
        """Start a process; the roles that answer clients or workers are given a port for metrics."""
        metrics = None if role is Role.WORKER else f"127.0.0.1:{free_port()}"
        extra = () if metrics is None else ("--metrics-listen", metrics)
        member = Member(name, role, (*arguments, *extra), self.folder, metrics)
        self.members.append(member)
        return member

    def add_workers(self, count: int, slots: int) -> None:
        """Workers that go where clients go."""
        for number in range(count):
            self.add(
                f"worker-{number}", Role.WORKER, "worker", "--server", f"grpc://{self.address}", "--slots", str(slots),
                "--name", f"worker-{number}", "--work-dir", str(self.folder / f"worker-{number}"),
            )  # fmt: skip

    def of_role(self, role: Role) -> list[Member]:
        return [member for member in self.members if member.role is role]

    def wait_until_ready(self) -> None:
        for member in self.members:
            member.wait_until_ready()

    def close(self) -> None:
        """End everything, clients' side first, whatever state it is in."""
        failures = []
        for member in reversed(self.members):
            try:
                member.close()
            except AssertionError as failure:
                failures.append(str(failure))
        if failures:
            raise AssertionError("\n".join(failures))


@contextmanager
def roles_apart(folder: Path, *, frontends: int = 2, workers: int = 2, slots: int = 2) -> Iterator[Installation]:
    """A scheduler that keeps the store, frontends that share a port, and workers behind them."""
    installation = Installation(f"127.0.0.1:{free_port()}", folder)
    scheduler = f"127.0.0.1:{free_port()}"
    shared = folder / "frontend.toml"
    shared.write_text("[server]\nshare_port = true\n")
    try:
        installation.add(
            "scheduler", Role.SCHEDULER, "scheduler", "--listen", scheduler, "--state-dir", str(folder / "state")
        )
        for number in range(frontends):
            installation.add(
                f"frontend-{number}", Role.FRONTEND, "frontend", "--config", str(shared), "--listen", installation.address,
                "--scheduler", f"grpc://{scheduler}",
            )  # fmt: skip
        installation.add_workers(workers, slots)
        installation.wait_until_ready()
        yield installation
    finally:
        installation.close()


@contextmanager
def all_in_one(folder: Path, *, workers: int = 2, slots: int = 2) -> Iterator[Installation]:
    """`rexec serve` without workers of its own, and workers beside it."""
    installation = Installation(f"127.0.0.1:{free_port()}", folder)
    try:
        installation.add(
            "server",
            Role.SERVER,
            "serve",
            "--listen",
            installation.address,
            "--state-dir",
            str(folder / "state"),
            "--slots",
            "0",
        )
        installation.add_workers(workers, slots)
        installation.wait_until_ready()
        yield installation
    finally:
        installation.close()
