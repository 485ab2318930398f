"""Reading what an action made: files are hashed, directories become Directory messages and a Tree.

The content is the action's, which may be hostile or broken: names that are not UTF-8, sockets and devices, directories
without permissions, sparse files of an exabyte. Each gives FAILED_PRECONDITION with the path; nothing is skipped in silence.
No process of the action is alive, so what is read now is still the same when it is uploaded.

Everything here blocks and runs in one thread for all outputs of an action.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from cas.digest import Digest, DigestFunction, hasher
from cas.errors import FailedPrecondition
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.worker import properties

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FoundFile:
    """An output file, hashed."""

    path: str
    """Absolute."""
    digest: Digest
    is_executable: bool
    is_shared: bool
    """Whether it has other names (hard links): then it may be an input, and must not be moved away."""


@dataclass(slots=True)
class FoundTree:
    """An output directory."""

    root: re_pb2.Directory
    directories: dict[Digest, bytes]
    """Every different directory, the root included, encoded; each after those that it holds."""

    def tree(self) -> re_pb2.Tree:
        """The Tree: children without repetition, parents before children (REAPI, OutputDirectory.is_topologically_sorted).

        Directories were finished innermost first, so the reverse has every parent before what it holds, also one that is
        held by several.
        """
        encoded = list(self.directories.values())
        encoded.pop()  # the root, finished last
        tree = re_pb2.Tree(root=self.root)
        for data in reversed(encoded):
            tree.children.add().ParseFromString(data)
        return tree


@dataclass(slots=True)
class OutputReader:
    """Reads the outputs of one action; counts them together."""

    function: DigestFunction
    root: str
    """The input root without symlinks; messages name paths from here."""
    wanted_properties: frozenset[str]
    max_bytes: int
    max_files: int
    files: dict[str, FoundFile] = field(default_factory=dict)
    """What was hashed, by absolute path: an output listed twice, or below another, is read once."""
    _bytes: int = 0
    _entries: int = 0

    def file(self, path: str, status: os.stat_result) -> FoundFile:
        """The regular file at `path`."""
        found = self.files.get(path)
        if found is not None:
            return found
        self._count(path, status.st_size)
        found = FoundFile(path, self._hash(path, status), bool(status.st_mode & 0o111), status.st_nlink > 1)
        self.files[path] = found
        return found

    def directory(self, path: str) -> FoundTree:
        """The directory at `path` with all below it."""
        finished: dict[Digest, bytes] = {}
        waiting = [_Pending(path, "")]
        while True:
            pending = waiting[-1]
            if pending.directories is None:
                pending.directories = iter(self._read(pending))
            child = next(pending.directories, None)
            if child is not None:
                waiting.append(_Pending(f"{pending.path}/{child}", child))
                continue
            data = pending.message.SerializeToString(deterministic=True)
            digest = Digest.of(data, self.function)
            waiting.pop()
            if not waiting:
                finished.pop(digest, None)
                finished[digest] = data
                return FoundTree(pending.message, finished)
            finished.setdefault(digest, data)
            waiting[-1].message.directories.add(name=pending.name, digest=digest.to_proto())

    def target(self, path: str) -> str:
        """Where the symlink at `path` points."""
        self._count(path, 0)
        return _text(os.readlink(path), path, self.root)

    def properties(self, status: os.stat_result) -> re_pb2.NodeProperties | None:
        """The node properties that the Command asked for."""
        return properties.read(status, self.wanted_properties)

    def _read(self, pending: _Pending) -> list[str]:
        """Fill in files and symlinks of one directory; returns the names of its directories, sorted."""
        names = []
        for name in sorted(_names_in(pending.path, self.root)):
            path = f"{pending.path}/{name}"
            _text(name, path, self.root)
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                self._count(path, 0)
                names.append(name)
            elif stat.S_ISREG(status.st_mode):
                found = self.file(path, status)
                pending.message.files.add(
                    name=name,
                    digest=found.digest.to_proto(),
                    is_executable=found.is_executable,
                    node_properties=self.properties(status),
                )
            elif stat.S_ISLNK(status.st_mode):
                pending.message.symlinks.add(
                    name=name, target=self.target(path), node_properties=self.properties(status)
                )
            else:
                raise special_file(path, status, self.root)
        return names

    def _count(self, path: str, size_bytes: int) -> None:
        self._entries += 1
        self._bytes += size_bytes
        if self._entries > self.max_files:
            raise FailedPrecondition(
                f"the outputs are more than {self.max_files} files, directories and symlinks ([worker] output_max_files)"
            )
        if self._bytes > self.max_bytes:
            raise FailedPrecondition(
                f"the outputs up to {shown(path, self.root)} take {self._bytes} bytes; the worker takes at most "
                f"{self.max_bytes} ([worker] output_max_bytes)"
            )

    def _hash(self, path: str, status: os.stat_result) -> Digest:
        with _opened(path, status, self.root) as fd_owner:
            started = hasher(self.function, status.st_size)
            size_bytes = 0
            while piece := os.read(fd_owner.fd, _PIECE_BYTES):
                started.update(piece)
                size_bytes += len(piece)
        if size_bytes != status.st_size:
            raise FailedPrecondition(
                f"output {shown(path, self.root)} changed while it was read: {status.st_size}, then {size_bytes} bytes"
            )
        return Digest(started.hexdigest(), size_bytes, self.function)


class _Pending:
    """A directory whose children are being read."""

    __slots__ = ("directories", "message", "name", "path")

    def __init__(self, path: str, name: str) -> None:
        self.path = path
        self.name = name
        self.message = re_pb2.Directory()
        self.directories: Iterator[str] | None = None


class _opened:  # noqa: N801 - used as a verb in a with statement
    """A descriptor to read a regular file, whatever its mode; its owner may always give himself permission."""

    def __init__(self, path: str, status: os.stat_result, root: str) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self.fd = os.open(path, flags)
        except PermissionError:
            try:
                os.chmod(path, stat.S_IMODE(status.st_mode) | 0o400)
                self.fd = os.open(path, flags)
            except OSError as failure:
                raise _unreadable(path, failure, root) from failure
        except OSError as failure:
            raise _unreadable(path, failure, root) from failure

    def __enter__(self) -> _opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _names_in(path: str, root: str) -> list[str]:
    try:
        if not os.access(path, os.R_OK | os.X_OK):
            os.chmod(path, 0o700)  # its owner may always give himself permission
        return os.listdir(path)
    except OSError as failure:
        raise _unreadable(path, failure, root) from failure


def _unreadable(path: str, failure: OSError, root: str) -> Exception:
    if failure.errno in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return failure  # the worker's trouble
    return FailedPrecondition(f"output {shown(path, root)} cannot be read: {os.strerror(failure.errno or 0)}")


def special_file(path: str, status: os.stat_result, root: str) -> FailedPrecondition:
    """The failure for an output that is neither file, directory nor symlink."""
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFBLK: "a block device",
        stat.S_IFCHR: "a character device",
    }
    kind = kinds.get(stat.S_IFMT(status.st_mode), "neither file, directory nor symlink")
    return FailedPrecondition(f"output {shown(path, root)} is {kind}, which no blob can hold")


def _text(name: str, path: str, root: str) -> str:
    """`name`, if it can be in a message. Python holds bytes that are not UTF-8 as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise FailedPrecondition(f"output {shown(path, root)} has a name or target that is not UTF-8") from None
    return name


def shown(path: str, root: str) -> str:
    """A path for a message: from the input root on, its end, with bytes that are not UTF-8 spelled out."""
    return repr(os.fsencode(path.removeprefix(f"{root}/"))[-200:])[1:]
