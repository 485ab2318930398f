"""Action results in one SQLite file (cas/bounded_table.py).

Results are written at the pace at which actions end, so nothing of it may wait for the disk on the event loop: moving the
log into the database file, which does, is done by a thread from time to time.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import structlog
from google.protobuf.message import DecodeError

from cas.action_cache import ActionKey
from cas.bounded_table import BoundedTable, Layout, checkpoint_file
from cas.config import SYNC_SECONDS
from cas.file_lock import claim
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

log = structlog.get_logger()

LAYOUT: Final = Layout(
    holder="the action cache",
    entry="action result",
    table="results",
    key=("instance_name TEXT", "function INTEGER", "hash TEXT", "size_bytes INTEGER"),
    value="result",
    version=1,
)


class DiskActionCache:
    """A bounded ActionCache in the file `path`, which one process owns. Use it as an async context manager.

    Forgets the results used longest ago; times of use are kept to the hour. Entering raises DirectoryUnusable if another
    process has the file or it cannot be made. The owner of a `shared` one has guests: other processes that read and write
    the file beside it, which neither make nor claim it.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_entries: int,
        max_bytes: int,
        shared: bool = False,
        guest: bool = False,
        checkpoint_seconds: float = SYNC_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._shared = shared
        self._guest = guest
        self._table = BoundedTable(
            path,
            LAYOUT,
            max_entries=max_entries,
            max_bytes=max_bytes,
            checkpoints_itself=False,
            shared=shared,
            guest=guest,
        )
        self._checkpoint_seconds = checkpoint_seconds
        self._clock = clock
        self._dirty = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    def __len__(self) -> int:
        return self._table.entries

    async def __aenter__(self) -> Self:
        if self._guest:
            self._table.open()
            return self
        self._lock = claim(Path(f"{self._path}.lock"), f"action cache {self._path}")
        try:
            self._table.open()
        except BaseException:
            os.close(self._lock)
            raise
        await self._tasks.__aenter__()
        self._upkeep = self._tasks.create_task(self._keep_checkpointed())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._guest:
            self._table.close()
            return
        self._upkeep.cancel()
        await self._tasks.__aexit__(None, None, None)
        self._table.close()
        os.close(self._lock)

    async def get(self, key: ActionKey) -> re_pb2.ActionResult:
        try:
            encoded, written = self._table.get(_columns(key), self._clock())
        except KeyError:
            raise key.not_found() from None
        if written:
            self._dirty.set()
        try:
            return re_pb2.ActionResult.FromString(encoded)
        except DecodeError as reason:
            log.warning("an action result does not parse", action=str(key.action_digest))
            raise key.not_found() from reason

    async def put(self, key: ActionKey, result: re_pb2.ActionResult) -> None:
        self._table.put([_columns(key)], result.SerializeToString(), self._clock())
        self._dirty.set()

    async def _keep_checkpointed(self) -> None:
        while True:
            if not self._shared:  # what guests write is not heard of here
                await self._dirty.wait()
            await asyncio.sleep(self._checkpoint_seconds)
            await self.checkpoint()

    async def checkpoint(self) -> None:
        """Move the log into the database file."""
        self._dirty.clear()
        try:
            await asyncio.to_thread(checkpoint_file, self._path)
        except sqlite3.Error as reason:
            log.warning("cannot checkpoint the action cache, will try again", path=str(self._path), reason=str(reason))
            self._dirty.set()


def _columns(key: ActionKey) -> tuple[str, int, str, int]:
    digest = key.action_digest
    return key.instance_name, digest.function.value, digest.hash, digest.size_bytes
