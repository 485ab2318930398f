"""An autoscaler brought up: its providers, where it keeps what was spent, and the loop, ended in the right order.

The loop ends first, so that it starts nothing in the place of the workers that are then drained. Pods stay: the next
autoscaler finds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cas.extras import how_to_install
from rexec.autoscale.ledger import FileLedger, ForgottenLedger, LedgerStore
from rexec.autoscale.local_processes import LocalProcesses
from rexec.autoscale.loop import Autoscaler
from rexec.autoscale.observer import Observer
from rexec.autoscale.provider import Provider
from rexec.autoscale.settings import AutoscaleSettings, PoolKind
from rexec.autoscale.work_source import WorkSource
from rexec.config import Config
from rexec.local_pools import autoscaling_of
from rexec.local_workers import LocalCommand, with_what_is_here
from rexec.worker.isolation import CannotIsolate

if TYPE_CHECKING:
    from rexec.autoscale.kubernetes_provider import KubernetesProvider

log = structlog.get_logger()

AGAIN_SECONDS = 5.0
"""After a failure of the loop itself, which should not be."""


class CannotScale(Exception):
    """The pools that are configured cannot be had; the text says why."""


@asynccontextmanager
async def autoscaling(
    config: Config,
    config_file: Path | None,
    server: str,
    source: WorkSource,
    observer: Observer,
    *,
    keeps_state: bool,
    dry_run: bool = False,
) -> AsyncIterator[None]:
    """Keep the pools of the configuration meanwhile. `server`: where local workers connect. `keeps_state`: whether this process
    has the state directory to itself. Raises CannotScale."""
    configured = autoscaling_of(config)
    folder = config.state_path / "pools"
    providers: dict[PoolKind, Provider] = {}
    kinds = {pool.kind for pool in configured.pools}
    ledger: LedgerStore = FileLedger(config.state_path / "autoscaler.json") if keeps_state else ForgottenLedger()
    async with AsyncExitStack() as stack:
        if PoolKind.KUBERNETES in kinds:
            pods = await stack.enter_async_context(_pods(configured, _directory_of(config_file)))
            providers[PoolKind.KUBERNETES] = pods
            if not keeps_state:
                ledger = pods.ledger
        settings = configured
        if PoolKind.LOCAL in kinds:
            try:
                settings = await asyncio.to_thread(with_what_is_here, config, configured, folder)
            except (CannotIsolate, OSError) as error:
                raise CannotScale(str(error)) from error
            processes = LocalProcesses(folder, LocalCommand(server, config_file, configured, config.connection))
            stack.push_async_callback(processes.stop, config.server.stop_seconds)
            providers[PoolKind.LOCAL] = processes
        autoscaler = Autoscaler(settings, source, providers, ledger=ledger, observer=observer, dry_run=dry_run)
        running = asyncio.create_task(_kept(autoscaler), name="autoscaler")
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


def _directory_of(config_file: Path | None) -> Path:
    return config_file.absolute().parent if config_file is not None else Path.cwd()


async def _kept(autoscaler: Autoscaler) -> None:
    while True:
        try:
            await autoscaler.run()
        except Exception:
            log.exception("the autoscaler failed and goes on", in_seconds=AGAIN_SECONDS)
            await asyncio.sleep(AGAIN_SECONDS)


@asynccontextmanager
async def _pods(settings: AutoscaleSettings, directory: Path) -> AsyncIterator[KubernetesProvider]:
    try:
        from rexec.autoscale.kubernetes_api import KubernetesUnusable
        from rexec.autoscale.kubernetes_provider import open_provider
    except ModuleNotFoundError as error:
        raise CannotScale(
            f"pools of kind 'kubernetes' need the package {error.name}: {how_to_install('kubernetes')}"
        ) from error
    async with AsyncExitStack() as stack:
        try:
            provider = await stack.enter_async_context(open_provider(settings, directory))
        except KubernetesUnusable as error:
            raise CannotScale(str(error)) from error
        yield provider
