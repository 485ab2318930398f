"""Action results in one SQLite file.

A look-up or an insert takes about 30 us, less than the hop to a thread, so both run on the event loop. What could take
long does not: commits do not wait for the disk (WAL, synchronous=NORMAL), and moving the log into the database file, which
does, is done by a thread from time to time. A killed process loses nothing, a crash of the machine the newest results.

The file is a cache: one that is damaged or of another layout is moved aside, and a fresh one takes its place.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, Self

import structlog
from google.protobuf.message import DecodeError

from cas.action_cache import ActionKey
from cas.config import SYNC_SECONDS
from cas.errors import StoreFull, Unavailable
from cas.file_lock import DirectoryUnusable, claim
from cas.ledger import STAMP_SECONDS
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

log = structlog.get_logger()

LAYOUT: Final = 1
"""PRAGMA user_version of the tables below."""

ENTRY_BYTES: Final = 256
"""Charged for each result beside its encoding: the key, and its places in two indexes."""

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_TABLES: Final = """
    CREATE TABLE results (
        instance_name TEXT NOT NULL,
        function INTEGER NOT NULL,
        hash TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        result BLOB NOT NULL,
        charged_bytes INTEGER NOT NULL,
        used_at REAL NOT NULL,
        PRIMARY KEY (instance_name, function, hash, size_bytes)
    );
    CREATE INDEX by_use ON results (used_at, charged_bytes);
"""
_KEY: Final = "instance_name = ? AND function = ? AND hash = ? AND size_bytes = ?"


class DiskActionCache:
    """A bounded ActionCache in the file `path`, which one process owns. Use it as an async context manager.

    Forgets the results used longest ago; times of use are kept to the hour. Entering raises DirectoryUnusable if another
    process has the file or it cannot be made.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_entries: int,
        max_bytes: int,
        checkpoint_seconds: float = SYNC_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._checkpoint_seconds = checkpoint_seconds
        self._clock = clock
        self._entries = 0
        self._used_bytes = 0
        self._dirty = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    def __len__(self) -> int:
        return self._entries

    async def __aenter__(self) -> Self:
        self._lock = claim(Path(f"{self._path}.lock"), f"action cache {self._path}")
        try:
            self._database = self._open_or_replace()
        except BaseException:
            os.close(self._lock)
            raise
        await self._tasks.__aenter__()
        self._upkeep = self._tasks.create_task(self._keep_checkpointed())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._upkeep.cancel()
        await self._tasks.__aexit__(None, None, None)
        self._database.close()
        os.close(self._lock)

    async def get(self, key: ActionKey) -> re_pb2.ActionResult:
        try:
            row = self._database.execute(f"SELECT result, used_at FROM results WHERE {_KEY}", _columns(key)).fetchone()
            if row is None:
                raise key.not_found()
            now = self._clock()
            if now - row[1] > STAMP_SECONDS:
                # A full disk costs the order of use, not the result.
                with suppress(sqlite3.OperationalError):
                    self._database.execute(f"UPDATE results SET used_at = ? WHERE {_KEY}", (now, *_columns(key)))
                    self._dirty.set()
        except sqlite3.DatabaseError as reason:
            self._recover(reason)
            raise key.not_found() from reason
        try:
            return re_pb2.ActionResult.FromString(row[0])
        except DecodeError as reason:
            log.warning("an action result does not parse", action=str(key.action_digest))
            raise key.not_found() from reason

    async def put(self, key: ActionKey, result: re_pb2.ActionResult) -> None:
        encoded = result.SerializeToString()
        charged = len(encoded) + ENTRY_BYTES
        if charged > self._max_bytes:
            raise StoreFull(f"an action result of {len(encoded)} bytes can never fit: all may take {self._max_bytes}")
        try:
            self._insert(key, encoded, charged)
        except sqlite3.DatabaseError as reason:
            self._recover(reason)
            self._insert(key, encoded, charged)
        self._dirty.set()

    def _insert(self, key: ActionKey, encoded: bytes, charged: int) -> None:
        database, columns = self._database, _columns(key)
        entries, used_bytes = self._entries + 1, self._used_bytes + charged
        with _transaction(database):
            for (replaced,) in database.execute(f"DELETE FROM results WHERE {_KEY} RETURNING charged_bytes", columns):
                entries, used_bytes = entries - 1, used_bytes - replaced
            while entries > self._max_entries or used_bytes > self._max_bytes:
                ((oldest, freed),) = database.execute(
                    "SELECT rowid, charged_bytes FROM results ORDER BY used_at, rowid LIMIT 1"
                ).fetchall()
                database.execute("DELETE FROM results WHERE rowid = ?", (oldest,))
                entries, used_bytes = entries - 1, used_bytes - freed
            database.execute(
                "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?)", (*columns, encoded, charged, self._clock())
            )
        self._entries, self._used_bytes = entries, used_bytes

    def _open_or_replace(self) -> sqlite3.Connection:
        try:
            return self._open()
        except _OtherLayout as reason:
            self._move_aside(reason)
            return self._open()
        except sqlite3.DatabaseError as reason:
            if reason.sqlite_errorcode & 0xFF not in _DAMAGED:
                raise DirectoryUnusable(f"action cache {self._path} cannot be used: {reason}") from reason
            self._move_aside(reason)
            return self._open()

    def _open(self) -> sqlite3.Connection:
        self._path.touch(mode=0o600)  # what is built here is the user's own affair; the log beside it has the same mode
        database = sqlite3.connect(self._path, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            # Checkpoints are the upkeep task's: they wait for the disk.
            database.execute("PRAGMA wal_autocheckpoint = 0")
            (layout,) = database.execute("PRAGMA user_version").fetchone()
            if layout == 0:
                database.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {LAYOUT}; COMMIT;")
            elif layout != LAYOUT:
                raise _OtherLayout(f"the layout is {layout}; expected {LAYOUT}")
            self._entries, self._used_bytes = database.execute(
                "SELECT count(*), coalesce(sum(charged_bytes), 0) FROM results"
            ).fetchone()
        except BaseException:
            database.close()
            raise
        return database

    def _recover(self, reason: sqlite3.DatabaseError) -> None:
        """Go on with a fresh file if `reason` says that this one is damaged. Raises StoreFull for a full disk, and
        Unavailable for any other reason: whoever runs actions can do without the cache."""
        code = reason.sqlite_errorcode & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise StoreFull("no room on the disk for the action result") from reason
        if code not in _DAMAGED:
            log.error("action cache failed", path=str(self._path), reason=str(reason))
            raise Unavailable("the action cache cannot be used now") from reason
        with suppress(sqlite3.Error):
            self._database.close()
        self._move_aside(reason)
        self._database = self._open()

    def _move_aside(self, reason: Exception) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        log.error("action cache is damaged and starts anew", path=str(self._path), kept=str(aside), reason=str(reason))
        self._path.replace(aside)
        # The log belongs to the damaged file; a fresh one would take it for its own.
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    async def _keep_checkpointed(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(self._checkpoint_seconds)
            await self.checkpoint()

    async def checkpoint(self) -> None:
        """Move the log into the database file."""
        self._dirty.clear()
        try:
            await asyncio.to_thread(_checkpoint, self._path)
        except sqlite3.Error as reason:
            log.warning("cannot checkpoint the action cache, will try again", path=str(self._path), reason=str(reason))
            self._dirty.set()


class _OtherLayout(Exception):
    """The file was written by another version."""


class _transaction:  # noqa: N801 - reads as a statement
    """All of the statements within, or none."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._database.execute("COMMIT")
        elif self._database.in_transaction:
            self._database.execute("ROLLBACK")


def _checkpoint(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        # PASSIVE moves what it can without making the writer wait.
        database.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _columns(key: ActionKey) -> tuple[str, int, str, int]:
    digest = key.action_digest
    return key.instance_name, digest.function.value, digest.hash, digest.size_bytes
