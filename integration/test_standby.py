"""`rexec scheduler` twice over one journal: one leads, the other stands by; one hangs, the other leads, the first must end."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.process import Process, descendants_of, end_by_pid
from integration.server import free_port
from integration.waiting import wait_until

_SECONDS = 60.0
_CHECKOUT = Path(__file__).parent.parent


class Scheduler:
    """One of them, with a store and a state directory of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.port = free_port()
        self.metrics = free_port()
        config = folder / f"{name}.toml"
        config.write_text(
            f'state_dir = "{folder / name}"\n'
            f'[server]\nlisten = ["127.0.0.1:{self.port}"]\nlog_format = "text"\nmetrics_listen = "127.0.0.1:{self.metrics}"\n'
            f'[scheduler]\njournal_path = "{folder / "journal" / "scheduler.sqlite3"}"\nleadership_seconds = 1.0\n'
        )
        command = (sys.executable, "-m", "rexec", "scheduler", "--config", str(config))
        self.process = Process(command, folder / f"{name}.log", cwd=_CHECKOUT)

    def listens(self) -> bool:
        """Raises AssertionError when it has ended."""
        self.process.expect_running()
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def probe(self, path: str) -> tuple[int, str]:
        """Status and text of the HTTP port's answer; (0, reason) without one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError as error:
            return 0, str(error)
        finally:
            connection.close()

    def has_said(self, text: str) -> bool:
        return text in self.process.log.read_text()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Scheduler]]:
    started: list[Scheduler] = []
    try:
        for name in ("first", "second"):
            scheduler = Scheduler(tmp_path, name)
            started.append(scheduler)
            if name == "first":
                wait_until(scheduler.listens, "the first to listen", _SECONDS)
        yield started
    finally:
        for scheduler in started:
            below = descendants_of(scheduler.process.pid)
            scheduler.process.kill()
            end_by_pid(below)


def test_who_hangs_is_replaced_and_ends_when_it_wakes_up(pair: list[Scheduler]) -> None:
    first, second = pair
    wait_until(lambda: second.has_said("stands by"), "the second to stand by", _SECONDS)
    assert not second.listens()
    os.kill(first.process.pid, signal.SIGSTOP)
    wait_until(second.listens, "the second to lead", _SECONDS)
    assert second.has_said("takes over from a scheduler that is silent")
    os.kill(first.process.pid, signal.SIGCONT)
    wait_until(lambda: not first.process.is_running(), "the first to end", _SECONDS)
    assert first.process.stop() not in (0, None)
    assert "this scheduler must not go on" in first.process.log_tail()
    assert "leads now" in first.process.log_tail()
    assert second.listens()


def test_who_stands_by_ends_when_it_is_asked_to(pair: list[Scheduler]) -> None:
    first, second = pair
    wait_until(lambda: second.has_said("stands by"), "the second to stand by", _SECONDS)
    assert second.process.stop() == 0
    assert first.listens()


def test_who_stands_by_is_alive_and_not_ready_to_probes(pair: list[Scheduler]) -> None:
    first, second = pair
    wait_until(lambda: second.probe("/healthz")[0] == 200, "the second to answer probes", _SECONDS)
    status, text = second.probe("/readyz")
    assert status == 503
    assert f"process {first.process.pid}" in text
    first.process.kill()
    wait_until(lambda: second.probe("/readyz")[0] == 200, "the second to be ready", _SECONDS)


def test_who_stands_by_leads_when_the_leader_is_killed(pair: list[Scheduler]) -> None:
    first, second = pair
    wait_until(lambda: second.has_said("stands by"), "the second to stand by", _SECONDS)
    first.process.kill()
    wait_until(second.listens, "the second to lead", _SECONDS)
