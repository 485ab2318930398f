"""Paths of a Command: where they lead inside the input root, and that they lead nowhere else."""

from __future__ import annotations

import os

from cas.errors import FailedPrecondition, MalformedRequest


def inside(working_directory: str, path: str) -> str:
    """`path`, relative to `working_directory`, as a path relative to the input root; "" is the root itself.

    Raises MalformedRequest if it is absolute or leads out of the root (REAPI, Command.output_paths). BuildStream uses "."
    and "../..", so dots are followed and not refused.
    """
    if "\0" in path or "\0" in working_directory:
        raise MalformedRequest(f"path {path[:200]!r} holds a NUL character")
    for given in (path, working_directory):
        if given.startswith("/"):
            raise MalformedRequest(f"path {given[:200]!r} is absolute; it must be relative to the input root")
    joined = os.path.normpath(os.path.join(working_directory, path)) if working_directory or path else "."
    if joined == "." or not joined:
        return ""
    if joined == ".." or joined.startswith("../"):
        raise MalformedRequest(f"path {path[:200]!r} leads out of the input root")
    return joined


def resolved(root: str, relative: str) -> str:
    """The real directory of `relative` below `root`, symlinks followed.

    Raises FailedPrecondition if symlinks lead out of the root. What does not exist yet is taken literally. Only meaningful
    while no process of the action is running.
    """
    real_root = os.path.realpath(root)
    real = os.path.realpath(os.path.join(real_root, relative))
    if real != real_root and not real.startswith(real_root + "/"):
        raise FailedPrecondition(f"path {relative[:200]!r} leads out of the input root by a symlink")
    return real
