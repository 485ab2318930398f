"""Where a path leads for a process whose file system root is a directory of this machine."""

from __future__ import annotations

import os
from typing import Final

from cas.errors import FailedPrecondition

_MAX_LINKS: Final = 40
"""As many as Linux follows in one path (path_resolution(7))."""


def place_in(root: str, path: str) -> str:
    """The path on this machine of the absolute `path` as seen with `root` as the file system's root; never outside of it.

    Symlinks are followed as such a process would follow them: absolute ones begin at `root`, and ".." at the top stays
    there. What does not exist is taken literally. Only meaningful while nobody changes the directory. Raises FailedPrecondition
    if symlinks go round in a circle.
    """
    done: list[str] = []
    waiting = path.split("/")[::-1]
    links = 0
    while waiting:
        name = waiting.pop()
        if name in ("", "."):
            continue
        if name == "..":
            del done[-1:]
            continue
        try:
            target = os.readlink("/".join([root, *done, name]))
        except (OSError, ValueError):
            done.append(name)  # no symlink
            continue
        links += 1
        if links > _MAX_LINKS:
            raise FailedPrecondition(f"path {path[:200]!r} leads through more than {_MAX_LINKS} symlinks")
        if target.startswith("/"):
            done.clear()
        waiting.extend(target.split("/")[::-1])
    return "/".join([root, *done])
