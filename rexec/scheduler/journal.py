"""The journal: one SQLite file that holds the rows of rexec/scheduler/rows.py, and says who may write to it.

Each batch is one transaction, which begins by making sure that the file still belongs to this process: if another one has
taken it over, `Fenced` is raised and nothing is written. In WAL mode with synchronous=NORMAL a commit waits for no disk. A
process that is killed loses nothing that was committed; if the machine loses its power the last commits may be gone, which
costs a repeated run at worst, because epochs never repeat (rexec/scheduler/recovery.py).

Rows are written many to a statement: each statement gives up the interpreter's lock and has to get it back.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import structlog

from rexec.scheduler.rows import Batch, Recorded

log = structlog.get_logger()

SCHEMA_VERSION: Final = 1

_SCHEMA: Final = f"""
    CREATE TABLE tasks (number INTEGER PRIMARY KEY, task_id TEXT NOT NULL, queued_at REAL NOT NULL, candidate BLOB NOT NULL);
    CREATE TABLE live (number INTEGER PRIMARY KEY, record BLOB NOT NULL);
    CREATE TABLE operations (
        number INTEGER PRIMARY KEY, name TEXT NOT NULL, task INTEGER, completed_at REAL, state BLOB NOT NULL
    );
    CREATE TABLE workers (session TEXT PRIMARY KEY, record BLOB NOT NULL);
    CREATE TABLE statistics (name TEXT PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE leadership (
        one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER NOT NULL, holder TEXT NOT NULL, address TEXT NOT NULL,
        locked INTEGER NOT NULL, renewals INTEGER NOT NULL
    );
    INSERT INTO leadership VALUES (1, unixepoch() / 60 - 26000000, '', '', 1, 0);
    PRAGMA user_version = {SCHEMA_VERSION};
"""

# A fresh file begins with a generation that rises with time: those who have seen the generations of one that was lost must take
# the next leader for the newer one. (The figure is minutes since 2019.)

_CHUNKS: Final = (64, 16, 4, 1)
"""Rows to a statement: few enough sizes for the statements to be prepared once."""

RENEW_SECONDS: Final = 0.1
"""A commit after so long raises `Tenure.renewals`, which costs it a page."""

CHECKPOINT_BYTES: Final = 4 << 20
"""Written to the log between two attempts to move it into the file, which are made beside the writer."""

MAX_LOG_BYTES: Final = 64 << 20
"""Where writing waits for the log to be moved: under a load that never pauses it would grow for ever."""

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class JournalUnusable(Exception):
    """The journal cannot be used at the start; the text names the file and what to do."""


class Fenced(Exception):
    """Another process has taken the journal over; the text says which."""


@dataclass(frozen=True, slots=True)
class Tenure:
    """Who leads: the one row of the table `leadership`."""

    generation: int
    """How many processes have led so far."""
    holder: str
    address: str
    """Where it is reached, for those who wait for it."""
    locked: bool
    """It has the lock of the file too, so that whoever gets the lock knows that it is gone."""
    renewals: int
    """Rises as it writes: a holder whose figure stands still is gone, or hangs."""


class Journal:
    """An open file. Used by one thread at a time; `write` waits for the disk."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path = path
        self.generation = 0
        """Of this process; 0 as long as it has not taken the file over."""
        self.locked = False
        """What the next commit says of `Tenure.locked`."""
        self._database = database
        self._holder = ("", "")
        self._unmoved_bytes = 0
        self._renewed_at = float("-inf")

    # Life

    @classmethod
    def open(cls, path: Path, *, alone: bool = True) -> Self:
        """The journal in the file, made if there is none.

        One that is damaged is moved aside if nobody else can be using it (`alone`). Raises JournalUnusable, also for a file
        of a later version.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)  # what is built here is the user's own affair
            try:
                return cls(path, _opened(path))
            except sqlite3.DatabaseError as reason:
                if not (alone and is_damage(reason)):
                    raise
                return cls(path, _anew(path, reason))
        except (sqlite3.Error, OSError) as reason:
            raise JournalUnusable(f"the scheduler's journal {path} cannot be used: {reason}") from reason

    def close(self) -> None:
        """Let the file go; what is in the log is moved into it."""
        with suppress(sqlite3.Error):
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._database.close()

    # Leadership

    def tenure(self) -> Tenure:
        """Who leads now. Raises sqlite3.Error."""
        return _tenure(self._database)

    def take_over(self, seen: Tenure, holder: str, address: str, *, locked: bool) -> bool:
        """Lead from now on, unless somebody else has written since `seen`. Raises sqlite3.Error.

        This one waits for the disk: no later process may get the same generation.
        """
        database = self._database
        database.execute("PRAGMA synchronous = FULL")
        try:
            taken = database.execute(
                "UPDATE leadership SET generation = generation + 1, holder = ?, address = ?, locked = ?, renewals = 0"
                " WHERE generation = ? AND renewals = ?",
                (holder, address, locked, seen.generation, seen.renewals),
            )
        finally:
            database.execute("PRAGMA synchronous = NORMAL")
        if taken.rowcount != 1:
            return False
        self.generation, self.locked, self._holder = seen.generation + 1, locked, (holder, address)
        return True

    # Rows

    def load(self) -> Recorded:
        """All rows. One file that turns out damaged only now is begun anew. Raises JournalUnusable."""
        try:
            return self._load()
        except sqlite3.DatabaseError as reason:
            if not (is_damage(reason) and self.locked):
                raise JournalUnusable(f"the scheduler's journal {self.path} cannot be read: {reason}") from reason
            self._database.close()
            self._database = _anew(self.path, reason)
            self.take_over(self.tenure(), *self._holder, locked=True)
            return Recorded()

    def _load(self) -> Recorded:
        rows = self._database.execute
        return Recorded(
            tasks=rows("SELECT number, task_id, queued_at, candidate FROM tasks ORDER BY number").fetchall(),
            live=rows("SELECT number, record FROM live").fetchall(),
            operations=rows(
                "SELECT number, name, task, completed_at, state FROM operations ORDER BY number"
            ).fetchall(),
            workers=rows("SELECT session, record FROM workers ORDER BY rowid").fetchall(),
            statistics=rows("SELECT name, data FROM statistics ORDER BY rowid").fetchall(),
        )

    def write(self, batch: Batch) -> None:
        """Commit the rows. Raises Fenced, and sqlite3.Error when the file cannot be written; then nothing is."""
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            (generation,) = database.execute("SELECT generation FROM leadership").fetchone()
            if generation != self.generation:
                tenure = self.tenure()
                raise Fenced(
                    f"{tenure.holder or 'another scheduler'} leads now (generation {generation}, this one was"
                    f" {self.generation})"
                )
            now = time.monotonic()
            renews = now >= self._renewed_at + RENEW_SECONDS
            if renews:
                database.execute("UPDATE leadership SET renewals = renewals + 1, locked = ?", (self.locked,))
            for statement, rows in _statements(batch):
                self._unmoved_bytes += _execute_many(database, statement, rows)
            database.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise
        if renews:
            self._renewed_at = now
        self._unmoved_bytes += 4096  # a page at least

    # The log

    @property
    def wants_checkpoint(self) -> bool:
        """Whether much has been written since the log was moved into the file last."""
        return self._unmoved_bytes >= CHECKPOINT_BYTES

    def checkpoint(self) -> None:
        """Move the log into the file, beside whoever writes: for a thread of its own. What cannot be done now is done the
        next time."""
        self._unmoved_bytes = 0
        with suppress(sqlite3.Error), closing(sqlite3.connect(self.path)) as database:
            database.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def curb_log(self) -> None:
        """Have the log begin anew if it has become too long. The writer's thread waits for it."""
        try:
            log_bytes = Path(f"{self.path}-wal").stat().st_size
        except OSError:
            return
        if log_bytes > MAX_LOG_BYTES:
            with suppress(sqlite3.Error):
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def read_tenure(path: Path) -> Tenure | None:
    """Who leads, as the file says; None if there is none that says so. Changes nothing."""
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1.0)) as database:
            return _tenure(database)
    except sqlite3.Error:
        return None


def is_damage(reason: sqlite3.DatabaseError) -> bool:
    """Whether the file is not, or no longer, a database."""
    # An error of the module itself, such as a closed connection, has no code.
    return getattr(reason, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


def is_full(reason: sqlite3.Error) -> bool:
    """Whether there was no room on the disk."""
    return getattr(reason, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


def _tenure(database: sqlite3.Connection) -> Tenure:
    found = database.execute("SELECT generation, holder, address, locked, renewals FROM leadership").fetchone()
    if found is None:
        raise sqlite3.DatabaseError("the table leadership is empty")
    generation, holder, address, locked, renewals = found
    return Tenure(generation, holder, address, bool(locked), renewals)


def _opened(path: Path) -> sqlite3.Connection:
    # Opened here and used in the writer's thread, never by both at once.
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2.0)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA wal_autocheckpoint = 0")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        elif version > SCHEMA_VERSION:
            raise JournalUnusable(
                f"the scheduler's journal {path} was written by a later version of this program (layout {version}; this one"
                f" knows {SCHEMA_VERSION}): use that version, or move the file away and lose what waits and runs"
            )
        _tenure(database)  # which may be the part that is damaged
    except BaseException:
        database.close()
        raise
    return database


def _anew(path: Path, reason: Exception) -> sqlite3.Connection:
    """Move the file aside and make a fresh one."""
    aside = path.with_name(f"{path.name}.damaged")
    log.error(
        "the scheduler's journal is damaged and starts anew: what waited and ran is forgotten",
        path=str(path),
        kept=str(aside),
        reason=str(reason),
    )
    path.replace(aside)
    # The log belongs to the damaged file; a fresh one would take it for its own.
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.touch(mode=0o600)
    return _opened(path)


Rows = Sequence[Sequence[object]]


def _statements(batch: Batch) -> Iterator[tuple[Callable[[int], str], Rows]]:
    """Statements, each of which takes a number of rows, and the rows."""
    for statement, rows in (
        (_insert("tasks", 4), batch.tasks),
        (_insert("live", 2), batch.live),
        (_insert("operations", 5), batch.operations),
        (_insert("workers", 2), batch.workers),
        (_insert("statistics", 2), batch.statistics),
        (_delete("tasks", "number"), _keys(batch.ended_tasks)),
        (_delete("live", "number"), _keys(batch.ended_tasks)),
        (_delete("operations", "number"), _keys(batch.forgotten_operations)),
        (_delete("workers", "session"), _keys(batch.gone_workers)),
        (_delete("statistics", "name"), _keys(batch.forgotten_statistics)),
    ):
        if rows:
            yield statement, rows


def _keys(keys: Iterable[object]) -> list[tuple[object]]:
    return [(key,) for key in keys]


def _insert(table: str, columns: int) -> Callable[[int], str]:
    row = f"({', '.join('?' * columns)})"
    return lambda rows: f"INSERT OR REPLACE INTO {table} VALUES {', '.join([row] * rows)}"


def _delete(table: str, key: str) -> Callable[[int], str]:
    return lambda rows: f"DELETE FROM {table} WHERE {key} IN ({', '.join('?' * rows)})"


def _execute_many(database: sqlite3.Connection, statement: Callable[[int], str], rows: Rows) -> int:
    """Carry out the statement for all rows. Returns about how many bytes they take."""
    place, written = 0, 0
    for size in _CHUNKS:
        while len(rows) - place >= size:
            parameters = [value for row in rows[place : place + size] for value in row]
            database.execute(statement(size), parameters)
            written += 64 * size + sum(len(value) for value in parameters if isinstance(value, bytes))
            place += size
    return written
