"""Blobs as files that actions can be given: one file for each digest and executable bit, named by the digest.

    <root>/<function>/<first two characters>/<hash>      data, mode 0444
    <root>/<function>/<first two characters>/<hash>_x    the same bytes to be executed, mode 0555

Two files, because a mode belongs to the file and not to the name: a hard link cannot be executable here and not there.
Each has the same fixed modification time. That makes actions see the same times everywhere, and it mostly tells whether a
file was written to since (`NotIntact`; `guard` knows more): a hard link shares its bytes with the cache, and a worker that runs
as root, or an action that first changes the mode of its own file, is not stopped by mode 0444.

Everything here blocks and is called in threads, in steps of a batch or of 1 MiB. Nothing is flushed to the disk: a file is
trusted only within the boot of the machine that wrote it (see `open_root`).
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from cas.blob_directory import write_all
from cas.digest import Digest, DigestFunction, hasher
from cas.durability import current_boot_id
from cas.errors import DigestMismatch
from rexec.worker.spawn_gate import GATE, SpawnGate

INPUT_MTIME_SECONDS: Final = 1_321_009_871
"""2011-11-11 11:11:11 UTC, what buildbox and BuildStream give to files without a time of their own."""

_MTIME_NS: Final = INPUT_MTIME_SECONDS * 1_000_000_000
_PLAIN: Final = stat.S_IFREG | 0o444
_EXECUTABLE: Final = stat.S_IFREG | 0o555
_PIECE_BYTES: Final = 1 << 20
_NAMES: Final = {function: function.name.lower() for function in DigestFunction}
_FUNCTIONS: Final = {function.name.lower(): function for function in DigestFunction}


class FileKey(NamedTuple):
    """What one file stands for."""

    digest: Digest
    is_executable: bool

    @property
    def mode(self) -> int:
        """The permissions that the file has."""
        return stat.S_IMODE(_EXECUTABLE if self.is_executable else _PLAIN)


class NotIntact(Exception):
    """A file is gone, or its size, mode or modification time is another."""


class BlobFiles:
    """The files below one directory. Knows nothing of room or use; `FileCache` does."""

    def __init__(self, root: str, gate: SpawnGate = GATE, boot_id: Callable[[], str] = current_boot_id) -> None:
        self.root = os.path.abspath(root)
        self._gate = gate
        self._boot_id = boot_id
        self._temporary = os.path.join(self.root, "tmp")
        self._numbers = itertools.count()

    def open_root(self) -> None:
        """Make the directory usable: partial files of an earlier process are deleted, and all files if the machine was or may
        have been started since, because unflushed bytes may be gone while the name is there."""
        os.makedirs(self.root, exist_ok=True)
        mark = Path(self.root, "boot")
        boot_id = self._boot_id()
        if not boot_id or not mark.exists() or mark.read_text() != boot_id:
            for name in _FUNCTIONS:
                shutil.rmtree(os.path.join(self.root, name), ignore_errors=True)
            mark.write_text(boot_id)
        shutil.rmtree(self._temporary, ignore_errors=True)
        os.makedirs(self._temporary, exist_ok=True)

    def path(self, key: FileKey) -> str:
        """Where the file is, or would be."""
        digest = key.digest
        suffix = "_x" if key.is_executable else ""
        return f"{self.root}/{_NAMES[digest.function]}/{digest.hash[:2]}/{digest.hash}{suffix}"

    def scan(self) -> list[FileKey]:
        """The files that are there and intact, those used longest ago first; others are deleted.

        Linking and unlinking sets a file's change time, so that is when it was last an input.
        """
        found: list[tuple[int, FileKey]] = []
        for name, function in _FUNCTIONS.items():
            for entry in _entries_below(os.path.join(self.root, name)):
                status = entry.stat(follow_symlinks=False)
                hash_text = entry.name.removesuffix("_x")
                key = FileKey(Digest(hash_text, status.st_size, function), entry.name.endswith("_x"))
                if len(hash_text) == function.hash_length and self.path(key) == entry.path and _is_intact(status, key):
                    found.append((status.st_ctime_ns, key))
                else:
                    with suppress(OSError):
                        os.unlink(entry.path)
        found.sort(key=lambda pair: pair[0])
        return [key for _, key in found]

    def write(self, blobs: Sequence[tuple[FileKey, bytes]]) -> None:
        """Make files of whole blobs. Raises DigestMismatch for bytes that are not those of the digest, before any file of
        the batch is visible; OSError if there is no room."""
        written: list[tuple[str, FileKey]] = []
        try:
            for key, data in blobs:
                actual = Digest.of(data, key.digest.function)
                if actual != key.digest:
                    raise DigestMismatch(key.digest, actual)
                temporary = self._temporary_path()
                written.append((temporary, key))
                partial = _create(temporary)
                try:
                    write_all(partial, data)
                    _seal(partial, key)
                finally:
                    os.close(partial)
            self._publish(written)
        except BaseException:
            for temporary, _ in written:
                with suppress(OSError):
                    os.unlink(temporary)
            raise

    def begin(self, key: FileKey) -> PartialFile:
        """Start a file that arrives in pieces."""
        return PartialFile(self, key, self._temporary_path())

    def copy(self, source: FileKey, target: FileKey) -> None:
        """Make `target` from a file that is there. Raises FileNotFoundError if it is not, DigestMismatch if it was changed."""
        with open(self.path(source), "rb") as file, self.begin(target) as partial:
            while piece := file.read(_PIECE_BYTES):
                partial.write(piece)
            partial.publish()

    def private_copy(self, key: FileKey, target: str, mode: int, mtime_ns: int | None) -> None:
        """A file of its own at `target`, which may have another mode and time than the shared one."""
        shutil.copyfile(self.path(key), target)
        os.chmod(target, mode)
        os.utime(target, ns=(mtime_ns, mtime_ns) if mtime_ns is not None else (_MTIME_NS, _MTIME_NS))
        if mode & 0o111:
            self._gate.settle()

    def take(self, key: FileKey, path: str) -> None:
        """Move the file at `path`, whose bytes are known to be the digest's, in among the others.

        Nobody may hold it open for writing. Raises OSError if it lies on another file system.
        """
        os.chmod(path, key.mode)
        os.utime(path, ns=(_MTIME_NS, _MTIME_NS))
        self._rename(path, key)

    def changed_ns(self, key: FileKey) -> int:
        """The change time of the file (`change_time`); links that come and go set it as well. Raises NotIntact."""
        try:
            status = os.stat(self.path(key), follow_symlinks=False)
        except OSError as failure:
            raise NotIntact from failure
        if not _is_intact(status, key):
            raise NotIntact
        return status.st_ctime_ns

    def is_right(self, key: FileKey) -> bool:
        """Whether the file holds the bytes of its digest; reads them all."""
        actual = hasher(key.digest.function, key.digest.size_bytes)
        try:
            with open(self.path(key), "rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    actual.update(piece)
        except OSError:
            return False
        return actual.hexdigest() == key.digest.hash

    def remove(self, key: FileKey) -> None:
        """Delete the name; actions that have a link keep theirs."""
        with suppress(FileNotFoundError):
            os.unlink(self.path(key))

    def _temporary_path(self) -> str:
        return f"{self._temporary}/{next(self._numbers)}"

    def _publish(self, written: Sequence[tuple[str, FileKey]]) -> None:
        if any(key.is_executable for _, key in written):
            self._gate.settle()
        for temporary, key in written:
            self._rename(temporary, key)

    def _rename(self, source: str, key: FileKey) -> None:
        target = self.path(key)
        try:
            os.rename(source, target)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.rename(source, target)


class PartialFile:
    """A file that is not whole yet, under a name that nobody looks at. A context manager: what is not published is deleted."""

    def __init__(self, files: BlobFiles, key: FileKey, path: str) -> None:
        self._files = files
        self._key = key
        self._path = path
        self._hash = hasher(key.digest.function, key.digest.size_bytes)
        self._size_bytes = 0
        self._fd = _create(path)
        # A cancelled caller closes the file while a thread may still write to it; the number of the descriptor could be
        # another file's by then.
        self._lock = threading.Lock()

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def write(self, piece: bytes) -> None:
        """Append. Raises DigestMismatch as soon as there are more bytes than the digest says."""
        self._size_bytes += len(piece)
        if self._size_bytes > self._key.digest.size_bytes:
            raise DigestMismatch(self._key.digest, f"at least {self._size_bytes} bytes")
        with self._lock:
            if self._fd < 0:
                return
            self._hash.update(piece)
            write_all(self._fd, piece)

    def publish(self) -> None:
        """Make the file visible. Raises DigestMismatch if it is not what the digest names."""
        actual = self._hash.hexdigest()
        if (actual, self._size_bytes) != (self._key.digest.hash, self._key.digest.size_bytes):
            raise DigestMismatch(self._key.digest, f"{actual}/{self._size_bytes}")
        with self._lock:
            if self._fd < 0:
                return
            _seal(self._fd, self._key)
        self._close()
        self._files._publish([(self._path, self._key)])

    def _close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _seal(fd: int, key: FileKey) -> None:
    # fchmod and not the mode of open(2): the umask would take bits away.
    os.fchmod(fd, key.mode)
    os.utime(fd, ns=(_MTIME_NS, _MTIME_NS))


def _is_intact(status: os.stat_result, key: FileKey) -> bool:
    return (
        status.st_mode == (_EXECUTABLE if key.is_executable else _PLAIN)
        and status.st_size == key.digest.size_bytes
        and status.st_mtime_ns == _MTIME_NS
    )


def _entries_below(path: str) -> Iterator[os.DirEntry[str]]:
    """The entries of the directories in `path`; a directory that is not there has none."""
    try:
        with os.scandir(path) as outer:
            groups = [entry.path for entry in outer if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for group in groups:
        with os.scandir(group) as inner:
            yield from inner
