"""The files of a DiskStore: where each blob lies, and every blocking system call on it.

    <root>/lock                                     held while a process uses the directory
    <root>/synced.json                              the last sync (cas/durability.py)
    <root>/incoming/                                large blobs that are still arriving; emptied at start
    <root>/incoming/<guest>/                        what a guest writes (cas/shared_disk.py), removed when the guest is gone
    <root>/guests.sock, presence                    between the owner and its guests
    <root>/blobs/<function>/<2 hex>/<hash>-<size>   whole blobs

The size is in the name so that a file cut short is known without reading it. Nothing here knows which blobs are visible:
that is the ledger's business. The functions run on the event loop for little work and in a thread for more; none keeps
state, so they may run at the same time for different digests.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from cas.digest import Digest, DigestFunction, parse_digest
from cas.durability import SyncMarker
from cas.errors import Internal, MalformedRequest, StatusError, StoreFull
from cas.file_lock import DirectoryUnusable, claim, lock_file
from cas.store import SMALL_BLOB_BYTES

log = structlog.get_logger()

BLOCK_BYTES = 4096
"""File systems give room in blocks of this size, and never less than one (with the inode) for a file."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GONE = (errno.ENOENT, errno.EIO)
_numbers = itertools.count()
_FUNCTIONS = {function.name.lower(): function for function in DigestFunction}
_READ = os.O_RDONLY | os.O_CLOEXEC
# O_EXCL: a name is never written over, because someone may be reading the file that it stood for.
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def store_full(digest: Digest, reason: OSError) -> StatusError | None:
    """The StoreFull that `reason` means, None if the write failed for something else than room."""
    if reason.errno in _NO_ROOM:
        return StoreFull(f"no room on the server's disk for blob {digest}: {os.strerror(reason.errno)}")
    return None


def failure_of(digest: Digest, reason: OSError) -> StatusError:
    """What the caller is told of a write that failed for `reason`."""
    full = store_full(digest, reason)
    if full is None:
        log.error("cannot write a blob", digest=str(digest), reason=str(reason))
    return full or Internal()


def charge(size_bytes: int) -> int:
    """What a blob of that size takes on the disk, in bytes."""
    return max(BLOCK_BYTES, (size_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES)


class BlobDirectory:
    """The directory of one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.marker = root / "synced.json"
        self.incoming = root / "incoming"
        self.socket_name = "guests.sock"
        self.presence = root / "presence"
        self.is_shared = False
        """Whether other processes see and publish blobs here too. Set by the owner."""
        self._blobs = root / "blobs"
        self._prefixes = {function: f"{self._blobs}/{name}/" for name, function in _FUNCTIONS.items()}

    def path_of(self, digest: Digest) -> str:
        """The name of a whole blob. A Digest has been checked, so its hash cannot lead elsewhere."""
        hash_text = digest.hash
        return f"{self._prefixes[digest.function]}{hash_text[:2]}/{hash_text}-{digest.size_bytes}"

    def lock(self) -> int:
        """Make the directory and take it for this process. Returns a descriptor; closing it gives the directory free.

        Raises DirectoryUnusable if another process has it, or if it cannot be made or written.
        """
        descriptor = claim(self.root / "lock", f"store directory {self.root}")
        try:
            self._blobs.mkdir(exist_ok=True)
            self.incoming.mkdir(exist_ok=True)
        except OSError as reason:
            os.close(descriptor)
            raise DirectoryUnusable(f"store directory {self.root} cannot be used: {reason}") from reason
        return descriptor

    def scan(self, marker: SyncMarker, boot_id: str) -> list[tuple[float, Digest]]:
        """The whole blobs with their times of last use, oldest first; everything else below blobs/ is removed.

        Removed are files that are no blob, that are cut short, and small ones that may be torn after a crash of the
        machine. Directories that are not ours are left alone.
        """
        self.sweep()
        for entry in _entries(str(self.incoming)):
            if not entry.is_dir(follow_symlinks=False):
                self._drop(entry.path)
        found = []
        dropped = 0
        for function_name, function in _FUNCTIONS.items():
            for shard in _entries(f"{self._blobs}/{function_name}"):
                for file in _entries(shard.path) if shard.is_dir(follow_symlinks=False) else ():
                    digest = _digest_of(file.name, shard.name, function)
                    status = file.stat(follow_symlinks=False)
                    whole = digest is not None and file.is_file(follow_symlinks=False)
                    if digest is None or not whole or status.st_size != digest.size_bytes or not (
                        digest.size_bytes > SMALL_BLOB_BYTES or marker.survived(boot_id, status.st_mtime)
                    ):  # fmt: skip
                        dropped += self._drop(file.path)
                        continue
                    found.append((status.st_mtime, digest))
        if dropped:
            log.info("dropped files that are no whole blobs", directory=str(self.root), files=dropped)
        found.sort(key=lambda pair: pair[0])
        return found

    def remove(self, digests: Iterable[Digest]) -> None:
        """Remove the files of forgotten blobs. One that cannot be removed is logged; the next start finds it again."""
        for digest in digests:
            try:
                os.unlink(self.path_of(digest))
            except FileNotFoundError:
                pass
            except OSError as reason:
                log.warning("cannot remove an evicted blob", digest=str(digest), reason=str(reason))

    def write(
        self, blobs: Sequence[tuple[Digest, bytes]], written: list[Digest], failed: dict[Digest, OSError]
    ) -> None:
        """Write whole blobs, each straight to its own name: the ledger makes it visible, so no rename is needed.

        What became of each is added to `written` or `failed` as it happens; of a failed one nothing is left.
        """
        if self.is_shared:
            self.write_aside(blobs, str(self.incoming), written, failed)
            return
        for digest, data in blobs:
            path = self.path_of(digest)
            try:
                descriptor = create(path)
                try:
                    write_all(descriptor, data)
                finally:
                    os.close(descriptor)
            except OSError as reason:
                failed[digest] = reason
                with suppress(OSError):
                    os.unlink(path)
            else:
                written.append(digest)

    def write_aside(
        self,
        blobs: Sequence[tuple[Digest, bytes]],
        incoming: str,
        written: list[Digest],
        failed: dict[Digest, OSError],
    ) -> None:
        """Write whole blobs by way of temporary files in `incoming`: where several processes publish, the name alone makes a
        blob visible. Several may publish the same blob at once: its name stands for a whole file all the time."""
        for digest, data in blobs:
            temporary = f"{incoming}/{digest.hash}-{next(_numbers)}"
            try:
                descriptor = os.open(temporary, _CREATE, 0o600)
                try:
                    write_all(descriptor, data)
                finally:
                    os.close(descriptor)
                self.publish(temporary, digest)
            except OSError as reason:
                failed[digest] = reason
                with suppress(OSError):
                    os.unlink(temporary)
            else:
                written.append(digest)

    def stamp_of(self, digest: Digest) -> float | None:
        """The recorded time of last use of a blob whose file is there and whole; None if it is not."""
        try:
            status = os.stat(self.path_of(digest))
        except OSError as reason:
            if reason.errno not in _GONE:
                raise
            return None
        return status.st_mtime if status.st_size == digest.size_bytes else None

    def sweep(self) -> bool:
        """Remove what guests left that are gone: their locks are free. Returns whether guests are there."""
        guests = False
        for entry in _entries(str(self.incoming)):
            if not entry.is_dir(follow_symlinks=False):
                continue
            try:
                lock = lock_file(f"{entry.path}/lock")
            except BlockingIOError:
                guests = True
                continue
            except OSError:
                continue  # gone meanwhile
            try:
                shutil.rmtree(entry.path, ignore_errors=True)
            finally:
                os.close(lock)
        return guests

    def read(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        """The content of those `digests` whose files are there with the size that they must have."""
        blobs = {}
        for digest in digests:
            try:
                descriptor = os.open(self.path_of(digest), _READ)
                try:
                    # One byte more than due shows a file that has grown.
                    data = os.read(descriptor, digest.size_bytes + 1)
                    while len(data) < digest.size_bytes and (
                        more := os.read(descriptor, digest.size_bytes - len(data))
                    ):
                        data += more
                finally:
                    os.close(descriptor)
            except OSError as reason:
                if reason.errno not in _GONE:
                    raise
                continue
            if len(data) == digest.size_bytes:
                blobs[digest] = data
        return blobs

    def open(self, digest: Digest) -> int | None:
        """A descriptor of the blob's file, None if there is none of the right size."""
        try:
            descriptor = os.open(self.path_of(digest), _READ)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size != digest.size_bytes:
            os.close(descriptor)
            return None
        return descriptor

    def publish(self, incoming: str, digest: Digest) -> None:
        """Give a large blob, whole and synced, its name."""
        path = self.path_of(digest)
        try:
            os.rename(incoming, path)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.rename(incoming, path)

    def stamp(self, digests: Iterable[Digest], now: float) -> None:
        """Record `now` (seconds since the epoch) as the time of last use; the next start orders the blobs by it."""
        for digest in digests:
            with suppress(FileNotFoundError):
                os.utime(self.path_of(digest), (now, now))

    def free_bytes(self) -> int:
        """What the file system has left for us."""
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize

    def _drop(self, path: str) -> bool:
        try:
            os.unlink(path)
        except OSError as reason:
            log.warning("cannot remove a stray file", path=path, reason=str(reason))
            return False
        return True


def create(path: str) -> int:
    """A descriptor of a new file for writing; makes the directory above, and replaces a stray file of that name."""
    try:
        return os.open(path, _CREATE, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except FileExistsError:
        os.unlink(path)
    return os.open(path, _CREATE, 0o600)


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write all of `data`; os.write may write less, the last time before it fails for want of room. Raises OSError."""
    written = os.write(descriptor, data) if data else 0
    while written < len(data):
        count = os.write(descriptor, memoryview(data)[written:])
        if count == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += count


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _digest_of(name: str, shard: str, function: DigestFunction) -> Digest | None:
    hash_text, _, size_text = name.partition("-")
    # isdecimal and the comparison below refuse what int() would take: signs, spaces, leading zeros, other scripts.
    if hash_text[:2] != shard or not size_text.isdecimal() or len(size_text) > 19 or str(int(size_text)) != size_text:
        return None
    try:
        return parse_digest(hash_text, int(size_text), function)
    except MalformedRequest:
        return None
