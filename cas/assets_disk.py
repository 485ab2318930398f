"""Assets in one SQLite file, or in memory: bounded, those asked for longest ago forgotten first.

A look-up takes some 10 us, so it runs on the event loop. Commits do not wait for the disk (WAL, synchronous=NORMAL), but for
the one in some hundreds that moves the log into the file: a push is rare beside the uploads that it needs. A killed process
loses nothing, a crash of the machine the newest assets. The file is a cache: one that is damaged or of
another layout is moved aside, and a fresh one takes its place.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import msgspec
import structlog

from cas.assets import Asset, AssetNotFound
from cas.errors import StoreFull
from cas.file_lock import DirectoryUnusable
from cas.ledger import STAMP_SECONDS

log = structlog.get_logger()

LAYOUT: Final = 1
"""PRAGMA user_version of the table below."""

ENTRY_BYTES: Final = 256
"""Charged for each key beside the encoded asset: the key, and its places in the indexes."""

IN_MEMORY: Final = ":memory:"

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_TABLE: Final = """
    CREATE TABLE assets (
        key BLOB PRIMARY KEY,
        asset BLOB NOT NULL,
        charged_bytes INTEGER NOT NULL,
        used_at REAL NOT NULL
    );
    CREATE INDEX by_use ON assets (used_at, charged_bytes);
"""


class DiskAssets:
    """Bounded Assets in the file `path`, or in memory without one. Use it as a context manager.

    The file belongs to one process: whoever opens it holds the lock of the state directory. `clock` gives seconds since
    1970. Entering raises DirectoryUnusable if the file cannot be made.
    """

    def __init__(
        self, path: Path | None, *, max_entries: int, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries = 0
        self._used_bytes = 0

    def __len__(self) -> int:
        return self._entries

    def __enter__(self) -> Self:
        try:
            self._open_or_replace()
        except (sqlite3.Error, OSError) as reason:
            raise DirectoryUnusable(f"assets in {self._path} cannot be used: {reason}") from reason
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    async def get(self, key: bytes) -> Asset:
        """See Assets."""
        try:
            row = self._database.execute("SELECT asset, used_at FROM assets WHERE key = ?", (key,)).fetchone()
            if row is None:
                raise AssetNotFound("no such asset")
            asset = _decode(row[0])
            now = self._clock()
            if asset is None or (asset.expires_at is not None and asset.expires_at <= now):
                self._forget(key)
                raise AssetNotFound("the asset has expired" if asset else "no such asset")
            if now - row[1] > STAMP_SECONDS:
                self._database.execute("UPDATE assets SET used_at = ? WHERE key = ?", (now, key))
        except sqlite3.DatabaseError as reason:
            self._recover(reason)
            raise AssetNotFound("no such asset") from reason
        return asset

    async def put(self, keys: Iterable[bytes], asset: Asset) -> None:
        """See Assets."""
        wanted = list(dict.fromkeys(keys))
        encoded = msgspec.msgpack.encode(asset)
        charged = len(encoded) + ENTRY_BYTES
        if charged * len(wanted) > self._max_bytes or len(wanted) > self._max_entries:
            raise StoreFull(f"an asset of {len(encoded)} bytes under {len(wanted)} URIs can never fit")
        try:
            self._insert(wanted, encoded, charged)
        except sqlite3.DatabaseError as reason:
            self._recover(reason)
            self._insert(wanted, encoded, charged)

    def _insert(self, keys: list[bytes], encoded: bytes, charged: int) -> None:
        entries, used_bytes = self._entries, self._used_bytes
        database, now = self._database, self._clock()
        with database:
            database.execute("BEGIN IMMEDIATE")
            for key in keys:
                gone = database.execute("DELETE FROM assets WHERE key = ? RETURNING charged_bytes", (key,)).fetchall()
                entries, used_bytes = entries - len(gone), used_bytes - sum(row[0] for row in gone)
            while entries + len(keys) > self._max_entries or used_bytes + charged * len(keys) > self._max_bytes:
                oldest = "SELECT rowid FROM assets ORDER BY used_at, rowid LIMIT 1"
                ((freed,),) = database.execute(
                    f"DELETE FROM assets WHERE rowid = ({oldest}) RETURNING charged_bytes"
                ).fetchall()
                entries, used_bytes = entries - 1, used_bytes - freed
            for key in keys:
                database.execute("INSERT INTO assets VALUES (?, ?, ?, ?)", (key, encoded, charged, now))
        self._entries, self._used_bytes = entries + len(keys), used_bytes + charged * len(keys)

    def _forget(self, key: bytes) -> None:
        gone = self._database.execute("DELETE FROM assets WHERE key = ? RETURNING charged_bytes", (key,)).fetchall()
        self._entries -= len(gone)
        self._used_bytes -= sum(row[0] for row in gone)

    def _open_or_replace(self) -> None:
        try:
            self._open()
        except _OtherLayout as reason:
            self._move_aside(reason)
            self._open()
        except sqlite3.DatabaseError as reason:
            if reason.sqlite_errorcode & 0xFF not in _DAMAGED:
                raise
            self._move_aside(reason)
            self._open()

    def _open(self) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(
                mode=0o600
            )  # what is built here is the user's own affair; the log beside it has the same mode
        database = sqlite3.connect(self._path or IN_MEMORY, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            (layout,) = database.execute("PRAGMA user_version").fetchone()
            if layout == 0:
                database.executescript(f"BEGIN; {_TABLE} PRAGMA user_version = {LAYOUT}; COMMIT;")
            elif layout != LAYOUT:
                raise _OtherLayout(f"the layout is {layout}; expected {LAYOUT}")
            self._entries, self._used_bytes = database.execute(
                "SELECT count(*), coalesce(sum(charged_bytes), 0) FROM assets"
            ).fetchone()
        except BaseException:
            database.close()
            raise
        self._database = database

    def _recover(self, reason: sqlite3.DatabaseError) -> None:
        """Go on with a fresh file if `reason` says that this one is damaged. Raises StoreFull for a full disk, and any
        other reason as it is."""
        code = reason.sqlite_errorcode & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise StoreFull("no room on the disk for the asset") from reason
        if code not in _DAMAGED:
            raise reason
        with suppress(sqlite3.Error):
            self._database.close()
        self._move_aside(reason)
        self._open()

    def _move_aside(self, reason: Exception) -> None:
        if self._path is None:
            raise reason
        aside = self._path.with_name(f"{self._path.name}.damaged")
        log.error("the assets are damaged and start anew", path=str(self._path), kept=str(aside), reason=str(reason))
        self._path.replace(aside)
        # The log belongs to the damaged file; a fresh one would take it for its own.
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)


class _OtherLayout(Exception):
    """The file was written by another version."""


def _decode(encoded: bytes) -> Asset | None:
    try:
        return msgspec.msgpack.decode(encoded, type=Asset)
    except (msgspec.DecodeError, TypeError):
        return None
