"""Which C library the programs of a root file system are linked with.

The interpreter's own says nothing of that: the self-contained agent (rexec/agent_bundle.py) brings its own into images of users.
So it is read off the files at the places that programs name as their loader.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Final

_GLIBC_LOADERS: Final = {"x86_64": "lib64/ld-linux-x86-64.so.2", "aarch64": "lib/ld-linux-aarch64.so.1"}
_GLIBC_VERSION: Final = re.compile(rb"GNU C Library [^\n\0]{0,200}?release version (\d{1,4}(?:\.\d{1,4}){1,2})")
_MUSL_VERSION: Final = re.compile(rb"\0(\d{1,4}\.\d{1,4}\.\d{1,4})(?:-git[^\0]{0,64})?\0")
_MAX_LIBRARY_BYTES: Final = 64 << 20


def libc(root: str = "/", machine: str = "") -> str:
    """Such as glibc-2.36 or musl-1.2.3; empty if there is none, as in an image of static programs. `machine` is as uname(2)
    names it, this one if empty. Of two the GNU one counts, which nearly all who have both build with."""
    machine = machine or platform.machine()
    if loader := _GLIBC_LOADERS.get(machine):
        # The library is beside the file that the loader's link leads to, and nowhere named.
        found = _GLIBC_VERSION.search(_content(_resolved(root, loader).parent / "libc.so.6"))
        if found:
            return f"glibc-{found[1].decode()}"
    content = _content(_resolved(root, f"lib/ld-musl-{machine}.so.1"))
    found = _MUSL_VERSION.search(content) if b"musl libc" in content else None
    return f"musl-{found[1].decode()}" if found else ""


def _resolved(root: str, path: str) -> Path:
    return Path(os.path.realpath(os.path.join(root, path)))


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_LIBRARY_BYTES)
    except OSError:
        return b""
