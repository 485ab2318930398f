"""Laying out the input root: directories are made, files are hard links into the file cache, symlinks are as they are.

A file that asks for a time or mode of its own is a private copy, for a hard link shares both with every other action.
The tree was checked when it was parsed (cas/tree.py): names are single segments and unique in their directory. So every
directory that is filled here was made here a moment before, and nothing is ever written through a symlink.

One call lays out the whole tree, in one thread. What is shared with other actions is checked afterwards (`changed`).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from cas.errors import MalformedRequest
from cas.tree import Directory, Tree
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.worker import properties
from rexec.worker.blob_files import BlobFiles, FileKey
from rexec.worker.paths import inside, resolved


@dataclass(frozen=True, slots=True)
class Inputs:
    """A checked input root, not on disk yet."""

    tree: Tree
    keys: frozenset[FileKey]
    """The files it takes."""


def inputs_of(tree: Tree) -> Inputs:
    """What `tree` takes to be laid out. Raises MalformedRequest for node properties that are not known or not possible."""
    keys: set[FileKey] = set()
    for directory in tree.directories.values():
        message = directory.message
        if message.HasField("node_properties"):
            _check(message.node_properties, str(directory.digest), directory=True)
        for node, digest in directory.files():
            keys.add(FileKey(digest, node.is_executable))
            if node.HasField("node_properties"):
                _check(node.node_properties, node.name)
        for symlink in message.symlinks:
            if symlink.HasField("node_properties"):
                _check(symlink.node_properties, symlink.name)
    return Inputs(tree, frozenset(keys))


def _check(node_properties: re_pb2.NodeProperties, name: str, *, directory: bool = False) -> None:
    properties.require_known(node_properties, name, directory=directory)
    properties.mtime_of(node_properties)


def lay_out(inputs: Inputs, command: re_pb2.Command, root: str, files: BlobFiles, *, copied: bool = False) -> None:
    """Make the tree, and the parents of the command's outputs, in the empty directory `root`. All its files are held by the
    caller. With `copied` every file is a private copy, for a command that is known to change its inputs. Blocks.

    Raises MalformedRequest for paths longer than the system allows and as `make_output_parents` does, OSError for a full
    disk or a file that vanished.
    """
    try:
        with_properties = _lay_out(inputs, root, files, copied)
        make_output_parents(command, root)
        # Last and the innermost first: making an entry changes its directory's time and needs its write permission.
        for node_properties, path in reversed(with_properties):
            properties.apply(node_properties, path)
    except OSError as failure:
        if failure.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise MalformedRequest("the input root holds a path that is longer than the system allows") from failure
        raise


def _lay_out(inputs: Inputs, root: str, files: BlobFiles, copied: bool) -> list[tuple[re_pb2.NodeProperties, str]]:
    """Make the tree; returns the directories with properties of their own, parents first."""
    directories = inputs.tree.directories
    sources = {key: files.path(key) for key in inputs.keys}
    waiting: list[tuple[Directory, str]] = [(directories[inputs.tree.root], root)]
    with_properties: list[tuple[re_pb2.NodeProperties, str]] = []
    while waiting:
        directory, path = waiting.pop()
        if directory.message.HasField("node_properties"):
            with_properties.append((directory.message.node_properties, path))
        for node, digest in directory.files():
            key = FileKey(digest, node.is_executable)
            target = f"{path}/{node.name}"
            if node.HasField("node_properties") and _is_own(node.node_properties):
                files.private_copy(
                    key,
                    target,
                    properties.mode_of(node.node_properties, key.mode),
                    properties.mtime_of(node.node_properties),
                )
                continue
            if copied:
                files.private_copy(key, target, key.mode, None)
                continue
            try:
                os.link(sources[key], target)
            except OSError as failure:
                # EXDEV: the cache is on another file system. EMLINK: ext4 allows 65,000 links to one file.
                if failure.errno not in (errno.EXDEV, errno.EMLINK):
                    raise
                files.private_copy(key, target, key.mode, None)
        for symlink in directory.symlinks():
            target = f"{path}/{symlink.name}"
            os.symlink(symlink.target, target)
            if symlink.HasField("node_properties"):
                properties.apply(symlink.node_properties, target)
        for child, digest in directory.directories():
            target = f"{path}/{child.name}"
            os.mkdir(target)
            waiting.append((directories[digest], target))
    return with_properties


def _is_own(node_properties: re_pb2.NodeProperties) -> bool:
    return node_properties.HasField("mtime") or node_properties.HasField("unix_mode")


def working_directory(command: re_pb2.Command, root: str) -> str:
    """The absolute path of Command.working_directory. Raises MalformedRequest if the input root has no such directory."""
    relative = inside("", command.working_directory)
    path = resolved(root, relative)
    if not os.path.isdir(path):
        raise MalformedRequest(f"working directory {command.working_directory[:200]!r} is not in the input root")
    return path


def make_output_parents(command: re_pb2.Command, root: str) -> None:
    """Make the directories that outputs go to, not the outputs themselves (REAPI, Command.output_paths).

    Raises MalformedRequest for an output outside the input root, FailedPrecondition where a symlink leads out of it or
    an input is in the way.
    """
    outputs = command.output_paths or [*command.output_files, *command.output_directories]
    parents = {os.path.dirname(inside(command.working_directory, path)) for path in outputs}
    for parent in sorted(parents):
        if not parent:
            continue
        path = resolved(root, parent)
        try:
            os.makedirs(path, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise MalformedRequest(f"an input is in the way of the output directory {parent[:200]!r}") from None
        except OSError as failure:
            if failure.errno == errno.ENAMETOOLONG:
                raise MalformedRequest(f"the output directory {parent[:200]!r} has a name that is too long") from None
            raise


def changed(inputs: Inputs, files: BlobFiles) -> list[FileKey]:
    """The shared files that were written to, or whose mode or time was changed, since they were fetched. Blocks."""
    return [key for key in inputs.keys if not files.is_intact(key)]
