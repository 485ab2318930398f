"""A copy of what actions see of /etc: one mount instead of more than thirty, which take bwrap longer than all the rest.

It is taken when the worker starts, so what changes in there later is seen by actions after the next start, as is a file that was
not there. What can change under a running worker and matters to actions with a network is for whoever mounts (`LIVE`).
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from typing import Final

from rexec.worker.workspace import delete_tree

ETC: Final = "/etc"

LIVE: Final = ("/etc/resolv.conf", "/etc/hosts")
"""Written anew when the machine gets into another network."""

MAX_BYTES: Final = 64 << 20
MAX_ENTRIES: Final = 20_000
"""More is not copied: somebody has declared other things than programs need."""


class TooMuch(Exception):
    """It would not be a small copy; the text says of what."""


def copy_etc(paths: Iterable[str], mounted: Iterable[str], target: str, etc: str = ETC) -> None:
    """Make `target` what /etc is to be for actions: the files, directories and symlinks `paths`, which are below /etc, as they
    are now, and empty places to mount those of `mounted` on that are there too.

    What was at `target` is deleted. What is missing or may not be read is left out. Raises OSError, TooMuch; then there may be
    something at `target` that is not whole.
    """
    made = f"{target}.new"
    for path in (made, target):
        if os.path.lexists(path):
            delete_tree(path)
    os.mkdir(made, 0o755)
    copying = _Copying()
    for path in sorted(set(paths)):
        place = _place(made, path, etc)
        if path in LIVE and os.path.isfile(path):
            copying.file(os.path.realpath(path), place)  # mostly a link to where no action sees anything
        else:
            copying.anything(path, place)
    for path in sorted(set(mounted)):
        place = _place(made, path, etc)
        if os.path.lexists(place):
            continue
        if os.path.islink(path):
            os.symlink(os.readlink(path), place)
        elif os.path.isdir(path):
            os.mkdir(place)
        elif os.path.exists(path):
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    os.rename(made, target)


def _place(made: str, path: str, etc: str) -> str:
    """Where the copy of a path is, in a directory that is there."""
    place = f"{made}/{os.path.relpath(path, etc)}"
    os.makedirs(os.path.dirname(place), exist_ok=True)
    return place


class _Copying:
    def __init__(self) -> None:
        self._bytes = self._entries = 0

    def anything(self, source: str, target: str) -> None:
        """Directories with all below, without recursion: somebody else decides how deep they are."""
        waiting = [(source, target)]
        while waiting:
            source, target = waiting.pop()
            self._entries += 1
            if self._entries > MAX_ENTRIES:
                raise TooMuch(f"more than {MAX_ENTRIES} files and directories")
            try:
                mode = os.lstat(source).st_mode
                if stat.S_ISLNK(mode):
                    os.symlink(os.readlink(source), target)
                elif stat.S_ISREG(mode):
                    self.file(source, target)
                elif stat.S_ISDIR(mode):
                    names = os.listdir(source)
                    os.makedirs(target, exist_ok=True)
                    waiting += [(f"{source}/{name}", f"{target}/{name}") for name in names]
            except (FileNotFoundError, PermissionError, FileExistsError):
                continue

    def file(self, source: str, target: str) -> None:
        with open(source, "rb") as read:
            status = os.fstat(read.fileno())
            self._bytes += status.st_size
            if self._bytes > MAX_BYTES:
                raise TooMuch(f"more than {MAX_BYTES >> 20} MiB")
            with open(target, "xb") as written:
                shutil.copyfileobj(read, written)
        os.chmod(target, 0o555 if status.st_mode & 0o111 else 0o444)
        os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
