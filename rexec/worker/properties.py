"""Node properties: modification time and mode of inputs and outputs (REAPI, NodeProperties).

Others have no meaning here and are refused, so that nobody relies on what is not done (REAPI, NodeProperty). The one exception is
`SubtreeReadOnly`, which buildbox puts on every directory as a hint for its own sandbox.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from google.protobuf import timestamp_pb2

from cas.errors import MalformedRequest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

_TOLERATED_ON_DIRECTORIES = frozenset({"SubtreeReadOnly"})
OUTPUT_PROPERTIES = frozenset({"mtime", "unix_mode"})


def require_known(properties: re_pb2.NodeProperties, name: str, *, directory: bool = False) -> None:
    """Raises MalformedRequest for a property that means nothing here, on the input `name`."""
    for entry in properties.properties:
        if not directory or entry.name not in _TOLERATED_ON_DIRECTORIES:
            raise MalformedRequest(
                f"input {name[:200]!r} has the node property {entry.name[:200]!r}; known are mtime and unix_mode"
            )


def check(properties: re_pb2.NodeProperties, name: str, *, directory: bool = False) -> None:
    """Raises MalformedRequest for properties of the input `name` that mean nothing here or that no file can have."""
    require_known(properties, name, directory=directory)
    mtime_of(properties)


def has_own(properties: re_pb2.NodeProperties) -> bool:
    """Whether there is a time or a mode to be applied."""
    return properties.HasField("mtime") or properties.HasField("unix_mode")


def require_known_names(names: Iterable[str]) -> frozenset[str]:
    """The names in Command.output_node_properties. Raises MalformedRequest for one that is not known."""
    wanted = frozenset(names)
    unknown = wanted - OUTPUT_PROPERTIES - _TOLERATED_ON_DIRECTORIES
    if unknown:
        raise MalformedRequest(
            f"output node property {min(unknown)[:200]!r} is not known; known are {', '.join(sorted(OUTPUT_PROPERTIES))}"
        )
    return wanted & OUTPUT_PROPERTIES


def apply(properties: re_pb2.NodeProperties, path: str) -> None:
    """Give a directory or symlink its mode and time; a symlink has no mode of its own."""
    if properties.HasField("unix_mode") and not os.path.islink(path):
        os.chmod(path, mode_of(properties, 0))
    mtime_ns = mtime_of(properties)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


def mode_of(properties: re_pb2.NodeProperties, default: int) -> int:
    """The permissions asked for. Bits beyond rwx are dropped: set-user-id in a stranger's input is not for us to grant."""
    return properties.unix_mode.value & 0o777 if properties.HasField("unix_mode") else default


def mtime_of(properties: re_pb2.NodeProperties) -> int | None:
    """The modification time in ns since 1970, None if there is none. Raises MalformedRequest for one that no file can have."""
    if not properties.HasField("mtime"):
        return None
    seconds, nanos = properties.mtime.seconds, properties.mtime.nanos
    if not -(1 << 33) <= seconds < 1 << 34 or not 0 <= nanos < 1_000_000_000:
        raise MalformedRequest(f"mtime {seconds}.{nanos:09} is not the time of a file")
    return seconds * 1_000_000_000 + nanos


def read(status: os.stat_result, wanted: frozenset[str]) -> re_pb2.NodeProperties | None:
    """What was asked for of an output, None if nothing was."""
    if not wanted:
        return None
    properties = re_pb2.NodeProperties()
    if "mtime" in wanted:
        seconds, nanos = divmod(status.st_mtime_ns, 1_000_000_000)
        properties.mtime.CopyFrom(timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos))
    if "unix_mode" in wanted:
        properties.unix_mode.value = stat.S_IMODE(status.st_mode)
    return properties
