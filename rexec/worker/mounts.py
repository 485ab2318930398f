"""The file system that an action sees in bubblewrap, as options of bwrap(1): two forms.

`machine`: an empty root with the machine's programs and libraries, read-only; the input root is at the same path as on the
machine, and /tmp, which is TMPDIR, is the action's own.

`inputs`: the input root is the root, with /proc, a small /dev and the action's own /tmp over it. Directories that the client
has marked with the node property `SubtreeReadOnly` are mounted read-only, those marked otherwise below them are not. The three
mount points are made where they are missing, and removed again before outputs are collected.

Input files are hard links to the cache. What keeps them as they are: their modes, which hold for every user in the sandbox,
because none has any capability there or can get one; a file system mounted read-only where the client allows it; and the check
after the action (`guard`), for the owner of a file may change its mode.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from cas.digest import Digest
from cas.errors import FailedPrecondition
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.worker.chroot import place_in
from rexec.worker.etc_copy import ETC, LIVE
from rexec.worker.inputs import Inputs
from rexec.worker.paths import inside

TMP: Final = "/tmp"
"""Where the action finds its temporary directory."""

_MOUNT_POINTS: Final = ("dev", "proc", "tmp")

_MAX_MARKED: Final = 64
"""bwrap reads the list of all mounts for each mount, so a thousand would take seconds."""

_READ_ONLY_PROPERTY: Final = "SubtreeReadOnly"


def machine_mounts(machine_paths: Iterable[str], hidden: Iterable[str], etc: str = "") -> list[str]:
    """What `machine_root` shows of the machine, for every action: the paths as they are now, and nothing of the directories
    `hidden`, even where a machine path holds them. `etc` is a directory that is to be /etc; in there it has places for what is
    mounted below, and symlinks itself."""
    options = ["--ro-bind", etc, ETC] if etc else []
    paths = sorted(set(machine_paths))  # a directory before what is in it
    for path in paths:
        if os.path.islink(path) and path not in LIVE:
            if not etc or not path.startswith(f"{ETC}/"):
                options += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            options += ["--ro-bind", os.path.realpath(path), path]
    shown = [os.path.realpath(path) for path in paths]
    for path in sorted(set(hidden)):
        if any(path == above or path.startswith(f"{above}/") for above in shown):
            options += ["--tmpfs", path]
    return options


def machine_root(machine: Iterable[str], root: str, tmp: str) -> list[str]:
    """The options for `machine`: `machine` are those of `machine_mounts`, `root` is the input root, `tmp` the action's temporary
    directory, both without symlinks."""
    # What comes later is mounted over what comes earlier: all the rest may be below /tmp.
    options = ["--proc", "/proc", "--dev", "/dev", "--bind", tmp, TMP, *machine]
    return [*options, "--bind", root, root, "--remount-ro", "/"]


def inputs_root(inputs: Inputs, root: str, tmp: str) -> list[str]:
    """The options for `inputs`; to be used within `mount_points`. `tmp` is what is to be /tmp."""
    options = ["--bind", root, "/"]
    for path, is_read_only in _marked(inputs):
        options += ["--ro-bind" if is_read_only else "--bind", f"{root}{path}", path or "/"]
    return [*options, "--proc", "/proc", "--dev", "/dev", "--bind", tmp, TMP]


def has_outputs_in_tmp(command: re_pb2.Command, root: str) -> bool:
    """Whether an output is /tmp or below it, with the input root as /; symlinks among the inputs may lead there. Raises
    MalformedRequest for an output outside of the input root, FailedPrecondition for symlinks in a circle."""
    outputs = command.output_paths or [*command.output_files, *command.output_directories]
    for path in outputs:
        inner = inside(command.working_directory, path)
        place = place_in(root, f"/{os.path.dirname(inner)}").removeprefix(root)
        if f"{place.rstrip('/')}/{os.path.basename(inner)}/".startswith(f"{TMP}/"):
            return True
    return False


@contextmanager
def mount_points(root: str, kept: str = "") -> Iterator[None]:
    """Have directories in the input root to mount on, and remove afterwards those that were missing, but for `kept`.

    Raises FailedPrecondition if something else is there: a symlink could lead out of the input root.
    """
    made: list[str] = []
    try:
        for name in _MOUNT_POINTS:
            path = f"{root}/{name}"
            try:
                os.mkdir(path)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(path).st_mode):
                    raise FailedPrecondition(
                        f"the input root has a file or symlink named {name!r}, where a directory is needed to mount /{name}"
                    ) from None
            else:
                made.append(path)
        yield
    finally:
        for path in set(made) - {kept}:
            # An action cannot put anything into it, but into what it may have moved there.
            with suppress(OSError):
                os.rmdir(path)


def _marked(inputs: Inputs) -> Sequence[tuple[str, bool]]:
    """The directories where being read-only begins or ends, each before what is in it; paths begin with "/", the root is ""."""
    has_marks = _with_marks(inputs)
    found: list[tuple[str, bool]] = []
    waiting: list[tuple[str, Digest, bool]] = [("", inputs.root, False)]
    while waiting and len(found) < _MAX_MARKED:
        path, digest, above = waiting.pop()
        listing = inputs.listings[digest]
        mark = _mark(inputs, digest)
        is_read_only = above if mark is None else mark
        if is_read_only != above:
            found.append((path, is_read_only))
        waiting += [
            (f"{path}/{name}", child, is_read_only) for name, child in listing.children.items() if child in has_marks
        ]
    return found


def _mark(inputs: Inputs, digest: Digest) -> bool | None:
    message = inputs.listings[digest].directory.message
    for entry in message.node_properties.properties:
        if entry.name == _READ_ONLY_PROPERTY:
            return entry.value == "true"
    return None


def _with_marks(inputs: Inputs) -> set[Digest]:
    """The directories that are marked or hold one that is."""
    parents: dict[Digest, list[Digest]] = {}
    for digest, listing in inputs.listings.items():
        for child in listing.children.values():
            parents.setdefault(child, []).append(digest)
    waiting = [digest for digest in inputs.listings if _mark(inputs, digest) is not None]
    found = set(waiting)
    while waiting:
        for parent in parents.get(waiting.pop(), ()):
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found
