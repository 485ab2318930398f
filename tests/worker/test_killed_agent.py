"""An agent killed with SIGKILL in the middle of each phase: the next one in the directory finds everything sound."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rexec.worker.process_table import all_processes
from tests.worker.killed_agent import PLACES

ROOT = Path(__file__).parents[2]
SECONDS = 60
NOBODY = 65534


def run(work_dir: Path, place: str, isolation: str, *user: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.worker.killed_agent", str(work_dir), place, isolation, *user]
    return subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=SECONDS, check=False
    )


def cached(work_dir: Path) -> list[Path]:
    return [path for path in (work_dir / "cache" / "sha256").rglob("*") if path.is_file()]


def sleeping(work_dir: Path) -> list[int]:
    """Processes of the action, wherever they went and whatever they see."""
    mark = f"MARK={work_dir}".encode()
    found = []
    for pid, process in all_processes().items():
        with suppress(OSError):
            if not process.is_dead and mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


@pytest.fixture
def anyones() -> Iterator[Path]:
    """A directory that other users get to, unlike those of the test."""
    with tempfile.TemporaryDirectory(prefix="rexec-test-", ignore_cleanup_errors=True) as place:
        os.chmod(place, 0o1777)
        yield Path(place)


@pytest.mark.parametrize("isolation", ["none", "landlock", "bubblewrap"])
def test_an_ordinary_user_can_be_the_worker(anyones: Path, isolation: str) -> None:
    work = anyones / "work"
    user = [] if os.geteuid() else [str(NOBODY)]
    killed = run(work, "running", isolation, *user)
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert work.stat().st_uid == (NOBODY if user else os.geteuid())
    second = run(work, "nowhere", isolation, *user)
    assert second.returncode == 0, second.stdout
    assert "finished 0 5 20 1\n" in second.stdout
    assert sleeping(work) == []
    assert os.listdir(work / "w") == os.listdir(work / "trash") == []


@pytest.mark.parametrize(
    ("place", "isolation"),
    [
        *((place, "none") for place in PLACES if place != "nowhere"),
        *((place, kind) for kind in ("landlock", "bubblewrap") for place in ("running", "collecting")),
    ],
)
def test_the_next_agent_runs_the_action_as_if_nothing_had_been(tmp_path: Path, place: str, isolation: str) -> None:
    work = tmp_path / "work"
    killed = run(work, place, isolation)
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert "finished 0" not in killed.stdout
    if place == "running" and isolation != "bubblewrap":  # of which the kernel lets nothing outlive the agent
        assert sleeping(work), "nothing was left behind, so nothing is shown"
    second = run(work, "nowhere", isolation)
    assert second.returncode == 0, second.stdout
    assert "finished 0 5 20 1\n" in second.stdout
    assert sleeping(work) == []
    assert os.listdir(work / "w") == os.listdir(work / "trash") == os.listdir(work / "cache" / "tmp") == []
    assert str(work) not in Path("/proc/self/mountinfo").read_text()
    assert set(os.listdir(work)) - {"etc"} == {"lock", "sessions", "w", "trash", "cache", "programs.json"}
    files = cached(work)
    assert len(files) >= 21, "its inputs are kept"
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name.removesuffix("_x")
