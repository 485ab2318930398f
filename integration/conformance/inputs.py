"""Input roots from flat paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from integration.conformance.blobs import digest_of
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

APPLETS = (
    "[", "basename", "cat", "chmod", "cmp", "cp", "cut", "echo", "env", "false", "find", "grep", "head", "ln", "ls", "mkdir",
    "mv", "printf", "readlink", "rm", "setsid", "sh", "sleep", "sort", "stat", "tail", "test", "touch", "tr", "true", "wc", "yes",
)  # fmt: skip
"""What the scripts of the kit call."""


@dataclass(slots=True)
class Inputs:
    """An input root: paths with slashes, parents made as needed."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    executables: Mapping[str, bytes] = field(default_factory=dict)
    symlinks: Mapping[str, str] = field(default_factory=dict)
    directories: Sequence[str] = ()
    properties: Mapping[str, re_pb2.NodeProperties] = field(default_factory=dict)

    def encoded(self, function: int) -> tuple[re_pb2.Digest, list[bytes]]:
        """The digest of the root Directory, and all blobs below it."""
        blobs: list[bytes] = [*self.files.values(), *self.executables.values()]

        def directory(prefix: str) -> re_pb2.Digest:
            message = re_pb2.Directory()
            for name, path in sorted(self._names(prefix, [*self.files, *self.executables], leaves=True).items()):
                data = self.files[path] if path in self.files else self.executables[path]
                node = message.files.add(
                    name=name, digest=digest_of(data, function), is_executable=path in self.executables
                )
                if path in self.properties:
                    node.node_properties.CopyFrom(self.properties[path])
            everything = [*self.files, *self.executables, *self.symlinks, *(f"{path}/" for path in self.directories)]
            for name, path in sorted(self._names(prefix, everything, leaves=False).items()):
                message.directories.add(name=name, digest=directory(f"{path}/"))
            for name, path in sorted(self._names(prefix, list(self.symlinks), leaves=True).items()):
                message.symlinks.add(name=name, target=self.symlinks[path])
            blobs.append(message.SerializeToString(deterministic=True))
            return digest_of(blobs[-1], function)

        return directory(""), blobs

    @staticmethod
    def _names(prefix: str, paths: Sequence[str], *, leaves: bool) -> dict[str, str]:
        found = {}
        for path in paths:
            if path.startswith(prefix) and path != prefix:
                name, slash, _rest = path.removeprefix(prefix).partition("/")
                if leaves != bool(slash):
                    found[name] = prefix + name
        return found


def with_tools(busybox: bytes, inputs: Inputs) -> Inputs:
    """The inputs with a shell among them, for workers to which the input root is the whole file system."""
    if not busybox:
        return inputs
    links = {
        f"{place}/{name}": f"{up}bin/busybox"
        for place, up in (("bin", "../"), ("usr/bin", "../../"))
        for name in APPLETS
    }
    return replace(
        inputs,
        executables={**inputs.executables, "bin/busybox": busybox},
        symlinks={**inputs.symlinks, **links},
    )
