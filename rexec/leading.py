"""The journal of a scheduler's process: where it is, and the wait until it is this process's turn to write to it."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import structlog

from rexec.config import Config
from rexec.edge import CannotServe
from rexec.http_port import Figures, shown
from rexec.scheduler.journal import Journal, JournalUnusable, Tenure
from rexec.scheduler.leadership import lead
from rexec.telemetry import Telemetry

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
    """Wait until this process leads, and let go at the end; None without a journal. Raises CannotServe.

    While it waits it answers on the HTTP port, alive and not ready: a probe that finds no port has the process killed.
    """
    path = journal_path(config)
    if path is None:
        yield None
        return
    probed = ExitStack()

    def waits(tenure: Tenure | None) -> None:
        leader = tenure.holder if tenure is not None else "another process"
        log.info("stands by", journal=str(path), leader=leader)
        if config.server.metrics_listen:
            telemetry = Telemetry()
            figures = Figures(telemetry.registry, telemetry.state, lambda: f"stands by for {leader}")
            try:
                probed.enter_context(shown(config.server.metrics_listen, figures))
            except OSError as error:  # on one machine it may be the leader's
                log.info("no HTTP port while standing by", reason=str(error))

    holder = f"{socket.gethostname()} (process {os.getpid()})"
    leader = lead(
        path,
        holder=holder,
        address=", ".join(config.server.listen),
        lease_seconds=config.scheduler.leadership_seconds,
        waits=waits,
    )
    try:
        with probed:
            journal = await leader.__aenter__()
    except JournalUnusable as error:
        raise CannotServe(str(error)) from error
    try:
        yield journal
    finally:
        await leader.__aexit__(None, None, None)
