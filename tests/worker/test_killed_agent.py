"""An agent killed with SIGKILL in the middle of each phase: the next one in the directory finds everything sound."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rexec.worker.process_table import all_processes, lies_in
from tests.worker.killed_agent import PLACES

ROOT = Path(__file__).parents[2]
SECONDS = 60


def run(work_dir: Path, place: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.worker.killed_agent", str(work_dir), place]
    return subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=SECONDS, check=False
    )


def cached(work_dir: Path) -> list[Path]:
    return [path for path in (work_dir / "cache" / "sha256").rglob("*") if path.is_file()]


def sleeping(work_dir: Path) -> list[int]:
    """Processes of the action, wherever they went."""
    found = []
    for pid, process in all_processes().items():
        if not process.is_dead and lies_in(pid, f"{work_dir}/w"):
            found.append(pid)
    return found


@pytest.mark.parametrize("place", [place for place in PLACES if place != "nowhere"])
def test_the_next_agent_runs_the_action_as_if_nothing_had_been(tmp_path: Path, place: str) -> None:
    work = tmp_path / "work"
    killed = run(work, place)
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert "finished 0" not in killed.stdout
    if place == "running":
        assert sleeping(work), "nothing was left behind, so nothing is shown"
    second = run(work, "nowhere")
    assert second.returncode == 0, second.stdout
    assert "finished 0 5 20 1\n" in second.stdout
    assert sleeping(work) == []
    assert os.listdir(work / "w") == os.listdir(work / "trash") == os.listdir(work / "cache" / "tmp") == []
    files = cached(work)
    assert len(files) >= 21, "its inputs are kept"
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name.removesuffix("_x")
