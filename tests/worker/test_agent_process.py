"""An agent as a process: killed in mid-action, told to leave, or orphaned. Nothing outlives it for long."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rexec.worker.process_table import all_processes, lies_in
from rexec.worker.workspace import Workspace

ROOT = Path(__file__).parents[2]
SECONDS = 60


def start(work_dir: Path, script: str, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.worker.agent_process", str(work_dir), script, *flags]
    agent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert agent.stdout is not None
    lines = iter(agent.stdout.readline, "")
    assert any(line == "running\n" for line in lines), "the agent ended before its action ran"
    return agent


def end(agent: subprocess.Popen[str]) -> str:
    """What the agent told the scheduler: failure and exit code. Its log is on the same stream."""
    assert agent.stdout is not None
    return next((line for line in iter(agent.stdout.readline, "") if line.startswith("finished ")), "")


def actions_in(work_dir: Path) -> list[int]:
    return [pid for pid, process in all_processes().items() if not process.is_dead and lies_in(pid, f"{work_dir}/w")]


def wait_until_made(path: Path) -> None:
    """Opening a pipe for reading waits until somebody writes."""
    path.read_bytes()


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    path = tmp_path / "ready"
    os.mkfifo(path)
    return path


def test_an_agent_killed_in_mid_action_leaves_a_directory_that_the_next_one_cleans(tmp_path: Path, ready: Path) -> None:
    work = tmp_path / "work"
    agent = start(work, f"setsid sleep 1000 & (cd /; env -i sleep 1001) & echo > {ready}; sleep 1002")
    wait_until_made(ready)
    agent.kill()
    agent.wait(SECONDS)
    assert actions_in(work), "nothing was left behind, so nothing is shown"
    second = start(work, "exit 7")
    assert end(second) == "finished 0 7\n"
    second.send_signal(signal.SIGTERM)
    assert second.wait(SECONDS) == 0
    assert actions_in(work) == []
    assert [p for p in all_processes() if Path(f"/proc/{p}/cmdline").exists() and sleeps(p, "1001")] == []
    assert os.listdir(work / "w") == os.listdir(work / "trash") == []


def sleeps(pid: int, argument: str) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == f"sleep\0{argument}\0".encode()
    except OSError:
        return False


def test_sigterm_lets_the_command_end_and_the_agent_exits_with_0(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    agent = start(tmp_path / "work", f"until [ -e {gate} ]; do sleep 0.02; done; exit 5")
    agent.send_signal(signal.SIGTERM)
    gate.write_bytes(b"")
    assert end(agent) == "finished 0 5\n"
    assert agent.wait(SECONDS) == 0


def test_a_second_sigterm_hands_the_action_back_at_once(tmp_path: Path) -> None:
    agent = start(tmp_path / "work", "sleep 1000")
    agent.send_signal(signal.SIGTERM)
    agent.send_signal(signal.SIGINT)
    assert end(agent) == "finished 2 0\n"
    assert agent.wait(SECONDS) == 0
    assert actions_in(tmp_path / "work") == []


def test_a_second_agent_in_the_same_directory_fails(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path / "work"))
    workspace.claim()
    command = [sys.executable, "-m", "tests.worker.agent_process", str(tmp_path / "work"), "true"]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert second.returncode != 0
    assert f"in use by process {os.getpid()}" in second.stderr
    workspace.close()


def test_a_local_worker_does_not_outlive_its_server(tmp_path: Path, ready: Path) -> None:
    work = tmp_path / "work"
    parent_script = (
        "import subprocess, sys\n"
        f"agent = subprocess.Popen([sys.executable, '-m', 'tests.worker.agent_process', {str(work)!r},"
        f" 'echo > {ready}; sleep 1000', 'die'])\n"
        "agent.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_script], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until_made(ready)
    agent = int((work / "lock").read_text())
    watched = os.pidfd_open(agent)
    parent.kill()
    parent.wait(SECONDS)
    assert select.select([watched], [], [], SECONDS)[0] == [watched], "the agent goes on without its parent"
    os.close(watched)
    assert actions_in(work) == []


def test_an_agent_whose_parent_ended_before_it_could_watch_leaves_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.worker.agent_process", str(tmp_path / "work"), "true", "orphan"]
    ended = subprocess.run(command, cwd=ROOT, timeout=SECONDS, capture_output=True, check=False)
    assert ended.returncode == 0
    assert b"the parent process has ended" in ended.stdout
    assert b"running" not in ended.stdout.splitlines()
