"""Which C library a root file system has, read off its files."""

from pathlib import Path

import pytest

from rexec.worker.libc import libc

GLIBC = b"\x7fELF\0GNU C Library (Some 2.41-6) stable release version 2.41.\nCopyright\0"
MUSL = b"\x7fELF\0127.0.0.1\0musl libc (x86_64)\nVersion %s\nDynamic Program Loader\0\0001.2.5\0"


def lay(root: Path, path: str, content: bytes = b"") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_the_library_beside_what_the_loaders_link_leads_to(tmp_path: Path) -> None:
    lay(tmp_path, "usr/lib/x86_64-linux-gnu/ld-2.41.so")
    lay(tmp_path, "usr/lib/x86_64-linux-gnu/libc.so.6", GLIBC)
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "ld-linux-x86-64.so.2").symlink_to("../usr/lib/x86_64-linux-gnu/ld-2.41.so")
    assert libc(str(tmp_path), "x86_64") == "glibc-2.41"
    assert libc(str(tmp_path), "aarch64") == ""


def test_the_other_library(tmp_path: Path) -> None:
    lay(tmp_path, "lib/ld-musl-x86_64.so.1", MUSL)
    assert libc(str(tmp_path), "x86_64") == "musl-1.2.5"
    # What lets programs of the GNU library run with it is not that library.
    lay(tmp_path, "lib64/ld-linux-x86-64.so.2", b"\x7fELF")
    assert libc(str(tmp_path), "x86_64") == "musl-1.2.5"


def test_of_two_the_gnu_one_counts(tmp_path: Path) -> None:
    lay(tmp_path, "lib/ld-musl-aarch64.so.1", MUSL)
    lay(tmp_path, "lib/ld-linux-aarch64.so.1")
    lay(tmp_path, "lib/libc.so.6", GLIBC)
    assert libc(str(tmp_path), "aarch64") == "glibc-2.41"


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"GNU C Library of no version", b"GNU C Library\0release version 2.3"]
)
def test_a_root_of_static_programs_has_none(tmp_path: Path, content: bytes) -> None:
    assert libc(str(tmp_path), "x86_64") == ""
    lay(tmp_path, "lib64/ld-linux-x86-64.so.2")
    lay(tmp_path, "lib64/libc.so.6", content)
    assert libc(str(tmp_path), "x86_64") == ""
