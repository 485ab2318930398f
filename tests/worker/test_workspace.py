"""The work directory: one agent at a time, and everything can be deleted."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from cas.errors import FailedPrecondition
from rexec.worker.process_table import ticks_now
from rexec.worker.workspace import Workspace, delete_tree


def test_a_second_agent_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    first = Workspace(str(tmp_path))
    first.claim()
    with pytest.raises(FailedPrecondition, match=f"in use by process {os.getpid()}"):
        Workspace(str(tmp_path)).claim()
    first.close()
    again = Workspace(str(tmp_path))
    again.claim()
    again.close()


def test_rooms_have_the_same_paths_again(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    workspace.claim()
    first, second = workspace.room(), workspace.room()
    Path(first.root, "file").write_bytes(b"")
    workspace.discard(first)
    third = workspace.room()
    assert (first.path, second.path) == (f"{workspace.path}/w/0", f"{workspace.path}/w/1")
    assert third.path == first.path
    assert os.listdir(third.root) == []
    workspace.close()


def test_a_room_without_permissions_vanishes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def rename_as_an_ordinary_user(source: str, target: str) -> None:
        if not os.stat(source).st_mode & stat.S_IWUSR:
            raise PermissionError(errno.EACCES, "permission denied", source)
        rename(source, target)

    workspace = Workspace(str(tmp_path))
    workspace.claim()
    monkeypatch.setattr(os, "rename", rename_as_an_ordinary_user)
    room = workspace.room()
    os.chmod(room.path, 0)
    workspace.discard(room)
    assert not os.path.exists(room.path)
    assert workspace.room() == room
    workspace.close()


def test_a_room_that_cannot_be_moved_is_not_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, _target: str) -> None:
        raise PermissionError(errno.EACCES, "permission denied", source)

    workspace = Workspace(str(tmp_path))
    workspace.claim()
    room = workspace.room()
    monkeypatch.setattr(os, "rename", refuse)
    workspace.discard(room)
    monkeypatch.undo()
    assert workspace.room().number != room.number
    workspace.close()


def test_the_next_agent_deletes_the_rooms_and_ends_the_processes_of_the_last(tmp_path: Path) -> None:
    work = tmp_path / "work"
    workspace = Workspace(str(work))
    workspace.claim()
    room = workspace.room()
    Path(room.root, "file").write_bytes(b"")
    ticks = ticks_now()
    in_room = subprocess.Popen(["sleep", "1000"], env={"TMPDIR": room.tmp}, cwd="/", start_new_session=True)
    in_session = subprocess.Popen(["sleep", "1001"], env={}, cwd="/", start_new_session=True)
    stranger = subprocess.Popen(["sleep", "1002"], env={}, cwd="/", start_new_session=True)
    workspace.note_session(in_session.pid, ticks)
    # As if killed: the lock goes, nothing else is done.
    os.close(workspace._lock_fd)
    successor = Workspace(str(work))
    successor.claim()
    try:
        assert in_room.wait(10) == in_session.wait(10) == -9
        assert stranger.poll() is None
        assert os.listdir(work / "w") == []
    finally:
        stranger.kill()
        stranger.wait()
        successor.close()
    assert os.listdir(work / "trash") == []


def test_sessions_of_an_earlier_boot_mean_nothing(tmp_path: Path) -> None:
    (tmp_path / "sessions").write_text(f"another boot\n{os.getpid()} 0\n")
    workspace = Workspace(str(tmp_path))
    workspace.claim()
    workspace.close()


def test_sessions_mean_nothing_where_the_boot_is_unknown(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path), boot_id=str)
    workspace.claim()
    ticks = ticks_now()
    with subprocess.Popen(["sleep", "1000"], env={}, cwd="/", start_new_session=True) as other:
        workspace.note_session(other.pid, ticks)
        workspace.close()
        successor = Workspace(str(tmp_path), boot_id=str)
        successor.claim()
        successor.close()
        assert other.poll() is None
        other.kill()


def test_anything_can_be_deleted(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").write_bytes(b"")
    victim = tmp_path / "trash" / "victim"
    (victim / "locked" / "inner" / "deep").mkdir(parents=True)
    (victim / "locked" / "inner" / "file").write_bytes(b"")
    (victim / "link").symlink_to(keep)
    os.mkfifo(victim / "pipe")
    Path(os.fsdecode(os.fsencode(victim) + b"/\xff")).write_bytes(b"")
    (victim / "locked" / "inner").chmod(0)
    (victim / "locked").chmod(0)
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(victim)
        for _ in range(3000):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.fchdir(here)
        os.close(here)
    delete_tree(str(victim))
    assert os.listdir(tmp_path / "trash") == []
    assert (keep / "file").exists()
