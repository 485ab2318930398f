"""`rexec autoscale`: pools of workers for a scheduler elsewhere, in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import click

from rexec.command_line import CONFIG, LEVEL, addresses_in, configured, connecting, run
from rexec.config import Config
from rexec.local_pools import autoscaling_of


@click.command()
@click.option(
    "--server",
    "servers",
    required=True,
    metavar="ADDR[,ADDR]",
    help="grpc[s]://HOST:PORT of the scheduler, and of those that stand by for it.",
)
@click.option(
    "--config", type=CONFIG, required=True, metavar="FILE", help="TOML file with the pools: [[autoscale.pools]]."
)
@connecting
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--metrics-listen", metavar="HOST:PORT", help="Answer /metrics, /healthz and /readyz over HTTP there.")
@click.option("--log-level", type=LEVEL, help="[default: info]")
def autoscale(
    servers: str,
    config: Path,
    dry_run: bool,
    metrics_listen: str | None,
    log_level: str | None,
    **connection: str | None,
) -> None:
    """Start workers for the work that waits, and end those without any.

    Pools are in the configuration; `rexec config` explains every option. A scheduler that is away is looked for again and
    again; meanwhile nothing is started or ended. Pods outlive this process: the next one goes on with them. `rexec serve` does
    all this itself if pools are in its configuration.
    """
    addresses = addresses_in(servers, "--server")
    settings = configured(
        config,
        server__metrics_listen=metrics_listen,
        server__log_level=log_level,
        **connection,
    )
    pools = autoscaling_of(settings).pools
    if not pools:
        raise click.UsageError(f"{config} has no pools, expected [[autoscale.pools]]")
    from rexec import logs
    from rexec.autoscaling import CannotScale

    logs.configure(settings.server)
    click.echo(f"rexec keeps {len(pools)} pool{'' if len(pools) == 1 else 's'} for {', '.join(addresses)}")
    for pool in pools:
        click.echo(f"  {pool.name}: {pool.min} to {pool.max} workers, kind {pool.kind.value}")
    sys.stdout.flush()
    try:
        run(lambda: _until_stopped(addresses, settings, config, dry_run))
    except CannotScale as error:
        raise click.ClickException(str(error)) from error


async def _until_stopped(servers: tuple[str, ...], config: Config, config_file: Path, dry_run: bool) -> None:
    import signal

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running_autoscaler(servers, config, config_file, dry_run=dry_run):
        await stop.wait()


@asynccontextmanager
async def running_autoscaler(
    servers: tuple[str, ...], config: Config, config_file: Path, *, dry_run: bool = False
) -> AsyncIterator[None]:
    """Keep the pools meanwhile, and answer on the HTTP port if one is configured. Raises CannotScale."""
    from prometheus_client import CollectorRegistry

    from rexec.autoscale_telemetry import AutoscaleTelemetry
    from rexec.autoscaling import CannotScale, autoscaling
    from rexec.autoscaling_source import RemoteSource
    from rexec.connection import CannotConnect
    from rexec.http_port import Figures, shown
    from rexec.ports import CannotListen, require_free

    registry = CollectorRegistry()
    address = config.server.metrics_listen
    async with AsyncExitStack() as stack:
        try:
            if address:
                require_free(address, "--metrics-listen, or [server] metrics_listen")
            source = RemoteSource(servers, config.connection)
            if address:
                stack.enter_context(shown(address, Figures(registry, tuple, lambda: source.trouble)))
        except (CannotConnect, CannotListen, OSError, ValueError) as error:
            raise CannotScale(str(error)) from error
        pools = autoscaling(
            config,
            config_file,
            servers[0],
            source,
            AutoscaleTelemetry(registry),
            keeps_state=False,
            dry_run=dry_run,
        )
        await stack.enter_async_context(pools)
        yield
