"""Holds rexec to every behaviour of the conformance kit, in each form that it is deployed in.

The forms are `rexec serve` with a local worker of two slots, `rexec serve --slots 0` with a `rexec worker` that was started
apart, `rexec serve --processes 2`, and a `rexec scheduler` with two `rexec frontend` and a worker behind them. The kit runs once
for each, with every hook that it has a case for; each behaviour is then a test of its own.
"""

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from integration.conformance.all_cases import CASES
from integration.conformance.options import Options
from integration.conformance.runner import Outcome, Verdict, chosen, run_all
from integration.process import Process, descendants_of, peak_bytes
from integration.roles_apart import running_apart
from integration.server import REXEC, Server, running_server
from integration.waiting import wait_until

BEHAVIOURS = range(1, 56)
SLOTS = 2
STORE_BYTES = 256 << 20
QUEUE_LIMIT = 200
CANARY = "REXEC_CONFORMANCE_CANARY"
MOST_SECONDS = 180.0
MOST_RESIDENT_BYTES = 1 << 30
"""Of the server and of its worker: less than the bombs and floods of the kit would take if they were held in memory."""

_CONFIG = """
[server]
share_port = true
instance_names = ["", "main", "other/name"]
[auth]
anonymous = ["read", "execute", "update_action_cache", "work"]
[auth.tokens]
file = "{tokens}"
[scheduler]
max_queued_operations = {queue_limit}
[store]
max_bytes = {store_bytes}
"""

_TOKEN = """
[[token]]
identity = "{token}"
sha256 = "{sha256}"
rights = [{rights}]
"""


class _Subject:
    """The server under test, and what the kit may have done to it."""

    def __init__(self, server: Server, apart: Process | None) -> None:
        """`apart` is the worker if it is none of the server's own."""
        self._server = server
        self._apart = apart
        self.peak_bytes = 0

    async def restart(self, _values: Mapping[str, str]) -> None:
        self.note_memory()
        await asyncio.to_thread(self._server.kill)
        await asyncio.to_thread(self._server.restart)

    async def lose_worker(self, _values: Mapping[str, str]) -> None:
        self.note_memory()
        if self._apart is None:
            (worker,) = self._server.worker_pids()
            await asyncio.to_thread(self._server.kill_worker, worker)
            return
        await asyncio.to_thread(self._server.kill_apart, self._apart)
        self._apart = self._server.start_worker(SLOTS)

    async def kill_action(self, values: Mapping[str, str]) -> None:
        await asyncio.to_thread(self._kill_marked, values["MARKER"])

    def _kill_marked(self, marker: str) -> None:
        def found() -> bool:
            owner = self._server.process if self._apart is None else self._apart
            marked = [pid for pid in descendants_of(owner.pid) if marker in _command_line(pid)]
            for pid in marked:
                os.kill(pid, signal.SIGKILL)
            return bool(marked)

        wait_until(found, f"an action's process with {marker} on its command line", 10)

    def note_memory(self) -> None:
        workers = self._server.worker_pids() if self._apart is None else [self._apart.pid]
        parts = [pid for pid, command in self._server.process.children().items() if " part " in command]
        pids = [*self._server.pids(), *parts, *workers]
        self.peak_bytes = max(self.peak_bytes, *map(peak_bytes, pids))


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def _configured(folder: Path) -> Path:
    """A configuration with small limits, and people with few rights."""
    tokens = folder / "tokens.toml"
    rights = {"reader": '"read", "execute"', "stranger": '"read"', "frontend": '"front"'}
    tokens.write_text(
        "".join(
            _TOKEN.format(token=token, sha256=hashlib.sha256(token.encode()).hexdigest(), rights=given)
            for token, given in rights.items()
        )
    )
    tokens.chmod(0o600)
    config = folder / "config.toml"
    config.write_text(_CONFIG.format(tokens=tokens, queue_limit=QUEUE_LIMIT, store_bytes=STORE_BYTES))
    return config


@pytest.fixture(scope="module", params=["all in one", "worker apart", "two processes", "roles apart"])
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, _Subject]]:
    folder = tmp_path_factory.mktemp("conformance")
    apart = request.param == "worker apart"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CANARY, "set")
        flags = ["--config", str(_configured(folder))]
        if request.param == "roles apart":
            (folder / "token").write_text("frontend")
            with running_apart(folder, REXEC, flags, [*flags, "--token-file", str(folder / "token")]) as roles:
                yield roles, _Subject(roles, roles.start_worker(SLOTS))
            return
        if request.param == "two processes":
            flags += ["--processes", "2"]
        with running_server(folder, 0 if apart else SLOTS, flags) as server:
            yield server, _Subject(server, server.start_worker(SLOTS) if apart else None)


class _Run:
    """What a run of the kit found."""

    def __init__(self, outcomes: list[Outcome], seconds: float, peak_bytes: int) -> None:
        self.outcomes = outcomes
        self.seconds = seconds
        self.peak_bytes = peak_bytes


@pytest.fixture(scope="module")
def kit(subject: tuple[Server, _Subject]) -> _Run:
    server, hooks = subject
    options = Options(
        target=server.address,
        other_instance="other/name",
        read_only_token="reader",
        no_execute_token="stranger",
        restart_command=hooks.restart,
        lose_worker_command=hooks.lose_worker,
        kill_action_command=hooks.kill_action,
        store_bytes=STORE_BYTES,
        queue_limit=QUEUE_LIMIT,
        leak_variable=CANARY,
    )
    begin = time.monotonic()
    outcomes = asyncio.run(run_all(chosen(CASES, frozenset(), slow=False), options))
    seconds = time.monotonic() - begin
    hooks.note_memory()
    return _Run(outcomes, seconds, hooks.peak_bytes)


@pytest.mark.parametrize("number", BEHAVIOURS)
def test_behaviour(kit: _Run, number: int) -> None:
    outcomes = [outcome for outcome in kit.outcomes if outcome.case.number == number]
    assert outcomes, f"behaviour {number} has no case"
    wrong = [f"{o.verdict}: {o.case.claim}: {o.reason}" for o in outcomes if o.verdict is not Verdict.PASS]
    assert not wrong, "\n".join(wrong)


def test_the_kit_is_done_within_three_minutes(kit: _Run) -> None:
    slowest = sorted(kit.outcomes, key=lambda outcome: -outcome.seconds)[:10]
    assert kit.seconds < MOST_SECONDS, [(outcome.case.name, round(outcome.seconds)) for outcome in slowest]


def test_floods_and_bombs_stay_out_of_memory(kit: _Run) -> None:
    assert kit.peak_bytes < MOST_RESIDENT_BYTES
