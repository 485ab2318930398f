"""What a directory of an input root holds, worked out once and remembered: the same headers come with every action of a build."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from cas.digest import Digest
from cas.tree import Directory
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.worker import properties
from rexec.worker.blob_files import FileKey


@dataclass(frozen=True, slots=True)
class Listing:
    """One directory, checked. Shared between all who lay it out: never change it."""

    directory: Directory
    files: dict[str, FileKey]
    links: dict[str, str]
    """Targets of the symlinks."""
    children: dict[str, Digest]
    keys: frozenset[FileKey]
    own: dict[str, re_pb2.NodeProperties]
    """Of files and symlinks that have a time or a mode of their own."""

    @property
    def properties(self) -> re_pb2.NodeProperties | None:
        """Of the directory itself, None if it has no time or mode of its own."""
        said = self.directory.message.node_properties if self.directory.message.HasField("node_properties") else None
        return said if said is not None and properties.has_own(said) else None


def listing_of(directory: Directory) -> Listing:
    """Raises MalformedRequest for node properties that are not known or not possible."""
    message = directory.message
    if message.HasField("node_properties"):
        properties.check(message.node_properties, str(directory.digest), directory=True)
    files: dict[str, FileKey] = {}
    own: dict[str, re_pb2.NodeProperties] = {}
    for node, digest in directory.files():
        files[node.name] = FileKey(digest, node.is_executable)
        if node.HasField("node_properties"):
            properties.check(node.node_properties, node.name)
            if properties.has_own(node.node_properties):
                own[node.name] = node.node_properties
    links: dict[str, str] = {}
    for symlink in directory.symlinks():
        links[symlink.name] = symlink.target
        if symlink.HasField("node_properties"):
            properties.check(symlink.node_properties, symlink.name)
            if properties.has_own(symlink.node_properties):
                own[symlink.name] = symlink.node_properties
    children = {child.name: digest for child, digest in directory.directories()}
    return Listing(directory, files, links, children, frozenset(files.values()), own)


@dataclass(slots=True)
class Listings:
    """Those used last, bounded by the names that they hold."""

    max_names: int = 50_000
    """About 15 MB."""
    _listings: OrderedDict[Digest, Listing] = field(default_factory=OrderedDict)
    _names: int = 0

    def of(self, directory: Directory) -> Listing:
        """Raises as `listing_of`."""
        found = self._listings.get(directory.digest)
        if found is not None:
            self._listings.move_to_end(directory.digest)
            return found
        made = listing_of(directory)
        if directory.entries <= self.max_names:
            self._listings[directory.digest] = made
            self._names += 1 + directory.entries
            while self._names > self.max_names:
                _, forgotten = self._listings.popitem(last=False)
                self._names -= 1 + forgotten.directory.entries
        return made
