"""The local worker process: started again when it dies, ended when the server ends."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rexec import kept_process
from rexec.config import Config, ServerSettings
from rexec.kept_process import KeptProcess
from rexec.local import socket_path, worker_command
from rexec.server import CannotServe, running


class Pipe:
    """What the processes under test say, a line each."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        # Held open for writing too, so that the end of one process is not the end of the pipe.
        self._descriptor = os.open(path, os.O_RDWR)
        self._lines = os.fdopen(self._descriptor, "r", buffering=1)

    async def line(self) -> str:
        async with asyncio.timeout(20):
            return (await asyncio.to_thread(self._lines.readline)).strip()

    def close(self) -> None:
        self._lines.close()


@contextmanager
def pipe_at(path: Path) -> Iterator[Pipe]:
    pipe = Pipe(path)
    try:
        yield pipe
    finally:
        pipe.close()


async def test_a_worker_that_dies_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_process, "RESTART_SECONDS", 0.001)
    with pipe_at(tmp_path / "pipe") as pipe:
        worker = KeptProcess("local worker", ["sh", "-c", f"echo $$ > {pipe.path}; exec sleep 600"])
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run())
            first = int(await pipe.line())
            os.kill(first, signal.SIGKILL)
            second = int(await pipe.line())
            assert second != first
            await worker.stop(grace_seconds=10)
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


async def test_a_part_that_hangs_is_killed_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_process, "RESTART_SECONDS", 0.001)
    with pipe_at(tmp_path / "pipe") as pipe:
        # The first one tells what it is, lives for a moment, and says nothing more; the second one never hangs.
        script = f"""
            echo $$ > {pipe.path}; echo '{{"addresses": []}}'
            if [ -e {tmp_path}/second ]; then while echo '{{}}'; do sleep 0.05; done; fi
            touch {tmp_path}/second; echo '{{}}'; exec sleep 600
        """
        part = KeptProcess("core", ["sh", "-c", script], b"", silent_seconds=1.0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(part.run())
            first = int(await pipe.line())
            second = int(await pipe.line())
            with pytest.raises(ProcessLookupError):
                os.kill(first, 0)
            assert part.told is None or part.told == {"addresses": []}
            await part.stop(grace_seconds=10)
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


async def test_a_worker_that_was_drained_is_not_started_again() -> None:
    worker = KeptProcess("local worker", ["true"])
    async with asyncio.timeout(20):
        await worker.run()
        await worker.stop(grace_seconds=1)


async def test_a_worker_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_process, "LEAVE_SECONDS", 0.05)
    with pipe_at(tmp_path / "pipe") as pipe:
        worker = KeptProcess("local worker", ["sh", "-c", f"trap '' TERM; echo $$ > {pipe.path}; exec sleep 600"])
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run())
            pid = int(await pipe.line())
            await worker.stop(grace_seconds=0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_worker_whose_actions_go_on_is_told_to_leave_at_once(tmp_path: Path) -> None:
    """The second SIGTERM ends the actions; a worker that is killed would leave them running."""
    with pipe_at(tmp_path / "pipe") as pipe:
        script = f"""
            trap 'trap "echo left > {pipe.path}; exit 0" TERM; echo drains > {pipe.path}' TERM
            echo ready > {pipe.path}
            while :; do sleep 0.05; done
        """
        worker = KeptProcess("local worker", ["sh", "-c", script])
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run())
            assert await pipe.line() == "ready"
            await worker.stop(grace_seconds=0.5)
            assert [await pipe.line(), await pipe.line()] == ["drains", "left"]


async def test_a_worker_that_is_just_being_started_is_stopped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    start = asyncio.create_subprocess_exec
    starting, go_on = asyncio.Event(), asyncio.Event()

    async def slow_start(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        starting.set()
        await go_on.wait()
        return await start(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow_start)
    worker = KeptProcess("local worker", ["sleep", "600"])
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run())
        await starting.wait()
        stopping = tasks.create_task(worker.stop(grace_seconds=10))
        await asyncio.wait([stopping], timeout=0.01)
        go_on.set()


async def test_a_worker_does_not_share_the_terminals_process_group(tmp_path: Path) -> None:
    with pipe_at(tmp_path / "pipe") as pipe:
        worker = KeptProcess("local worker", ["sh", "-c", f"echo $$ > {pipe.path}; exec sleep 600"])
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run())
            pid = int(await pipe.line())
            assert os.getpgid(pid) != os.getpgid(0)
            await worker.stop(grace_seconds=10)


async def test_stopping_ends_the_wait_before_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_process, "RESTART_SECONDS", 600.0)
    monkeypatch.setattr(kept_process, "MAX_RESTART_SECONDS", 600.0)
    worker = KeptProcess("local worker", ["false"])
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run())
        await worker.stop(grace_seconds=1)
        await running


async def test_a_process_that_the_system_cannot_start_now_is_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_process, "RESTART_SECONDS", 0.001)
    start = asyncio.create_subprocess_exec
    refused: list[tuple[Any, ...]] = []

    async def short_of_memory(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        if len(refused) < 3:
            refused.append(arguments)
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return await start(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", short_of_memory)
    with pipe_at(tmp_path / "pipe") as pipe:
        worker = KeptProcess("local worker", ["sh", "-c", f"echo started > {pipe.path}; exec sleep 600"])
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run())
            assert await pipe.line() == "started"
            await worker.stop(grace_seconds=10)
    assert len(refused) == 3


async def test_what_a_part_says_beside_the_one_line_does_no_harm() -> None:
    """A number is JSON too, and a line may be longer than what is read at once."""
    script = (
        """printf '5\\n[1]\\nwords\\n'; head -c 200000 /dev/zero; echo; echo '{"metrics_port": 7}'; exec sleep 600"""
    )
    part = KeptProcess("part", ["sh", "-c", script], given=b"")
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(part.run())
        assert await part.first == ""
        assert part.told == {"metrics_port": 7}
        await part.stop(grace_seconds=10)


def test_the_socket_lies_in_the_state_directory_unless_its_path_would_be_too_long(tmp_path: Path) -> None:
    assert socket_path(Path("/var/lib/rexec")) == Path("/var/lib/rexec/rexec.sock")
    assert len(os.fsencode(socket_path(tmp_path / ("x" * 120)))) <= 107


async def test_a_socket_in_tmp_is_in_a_directory_that_only_its_user_can_enter(tmp_path: Path) -> None:
    config = Config(state_dir=str(tmp_path / ("x" * 120)), server=ServerSettings(listen=("127.0.0.1:0",)))
    folder = socket_path(config.state_path).parent
    async with running(config) as server:
        assert server.socket == folder / "rexec.sock"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


@pytest.mark.parametrize("planted", ["open to all", "a link"])
async def test_a_directory_in_tmp_that_others_could_have_made_is_not_used(tmp_path: Path, planted: str) -> None:
    """Whoever can make a socket there would give the local worker its orders."""
    config = Config(state_dir=str(tmp_path / ("x" * 120)), server=ServerSettings(listen=("127.0.0.1:0",)))
    folder = socket_path(config.state_path).parent
    if planted == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    try:
        with pytest.raises(CannotServe, match="remove it"):
            async with running(config):
                pass
    finally:
        folder.unlink() if planted == "a link" else folder.rmdir()


def test_the_worker_gets_the_servers_configuration_file() -> None:
    command = worker_command("unix:/s", 3, Path("/w"), Path("/etc/rexec.toml"), "builder")
    assert command[1:] == [
        "-m", "rexec", "worker", "--server", "unix:/s", "--slots", "3", "--work-dir", "/w",
        "--parent-pid", str(os.getpid()), "--name", "builder", "--config", "/etc/rexec.toml",
    ]  # fmt: skip


def test_the_worker_has_the_same_name_in_every_process() -> None:
    first = worker_command("unix:/s", 3, Path("/w"), None)
    assert first[first.index("--name") + 1] == f"{socket.gethostname()}-local"
