"""`rexec worker`: a process that runs actions for a server, over one connection unless its scheduler is elsewhere."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, nullcontext
from functools import cache
from pathlib import Path

import msgspec
import structlog

from cas.errors import StatusError
from cas.remote import RemoteStore
from cas.store import BlobStore
from rexec import http_port
from rexec.config import Config
from rexec.connection import CannotConnect, headers, open_channel
from rexec.ports import CannotListen, require_free
from rexec.worker.in_turn import in_turn
from rexec.worker.isolation import CannotIsolate
from rexec.worker.link import LINK_OPTIONS, dial_over
from rexec.worker.processes import Unkillable
from rexec.worker.settings import WorkerSettings
from rexec.worker.start import WorkDirectoryUnusable, run_agent
from rexec.worker_telemetry import WorkerTelemetry

log = structlog.get_logger()


class CannotWork(Exception):
    """The worker cannot start; the text says why."""


async def work(server: str, config: Config) -> None:
    """Run actions for the server at grpc://, grpcs:// or unix: until SIGTERM or SIGINT. Raises CannotWork."""
    settings = _placed(config.worker)
    telemetry = WorkerTelemetry()
    figures = http_port.Figures(telemetry.registry, telemetry.state, telemetry.unready)
    try:
        if settings.metrics_listen:
            require_free(settings.metrics_listen, "--metrics-listen, or [worker] metrics_listen")
        shown = headers(server, config.connection)
        opened = open_channel(server, config.connection)
        schedulers = [
            (open_channel(address, config.connection, LINK_OPTIONS), headers(address, config.connection))
            for address in settings.scheduler
        ]
    except (CannotConnect, CannotListen) as error:
        raise CannotWork(str(error)) from error
    async with AsyncExitStack() as channels:
        channel = await channels.enter_async_context(opened)
        for scheduler, _ in schedulers:
            await channels.enter_async_context(scheduler)
        dial = in_turn([dial_over(*scheduler) for scheduler in schedulers or [(channel, shown)]])

        @cache
        def store_of(instance_name: str) -> BlobStore:
            return telemetry.metered(RemoteStore(channel, instance_name, shown))

        attaches = {"scheduler": ",".join(settings.scheduler)} if settings.scheduler else {}
        log.info("worker starts", server=server, **attaches, slots=settings.slots, work_dir=settings.work_dir)
        try:
            with http_port.shown(settings.metrics_listen, figures) if settings.metrics_listen else nullcontext():
                await run_agent(settings, dial, store_of, telemetry)
        except (StatusError, Unkillable, WorkDirectoryUnusable, CannotIsolate, OSError) as error:
            raise CannotWork(str(error)) from error


def _placed(settings: WorkerSettings) -> WorkerSettings:
    """The settings with a work directory: a place of the user's own unless one was given. Raises CannotWork."""
    try:
        if settings.work_dir:
            chosen = Path(settings.work_dir).expanduser().absolute()
        else:
            state_home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state").absolute()
            chosen = state_home / "rexec-worker"
    except RuntimeError as error:  # the user has no entry in /etc/passwd, and HOME is not set
        raise CannotWork(f"user {os.getuid()} has no home directory here; name one with --work-dir") from error
    return msgspec.structs.replace(settings, work_dir=str(chosen))
