"""A bounded table of encoded values in one SQLite file, or in memory: those used longest ago are forgotten first.

A look-up or an insert takes 10 to 30 us, less than the hop to a thread, so both run on the event loop. Commits do not wait
for the disk (WAL, synchronous=NORMAL): a killed process loses nothing, a crash of the machine the newest entries.

Several processes of a machine may use one file: its owner, who sees to it that nobody else claims it, and guests. Each keeps
the bounds in the transaction that it writes in, because a row in the file says what is held; the owner counts anew at its
start. A writer waits for another one's transaction, some 50 us.

The file is a cache: one that is damaged or of another layout is moved aside, and a fresh one takes its place. What else goes
wrong with it is told as a status, so that nothing of SQLite is known above. Times of use are kept to the hour.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import structlog

from cas.errors import StoreFull, Unavailable
from cas.file_lock import DirectoryUnusable
from cas.ledger import STAMP_SECONDS

T = TypeVar("T")
Key = tuple[str | int | bytes, ...]

log = structlog.get_logger()

ENTRY_BYTES: Final = 256
"""Charged for each entry beside its encoding: the key, and its places in two indexes."""

IN_MEMORY: Final = ":memory:"

BUSY_SECONDS: Final = 2.0
"""How long a writer waits for another process; one that was stopped in a transaction must not stop all."""

FOLLOW_SECONDS: Final = 5.0
"""How often a guest looks whether the owner has put a fresh file in the place of a damaged one."""

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the table looks like, and what it is called in messages."""

    holder: str
    """The whole, as in "the action cache"."""
    entry: str
    """One of them, as in "action result"."""
    table: str
    key: tuple[str, ...]
    """Its columns, with their types."""
    value: str
    """The name of its column."""
    version: int
    """PRAGMA user_version; another one means another layout."""

    def schema(self) -> str:
        """The statements that make the table."""
        names = ", ".join(column.split()[0] for column in self.key)
        columns = "".join(f"{column} NOT NULL, " for column in self.key)
        return f"""
            CREATE TABLE {self.table} (
                {columns}{self.value} BLOB NOT NULL, charged_bytes INTEGER NOT NULL, used_at REAL NOT NULL,
                PRIMARY KEY ({names})
            );
            CREATE INDEX by_use ON {self.table} (used_at, charged_bytes);
            PRAGMA user_version = {self.version};
        """


class BoundedTable:
    """One table. Not thread-safe: it belongs to the event loop. `now` is seconds since 1970."""

    def __init__(
        self,
        path: Path | None,
        layout: Layout,
        *,
        max_entries: int,
        max_bytes: int,
        checkpoints_itself: bool = True,
        shared: bool = False,
        guest: bool = False,
    ) -> None:
        """The file `path` belongs to one process, which the caller sees to; None keeps all in memory. A `shared` file has
        guests beside; a `guest` is one of them.

        Once in some hundreds of writes SQLite moves its log into the file, for which it waits for the disk, unless
        `checkpoints_itself` is False: then `checkpoint_file` has to be called in a thread from time to time.
        """
        self._path = path
        self._layout = layout
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._checkpoints_itself = checkpoints_itself
        self._where = " AND ".join(f"{column.split()[0]} = ?" for column in layout.key)
        self._shared = shared or guest
        self._guest = guest
        self._held = (0, 0)
        """Entries, and bytes charged for them; of a shared file the row in it counts."""
        self._inode = -1
        self._followed_at = 0.0

    @property
    def entries(self) -> int:
        """How many there are."""
        return self._totals()[0]

    @property
    def used_bytes(self) -> int:
        """Charged for the entries."""
        return self._totals()[1]

    def _totals(self) -> tuple[int, int]:
        if not self._shared:
            return self._held
        row: tuple[int, int] = self.database.execute("SELECT entries, used_bytes FROM totals").fetchone()
        return row

    def _account(self, entries: int, used_bytes: int) -> None:
        """Write down what is held; within the transaction that changed it."""
        if self._shared:
            self.database.execute("UPDATE totals SET entries = ?, used_bytes = ?", (entries, used_bytes))
        else:
            self._held = (entries, used_bytes)

    def open(self) -> None:
        """Raises DirectoryUnusable if the file cannot be made or read."""
        try:
            try:
                self._open()
            except _OtherLayout as reason:
                self._start_anew(reason)
            except sqlite3.DatabaseError as reason:
                if not _is_damage(reason):
                    raise
                self._start_anew(reason)
        except (sqlite3.Error, OSError) as reason:
            raise DirectoryUnusable(f"{self._layout.holder} in {self._path} cannot be used: {reason}") from reason

    def close(self) -> None:
        """Let the file go."""
        self.database.close()

    def get(self, key: Key, now: float) -> tuple[bytes, bool]:
        """The value, which counts as used now, and whether anything was written for that.

        Raises KeyError if there is none, Unavailable if the file cannot be read.
        """
        self._follow(now)
        layout = self._layout
        query = f"SELECT {layout.value}, used_at FROM {layout.table} WHERE {self._where}"
        row = self._settled(lambda: self.database.execute(query, key).fetchone())
        if row is None:
            raise KeyError(key)
        value, used_at = row
        renew = now - used_at > STAMP_SECONDS
        if renew:
            # A full disk costs the order of use, not the value.
            with suppress(sqlite3.DatabaseError):
                self.database.execute(f"UPDATE {layout.table} SET used_at = ? WHERE {self._where}", (now, *key))
        return value, renew

    def put(self, keys: Sequence[Key], value: bytes, now: float) -> None:
        """Have `value` under each of `keys`, or under none; others are forgotten for it.

        Raises StoreFull if it can never fit or the disk is full, Unavailable if the file cannot be written.
        """
        charged = len(value) + ENTRY_BYTES
        if len(keys) > self._max_entries or charged * len(keys) > self._max_bytes:
            raise StoreFull(
                f"{len(keys)} times {len(value)} bytes can never fit: {self._layout.holder} holds {self._max_entries}"
                f" entries, {self._max_bytes} bytes"
            )
        self._follow(now)
        self._settled(lambda: self._insert(keys, value, charged, now))

    def forget(self, key: Key) -> None:
        """Drop the entry, if there is one and the file can be written."""
        with suppress(StoreFull, Unavailable):
            self._settled(lambda: self._drop(key))

    def _insert(self, keys: Sequence[Key], value: bytes, charged: int, now: float) -> None:
        database, table = self.database, self._layout.table
        with database:
            database.execute("BEGIN IMMEDIATE")
            entries, used_bytes = self._totals()
            entries, used_bytes = entries + len(keys), used_bytes + charged * len(keys)
            for key in keys:
                gone = database.execute(f"DELETE FROM {table} WHERE {self._where} RETURNING charged_bytes", key)
                for (freed,) in gone.fetchall():
                    entries, used_bytes = entries - 1, used_bytes - freed
            while entries > self._max_entries or used_bytes > self._max_bytes:
                oldest = f"SELECT rowid FROM {table} ORDER BY used_at, rowid LIMIT 1"
                ((freed,),) = database.execute(
                    f"DELETE FROM {table} WHERE rowid = ({oldest}) RETURNING charged_bytes"
                ).fetchall()
                entries, used_bytes = entries - 1, used_bytes - freed
            places = "?, " * len(self._layout.key)
            for key in keys:
                database.execute(f"INSERT INTO {table} VALUES ({places}?, ?, ?)", (*key, value, charged, now))
            if self._shared:
                self._account(entries, used_bytes)
        if not self._shared:
            self._account(entries, used_bytes)

    def _drop(self, key: Key) -> None:
        with self.database:
            self.database.execute("BEGIN IMMEDIATE")
            entries, used_bytes = self._totals()
            gone = self.database.execute(
                f"DELETE FROM {self._layout.table} WHERE {self._where} RETURNING charged_bytes", key
            ).fetchall()
            self._account(entries - len(gone), used_bytes - sum(freed for (freed,) in gone))

    # The file

    def _open(self) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # What is built here is the user's own affair; the log beside it has the same mode.
            self._path.touch(mode=0o600)
        database = sqlite3.connect(self._path or IN_MEMORY, isolation_level=None, timeout=BUSY_SECONDS)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            if not self._checkpoints_itself:
                database.execute("PRAGMA wal_autocheckpoint = 0")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0 and not self._guest:
                database.executescript(f"BEGIN; {self._layout.schema()} COMMIT;")
            elif version != self._layout.version:
                raise _OtherLayout(f"the layout is {version}; expected {self._layout.version}")
            if self._path is not None:
                self._inode = os.stat(self._path).st_ino
            if not self._guest:
                self._count(database)
        except BaseException:
            database.close()
            raise
        self.database = database

    def _count(self, database: sqlite3.Connection) -> None:
        counted = f"SELECT count(*), coalesce(sum(charged_bytes), 0) FROM {self._layout.table}"
        if not self._shared:
            self._held = database.execute(counted).fetchone()
            return
        # In one transaction, because guests of an owner that died may be writing.
        database.executescript(
            f"BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS totals (entries INTEGER NOT NULL, used_bytes INTEGER NOT NULL);"
            f"DELETE FROM totals; INSERT INTO totals {counted}; COMMIT;"
        )

    def _follow(self, now: float) -> None:
        """As a guest, go over to the file that the owner has put in the place of this one."""
        if not self._guest or abs(now - self._followed_at) < FOLLOW_SECONDS or self._path is None:
            return
        self._followed_at = now
        with suppress(OSError, sqlite3.Error):
            if os.stat(self._path).st_ino != self._inode:
                old = self.database
                self._open()
                old.close()

    def _settled(self, work: Callable[[], T]) -> T:
        """Do `work`, once more with a fresh file if this one turns out damaged.

        Raises StoreFull for a full disk, and Unavailable for any other failure of the file.
        """
        try:
            try:
                return work()
            except sqlite3.DatabaseError as reason:
                if not _is_damage(reason):
                    raise
                if self._guest:
                    raise  # the owner finds the damage too
                with suppress(sqlite3.Error):
                    self.database.close()
                self._start_anew(reason)
                return work()
        except (sqlite3.Error, OSError) as reason:
            if getattr(reason, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
                raise StoreFull(f"no room on the server's disk for the {self._layout.entry}") from reason
            log.error("a database failed", holder=self._layout.holder, path=str(self._path), reason=str(reason))
            raise Unavailable(f"{self._layout.holder} cannot be used now") from reason

    def _start_anew(self, reason: Exception) -> None:
        """Move the file aside and make a fresh one."""
        if self._path is None or self._guest:
            raise reason
        aside = self._path.with_name(f"{self._path.name}.damaged")
        log.error(
            "a database is damaged and starts anew",
            holder=self._layout.holder,
            path=str(self._path),
            kept=str(aside),
            reason=str(reason),
        )
        self._path.replace(aside)
        # The log belongs to the damaged file; a fresh one would take it for its own.
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        self._open()


class _OtherLayout(sqlite3.DatabaseError):
    """The file was written by another version."""


def _is_damage(reason: sqlite3.DatabaseError) -> bool:
    # An error of the module itself, such as a closed connection, has no code.
    return getattr(reason, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


def checkpoint_file(path: Path) -> None:
    """Move the log of the database into its file. For a thread: it waits for the disk. Raises sqlite3.Error."""
    with closing(sqlite3.connect(path)) as database:
        # PASSIVE moves what it can without making the writer wait.
        database.execute("PRAGMA wal_checkpoint(PASSIVE)")
