"""Lays out the test workspaces in a directory of their own: nothing is ever built inside the checkout.

A workspace is its folder below `workspaces/`, the shims that let Bazel work without a network, and for `cpp` the
sources that `generate_cpp.py` writes.
"""

import shutil
from pathlib import Path
from typing import Literal

from integration.workspaces import generate_cpp

WORKSPACES = Path(__file__).parent / "workspaces"

WorkspaceName = Literal["cpp", "rust", "downloads", "outputs"]


def lay_out_workspace(name: WorkspaceName, destination: Path) -> Path:
    """Write the workspace `name` into the new directory `destination` and return it.

    Raises FileExistsError when the directory is there: files of an earlier workspace would change the build.
    """
    shutil.copytree(WORKSPACES / name, destination, ignore=shutil.ignore_patterns("__pycache__"))
    lay_out_shims(destination)
    if name == "cpp":
        generate_cpp.write_units(destination)
    return destination


def lay_out_shims(destination: Path) -> None:
    """Make the directory `destination` a workspace that needs no network."""
    shutil.copytree(WORKSPACES / "shims", destination / "shims")
    (destination / "shims" / "WORKSPACE.offline").rename(destination / "WORKSPACE")
