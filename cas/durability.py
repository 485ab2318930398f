"""What survives a crash of the whole machine.

A process that is killed loses nothing: what it wrote is in the page cache, and a small blob cut short is known by its
size. A machine that crashes is another matter: the file may have its full length and hold zeros, because lengths can
reach the disk before contents. An fsync for each blob would cost more than all else that a write does, so instead the
whole file system is synced from time to time, and a marker says when, and in which boot of the machine. After a start in
another boot, small blobs that were written since the last recorded sync are dropped: they may be torn. The clients then
upload some seconds' worth of blobs again, which is what a cache may ask of them.

Files above SMALL_BLOB_BYTES are synced one by one before they get their name, and so are whole whenever they are there.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import msgspec
import structlog

log = structlog.get_logger()

MARGIN_SECONDS = 2.0
"""File times come from a coarser clock than ours and may lie a little before the write."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SyncMarker(msgspec.Struct, frozen=True):
    """The last sync that is known to have ended."""

    boot_id: str
    synced_at: float
    """Seconds since the epoch: what was written before is on the disk."""

    def survived(self, boot_id: str, written_at: float) -> bool:
        """Whether a small blob written at `written_at` is whole, seen from a start in the boot `boot_id`."""
        return self.boot_id == boot_id != "" or written_at < self.synced_at


NOTHING_SYNCED = SyncMarker(boot_id="", synced_at=float("-inf"))


def current_boot_id() -> str:
    """The kernel's id of this boot; "" where there is none, which counts as a crash at every start."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def load_marker(path: Path) -> SyncMarker:
    """The marker in `path`; one that trusts no blob if it is not there or does not parse."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SyncMarker)
    except FileNotFoundError:
        return NOTHING_SYNCED
    except msgspec.MsgspecError as reason:
        log.warning("sync marker is damaged, recent blobs are not trusted", path=str(path), reason=str(reason))
        return NOTHING_SYNCED


def save_marker(path: Path, marker: SyncMarker) -> None:
    """Replace the marker; it is on the disk when this returns."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(msgspec.json.encode(marker))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Wait until the names in `path` are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(path: Path) -> None:
    """Wait until everything written so far to the file system of `path` is on the disk. Raises OSError if some is lost."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        os.sync()
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)
