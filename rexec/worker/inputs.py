"""An input root before it is laid out: what it takes, where the action works and where its outputs go.

Laying out itself is in `layout`. Files are shared with other actions through the cache; whether they are still what they were
is the matter of `guard`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cas.digest import Digest
from cas.errors import MalformedRequest
from cas.tree import Tree
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.worker.listing import Listing, Listings
from rexec.worker.paths import inside, resolved


@dataclass(frozen=True, slots=True)
class Inputs:
    """A checked input root."""

    root: Digest
    listings: Mapping[Digest, Listing]
    """Of all its directories."""


def inputs_of(tree: Tree, listings: Listings) -> Inputs:
    """What `tree` takes to be laid out. Raises MalformedRequest for node properties that are not known or not possible."""
    return Inputs(tree.root, {digest: listings.of(directory) for digest, directory in tree.directories.items()})


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
