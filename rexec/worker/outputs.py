"""Collecting: which of the declared outputs exist, as what, and how the ActionResult names them.

Paths are echoed exactly as the Command has them; several spellings of one path give several entries. An output that is not
there is left out: whether that matters is the client's to say (REAPI, Command.output_paths).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from cas.digest import Digest, DigestFunction
from cas.errors import FailedPrecondition, WrongOutputKind
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.worker.output_tree import FoundFile, OutputReader, shown, special_file
from rexec.worker.paths import inside, resolved
from rexec.worker.properties import require_known_names


@dataclass(slots=True)
class Outputs:
    """What an action made, hashed, and everything that must be in the store before the result is."""

    result: re_pb2.ActionResult = field(default_factory=re_pb2.ActionResult)
    """With outputs only."""
    files: dict[str, FoundFile] = field(default_factory=dict)
    """By absolute path."""
    messages: dict[Digest, bytes] = field(default_factory=dict)
    """Encoded Trees and Directories."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    path: str
    """As the Command has it."""
    kinds: str
    """"any", "file" or "directory"."""


def collect(command: re_pb2.Command, root: str, function: DigestFunction, max_bytes: int, max_files: int) -> Outputs:
    """Gather and hash the outputs of `command` in the input root `root`. Blocks. No process of the action is alive.

    Raises WrongOutputKind for a declared file that is a directory and the reverse, FailedPrecondition for what no message
    can hold, MalformedRequest for a path outside the root.
    """
    root = os.path.realpath(root)
    wanted_properties = require_known_names(command.output_node_properties)
    reader = OutputReader(function, root, wanted_properties, max_bytes, max_files)
    outputs = Outputs(files=reader.files)
    for wanted in _wanted(command):
        relative = inside(command.working_directory, wanted.path)
        try:
            # The parent is resolved, the last segment is not: an output may be a symlink to anywhere.
            parent = resolved(root, os.path.dirname(relative)) if relative else root
            path = f"{parent}/{os.path.basename(relative)}" if relative else parent
            status = os.lstat(path)
            _add(outputs, reader, command, wanted, path, status)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            # A directory above it, without permissions. It would be the same on any worker.
            raise FailedPrecondition(f"output {wanted.path[:200]!r} is where nothing can be read") from None
        except OSError as failure:
            if failure.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                raise FailedPrecondition(
                    f"output {wanted.path[:200]!r} holds a path that is longer than the system allows"
                ) from None
            raise
    return outputs


def _wanted(command: re_pb2.Command) -> Sequence[_Wanted]:
    """The outputs, each once. output_paths, if there are any, replaces both other lists (REAPI, Command)."""
    if command.output_paths:
        pairs = [_Wanted(path, "any") for path in command.output_paths]
    else:
        pairs = [_Wanted(path, "file") for path in command.output_files]
        directories = [_Wanted(path, "directory") for path in command.output_directories]
        # Buck2 lists an output of unknown kind in both lists.
        both = {wanted.path for wanted in pairs} & {wanted.path for wanted in directories}
        pairs = [_Wanted(wanted.path, "any") if wanted.path in both else wanted for wanted in [*pairs, *directories]]
    return list(dict.fromkeys(pairs))


def _add(
    outputs: Outputs,
    reader: OutputReader,
    command: re_pb2.Command,
    wanted: _Wanted,
    path: str,
    status: os.stat_result,
) -> None:
    result = outputs.result
    if stat.S_ISLNK(status.st_mode):
        symlink = re_pb2.OutputSymlink(
            path=wanted.path, target=reader.target(path), node_properties=reader.properties(status)
        )
        result.output_symlinks.append(symlink)
        # Clients older than API 2.1 look here only. Their kind is that of what the link leads to, a file's if to nothing.
        if wanted.kinds == "directory" or (wanted.kinds == "any" and os.path.isdir(path)):
            result.output_directory_symlinks.append(symlink)
        else:
            result.output_file_symlinks.append(symlink)
    elif stat.S_ISREG(status.st_mode):
        if wanted.kinds == "directory":
            raise WrongOutputKind(f"output directory {wanted.path[:200]!r} is a file")
        found = reader.file(path, status)
        result.output_files.add(
            path=wanted.path,
            digest=found.digest.to_proto(),
            is_executable=found.is_executable,
            node_properties=reader.properties(status),
        )
    elif stat.S_ISDIR(status.st_mode):
        if wanted.kinds == "file":
            raise WrongOutputKind(f"output file {wanted.path[:200]!r} is a directory")
        _add_directory(outputs, reader, command, wanted.path, path)
    else:
        raise special_file(path, status, reader.root)


def _add_directory(
    outputs: Outputs, reader: OutputReader, command: re_pb2.Command, wanted_path: str, path: str
) -> None:
    found = reader.directory(path)
    output = outputs.result.output_directories.add(path=wanted_path)
    if command.output_directory_format != re_pb2.Command.DIRECTORY_ONLY:
        data = found.tree().SerializeToString(deterministic=True)
        digest = Digest.of(data, reader.function)
        outputs.messages[digest] = data
        output.tree_digest.CopyFrom(digest.to_proto())
        output.is_topologically_sorted = True
    if command.output_directory_format != re_pb2.Command.TREE_ONLY:
        outputs.messages.update(found.directories)
        root_digest = next(reversed(found.directories))
        output.root_directory_digest.CopyFrom(root_digest.to_proto())


__all__ = ["Outputs", "collect", "shown"]
