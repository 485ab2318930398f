"""The journal of a scheduler's process: where it is, and the wait until it is this process's turn to write to it."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from rexec.config import Config
from rexec.edge import CannotServe
from rexec.scheduler.journal import Journal, JournalUnusable, Tenure
from rexec.scheduler.leadership import lead

log = structlog.get_logger()


def journal_path(config: Config) -> Path | None:
    """The file, None if nothing is to be written down."""
    if not config.scheduler.journal or config.store.kind == "memory":
        return None
    if config.scheduler.journal_path:
        return Path(config.scheduler.journal_path).expanduser().absolute()
    return config.state_path / "scheduler.sqlite3"


@asynccontextmanager
async def leading(config: Config) -> AsyncIterator[Journal | None]:
    """Wait until this process leads, and let go at the end; None without a journal. Raises CannotServe."""
    path = journal_path(config)
    if path is None:
        yield None
        return

    def waits(tenure: Tenure | None) -> None:
        log.info("stands by", journal=str(path), leader=tenure.holder if tenure is not None else "")

    holder = f"{socket.gethostname()} (process {os.getpid()})"
    leader = lead(
        path,
        holder=holder,
        address=", ".join(config.server.listen),
        lease_seconds=config.scheduler.leadership_seconds,
        waits=waits,
    )
    try:
        journal = await leader.__aenter__()
    except JournalUnusable as error:
        raise CannotServe(str(error)) from error
    try:
        yield journal
    finally:
        await leader.__aexit__(None, None, None)
