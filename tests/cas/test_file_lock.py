"""lock_file and claim: one process at a time, and whoever fails says so and holds nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cas.file_lock import DirectoryUnusable, claim, lock_file


def test_a_file_is_held_until_the_descriptor_is_closed(tmp_path: Path) -> None:
    first = lock_file(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        lock_file(tmp_path / "lock")
    os.close(first)
    os.close(lock_file(tmp_path / "lock"))


def test_a_refused_claim_leaves_no_descriptor_open(tmp_path: Path) -> None:
    holder = claim(tmp_path / "lock", "directory d")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(DirectoryUnusable, match="directory d is in use by another process"):
            claim(tmp_path / "lock", "directory d")
    assert os.listdir("/proc/self/fd") == before
    os.close(holder)


def test_directories_above_are_made(tmp_path: Path) -> None:
    os.close(claim(tmp_path / "a" / "b" / "lock", "directory d"))
    assert (tmp_path / "a" / "b" / "lock").exists()


def test_a_place_where_nothing_can_be_made_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DirectoryUnusable, match=r"directory d cannot be used: .*(Not a directory|File exists)"):
        claim(tmp_path / "file" / "lock", "directory d")


def test_a_child_process_does_not_inherit_the_lock(tmp_path: Path) -> None:
    descriptor = lock_file(tmp_path / "lock")
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
