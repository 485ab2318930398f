"""A DiskStore's start, its syncs, and its end: everything here blocks, and is called in a thread.

What a crash of the machine costs, and what the marker says, is in cas/durability.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from cas.blob_directory import BlobDirectory
from cas.config import default_max_bytes
from cas.digest import Digest
from cas.durability import MARGIN_SECONDS, SyncMarker, load_marker, save_marker, sync_file_system
from cas.ledger import Ledger

log = structlog.get_logger()


class DiskUpkeep:
    """Keeps the directory of a store in step with its ledger. `clock` gives seconds since the epoch."""

    def __init__(
        self,
        directory: BlobDirectory,
        ledger: Ledger,
        max_bytes: int | None,
        clock: Callable[[], float],
        boot_id: str,
    ) -> None:
        self._directory = directory
        self._ledger = ledger
        self._max_bytes = max_bytes
        self._clock = clock
        self._boot_id = boot_id

    def load(self) -> None:
        """Learn which blobs are there, and forget those that are too many. Nothing else may use the store meanwhile."""
        marker = load_marker(self._directory.marker)
        found = self._directory.scan(marker, self._boot_id)
        held_bytes = sum(self._ledger.charge(digest.size_bytes) for _, digest in found)
        self._ledger.max_bytes = self._max_bytes or default_max_bytes(self._directory.free_bytes(), held_bytes)
        for stamped_at, digest in found:
            self._ledger.add(digest, stamped_at)
        self._directory.remove(self._ledger.evict())
        # In this boot nothing more is known to be synced than before; in a new one whatever is still here is.
        synced_at = self._clock() - MARGIN_SECONDS
        if marker.boot_id == self._boot_id:
            synced_at = min(synced_at, marker.synced_at)
        save_marker(self._directory.marker, SyncMarker(self._boot_id, synced_at))
        log.info(
            "store opened",
            directory=str(self._directory.root),
            blobs=len(self._ledger),
            used_bytes=self._ledger.used_bytes,
            max_bytes=self._ledger.max_bytes,
        )

    def sync(self, stale: Sequence[Digest], started: float) -> None:
        """Have everything on the disk that was written before `started`, and the times of last use of `stale`. Raises
        OSError."""
        self._sync(stale, started, started - MARGIN_SECONDS)

    def close(self, guests: bool = False) -> None:
        """The last sync. No write is under way any more, so whatever is there is synced, however new; unless there are
        guests, which go on writing."""
        now = self._clock()
        try:
            self._sync(self._ledger.take_stale(), now, now - MARGIN_SECONDS if guests else now + MARGIN_SECONDS)
        except OSError as reason:
            log.warning("cannot sync the store at its end", directory=str(self._directory.root), reason=str(reason))

    def _sync(self, stale: Sequence[Digest], now: float, synced_at: float) -> None:
        self._directory.stamp(stale, now)
        sync_file_system(self._directory.root)
        save_marker(self._directory.marker, SyncMarker(self._boot_id, synced_at))
