"""Which paths are reported; how they are seen in real actions is in test_landlock_isolation."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from rexec.worker.system_calls import X86_64
from rexec.worker.undeclared_reads import MAX_PATHS, UndeclaredReads, found_in, remark_on


@pytest.fixture
def reads(tmp_path: Path) -> UndeclaredReads:
    (tmp_path / "declared").mkdir()
    return UndeclaredReads(X86_64, ["/usr", str(tmp_path / "declared"), "/proc"])


def test_what_lies_below_a_declared_path_is_not_reported_however_it_is_written(
    reads: UndeclaredReads, tmp_path: Path
) -> None:
    (tmp_path / "declared" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "declared" / "file")
    for path in ("declared", "declared/file", "link", "declared/../declared/./file"):
        reads.opened(f"{tmp_path}/{path}")
    for path in ("/usr", "/usr/lib", "/proc/self/maps", "/proc/1/environ", "/dev/fd/3", "/dev/stdin"):
        reads.opened(path)
    assert reads.paths == []


def test_others_are_reported_once_by_their_real_path_if_they_exist(reads: UndeclaredReads, tmp_path: Path) -> None:
    (tmp_path / "declared2").touch()
    (tmp_path / "link").symlink_to("declared2")
    (tmp_path / "declared" / "out").symlink_to("../declared2")
    for path in ("none", "declared2", "link", "declared/out", "declared/../declared2", "declared/none"):
        reads.opened(f"{tmp_path}/{path}")
    assert reads.paths == [f"{tmp_path}/declared2"]
    reads.opened("/")
    assert reads.paths == [f"{tmp_path}/declared2", "/"]


def test_no_more_than_so_many_are_kept_and_the_rest_is_counted(reads: UndeclaredReads, tmp_path: Path) -> None:
    for number in range(MAX_PATHS + 7):
        (tmp_path / str(number)).touch()
        reads.opened(f"{tmp_path}/{number}")
    assert (len(reads.paths), reads.more) == (MAX_PATHS, 7)
    assert remark_on(reads.paths, reads.more).endswith("and 97 more")


@pytest.mark.parametrize("path", ["/a\0b", "/" + "x" * 5000, "/" + "x/" * 2000, "/\udcff\udc80"])
def test_a_path_that_no_file_can_have_harms_nobody(reads: UndeclaredReads, path: str) -> None:
    with suppress(OSError, ValueError):  # as the watching thread does
        reads.opened(path)
    assert reads.paths == []


def test_the_remark_names_a_few_can_be_sent_and_is_nothing_without_any() -> None:
    assert remark_on([], 0) == ""
    assert remark_on(["/a", "/b c"], 0) == "read without being declared: '/a', '/b c'"
    said = remark_on([os.fsdecode(b"/\xff\n"), "/" + "x" * 4000], 3)
    assert said.encode().decode() == said
    assert len(said) < 400
    assert "\n" not in said
    assert said.endswith("and 3 more")


def test_without_a_listener_it_ends(reads: UndeclaredReads) -> None:
    reads.start()
    reads.listen(-1)
    reads.ended(30.0)
    assert not reads._thread.is_alive()


def test_what_programs_are_told_is_bounded_and_counts_the_rest() -> None:
    assert found_in([], 0) == []
    [found] = found_in([os.fsdecode(b"/\xff"), "/a"], 3)
    assert (list(found.paths), found.left_out) == (["/\ufffd", "/a"], 3)
    [found] = found_in([f"/{number}{'x' * 4000}" for number in range(100)], 1 << 40)
    assert 0 < found.ByteSize() < 40_000
    assert found.left_out == (1 << 31) - 1
    [found] = found_in([f"/{number}{'x' * 4000}" for number in range(100)], 5)
    assert len(found.paths) + found.left_out == 105
