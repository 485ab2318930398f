"""Workers as processes of this machine. The processes are shell scripts that say what they do through a pipe."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rexec.autoscale import local_processes
from rexec.autoscale.local_processes import LocalProcesses, last_line
from rexec.autoscale.provider import Machine, Phase, Refused
from rexec.autoscale.settings import PoolKind, PoolSettings

GUARD_SECONDS = 20
POOL = PoolSettings(name="local", kind=PoolKind.LOCAL)

WAITS = "trap 'exit 0' TERM; echo ready; while :; do sleep 600 & wait; done"
DEAF = "trap '' TERM; echo ready; while :; do sleep 600 & wait; done"


class Scripts:
    """A provider of processes that run a script, by the name of the worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = WAITS
        self.sink = io.BytesIO()
        self.processes = LocalProcesses(folder, self._command, self.sink)
        self.work_dirs: dict[str, Path] = {}

    def _command(self, _pool: PoolSettings, name: str, work_dir: Path) -> list[str]:
        self.work_dirs[name] = work_dir
        return ["/bin/sh", "-c", self.script]

    async def start(self, name: str) -> Machine:
        await self.processes.start(POOL, name)
        return self.processes.machines()[name]

    async def until(self, true: Callable[[], bool]) -> None:
        """Until that is so, looked at whenever the machines have changed."""
        while not true():
            await self.processes.changed.wait()
            self.processes.changed.clear()

    async def ready(self, name: str) -> None:
        """Until its script has said so."""
        log = self.work_dirs[name].with_suffix(".log")
        while "ready" not in log.read_text():
            await asyncio.to_thread(os.sched_yield)

    async def ended(self, name: str) -> Machine:
        await self.until(lambda: self.processes.machines()[name].phase is Phase.ENDED)
        return self.processes.machines()[name]

    def pid(self, name: str) -> int:
        return self.processes._processes[name].process.pid


@asynccontextmanager
async def scripts(folder: Path) -> AsyncIterator[Scripts]:
    async with asyncio.timeout(GUARD_SECONDS):
        made = Scripts(folder)
        try:
            yield made
        finally:
            await made.processes.stop(0)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_started_process_is_a_running_machine_and_ends_when_it_is_removed(tmp_path: Path) -> None:
    async with scripts(tmp_path) as world:
        machine = await world.start("local-a")
        assert (machine.name, machine.pool, machine.phase) == ("local-a", "local", Phase.RUNNING)
        assert world.processes.changed.is_set()
        await world.ready("local-a")
        pid = world.pid("local-a")
        await world.processes.remove("local-a", 600)
        assert world.processes.machines()["local-a"].phase is Phase.LEAVING
        await world.until(lambda: not world.processes.machines())
        assert is_gone(pid)


async def test_to_start_what_is_there_and_to_remove_what_is_not_does_nothing(tmp_path: Path) -> None:
    async with scripts(tmp_path) as world:
        await world.start("local-a")
        pid = world.pid("local-a")
        await world.start("local-a")
        assert world.pid("local-a") == pid
        await world.processes.remove("local-b", 0)


async def test_a_process_that_left_by_itself_is_listed_until_it_is_removed(tmp_path: Path) -> None:
    async with scripts(tmp_path) as world:
        world.script = "exit 0"
        await world.start("local-a")
        machine = await world.ended("local-a")
        assert (machine.exit_code, machine.problem, machine.hopeless) == (0, "", False)
        await world.processes.remove("local-a", 0)
        assert world.processes.machines() == {}


async def test_a_process_that_cannot_work_is_hopeless_and_its_last_line_says_why(tmp_path: Path) -> None:
    async with scripts(tmp_path) as world:
        world.script = "echo first >&2; echo 'Error: bwrap is not installed' >&2; echo >&2; exit 1"
        await world.start("local-a")
        machine = await world.ended("local-a")
        assert (machine.exit_code, machine.hopeless) == (1, True)
        assert machine.problem == "its process ended with exit code 1: bwrap is not installed"


async def test_a_process_that_fails_after_a_while_is_not_hopeless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_processes, "AT_ONCE_SECONDS", 0.0)
    async with scripts(tmp_path) as world:
        world.script = "exit 1"
        await world.start("local-a")
        assert not (await world.ended("local-a")).hopeless


async def test_a_process_that_is_killed_says_by_what(tmp_path: Path) -> None:
    async with scripts(tmp_path) as world:
        await world.start("local-a")
        await world.ready("local-a")
        os.kill(world.pid("local-a"), signal.SIGKILL)
        machine = await world.ended("local-a")
        assert (machine.exit_code, machine.hopeless) == (-9, False)
        assert "was killed by SIGKILL" in machine.problem


async def test_work_directories_are_used_again_the_lowest_first(tmp_path: Path) -> None:
    async with scripts(tmp_path) as world:
        for name in "abc":
            await world.start(name)
            await world.ready(name)
        await world.processes.remove("b", 600)
        await world.processes.remove("a", 600)
        await world.until(lambda: set(world.processes.machines()) == {"c"})
        await world.start("d")
        await world.start("e")
        places = {name: path.name for name, path in world.work_dirs.items()}
        assert places == {"a": "worker-1", "b": "worker-2", "c": "worker-3", "d": "worker-1", "e": "worker-2"}


async def test_the_directory_of_a_process_that_has_ended_is_free_only_once(tmp_path: Path) -> None:
    async with scripts(tmp_path) as world:
        world.script = "exit 0"
        await world.start("a")
        await world.ended("a")
        world.script = WAITS
        await world.start("b")
        assert world.work_dirs["b"].name == "worker-1"
        await world.processes.remove("a", 0)
        await world.start("c")
        assert world.work_dirs["c"].name == "worker-2"


async def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_processes, "LEAVE_SECONDS", 0.01)
    async with scripts(tmp_path) as world:
        world.script = DEAF
        await world.start("a")
        await world.ready("a")
        pid = world.pid("a")
        await world.processes.remove("a", 0.01)
        await world.until(lambda: not world.processes.machines())
        assert is_gone(pid)


async def test_what_cannot_be_started_is_refused_and_takes_no_directory(tmp_path: Path) -> None:
    async with asyncio.timeout(GUARD_SECONDS):
        provider = LocalProcesses(tmp_path, lambda *_: [str(tmp_path / "no-such-program")])
        for _ in range(2):
            with pytest.raises(Refused, match="cannot be started"):
                await provider.start(POOL, "a")
        assert provider.machines() == {}
        assert [path.name for path in (tmp_path / "local").iterdir() if path.is_dir()] == ["worker-1"]
        await provider.stop(0)


async def test_all_are_ended_at_the_end_even_one_that_has_been_given_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_processes, "LEAVE_SECONDS", 0.01)
    async with scripts(tmp_path) as world:
        await world.start("a")
        world.script = DEAF
        await world.start("b")
        await world.ready("a")
        await world.ready("b")
        pids = [world.pid("a"), world.pid("b")]
        await world.processes.remove("b", 3600)
        await world.processes.stop(0.01)
        assert world.processes.machines() == {}
        assert all(map(is_gone, pids))
        with pytest.raises(Refused):
            await world.start("c")


async def test_what_workers_say_is_passed_on(tmp_path: Path) -> None:
    async with scripts(tmp_path) as world:
        world.script = "echo hello; echo there >&2; exit 0"
        await world.start("a")
        await world.ended("a")
        assert world.sink.getvalue() == b"hello\nthere\n"


class Broken(io.BytesIO):
    """A pipe whose reader is gone."""

    def write(self, _data: object) -> int:
        raise BrokenPipeError


async def test_the_file_of_a_worker_that_says_a_lot_does_not_grow_when_nobody_hears_it(tmp_path: Path) -> None:
    async with scripts(tmp_path) as made:
        made.processes._sink = Broken()
        made.script = f"head -c {2 * local_processes.MAX_LOG_BYTES} /dev/zero; {WAITS}"
        await made.start("a")
        await made.ready("a")
        made.processes._pass_on(made.processes._processes["a"])
        assert made.work_dirs["a"].with_suffix(".log").stat().st_size == 0


async def test_what_is_said_while_it_is_passed_on_is_for_the_next_time(tmp_path: Path) -> None:
    async with scripts(tmp_path) as made:

        class Echo(io.BytesIO):
            """Whatever is passed on makes the worker say more."""

            heard = 0

            def write(self, data: object) -> int:
                self.heard += 1
                assert self.heard < 5, "it is passed on without end"
                with log.open("ab") as file:
                    file.write(b"more")
                return len(bytes(data))  # type: ignore[call-overload]

        made.processes._sink = Echo()
        await made.start("a")
        await made.ready("a")
        log = made.work_dirs["a"].with_suffix(".log")
        made.processes._pass_on(made.processes._processes["a"])
        assert log.read_bytes().endswith(b"more")


def test_the_last_line_is_one_that_says_something(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert last_line(path) == ""
    path.write_bytes(b"x" * 100_000 + b"\nError: this \xff\n\n  \n")
    assert last_line(path) == "this \ufffd"
