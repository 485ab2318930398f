"""`rexec serve`: the command, and what it says about where it is."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import click

from rexec import __version__
from rexec.address import channel_target
from rexec.autoscale.settings import PoolKind
from rexec.client_flags import client_flags, reachable, worker_flags
from rexec.command_line import CONFIG, configured, run
from rexec.config import Config, ConfigError
from rexec.exposure import warnings
from rexec.local_pools import autoscaling_of
from rexec.role_commands import access_of, named


@click.command()
@click.option("--listen", multiple=True, metavar="HOST:PORT", help="Where clients connect. [default: 127.0.0.1:8980]")
@click.option(
    "--state-dir",
    metavar="DIR",
    help="Where blobs and action results are kept. [default: $XDG_STATE_HOME/rexec or ~/.local/state/rexec]",
)
@click.option(
    "--slots",
    type=click.IntRange(min=0),
    metavar="N",
    help="Actions that this machine runs at once; 0 serves without a local worker. With --workers: that each of them runs at "
    "once. [default: one for each core; with --workers 1]",
)
@click.option(
    "--workers",
    metavar="MIN..MAX",
    help="Start and end so many worker processes on this machine, such as 0..8, as there is work for. [default: one that stays]",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that answer clients, behind one port; with more than one, the queue has another. [default: 1 for all]",
)
@click.option("--config", type=CONFIG, metavar="FILE", help="TOML file with every other option.")
@click.option("--metrics-listen", metavar="HOST:PORT", help="Answer /metrics, /healthz and /readyz over HTTP there.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
def serve(
    listen: tuple[str, ...],
    state_dir: str | None,
    slots: int | None,
    workers: str | None,
    processes: int | None,
    config: Path | None,
    metrics_listen: str | None,
    log_level: str | None,
) -> None:
    """Serve remote execution and caching, with local workers.

    One process serves clients and schedules; a second one runs actions in its slots. More workers join from other
    machines with `rexec worker`. With --processes, clients are served on several cores. Ctrl-C or SIGTERM stops all.
    """
    settings = configured(
        config,
        server__listen=listen or None,
        state_dir=state_dir,
        workers=workers,
        slots=slots,
        processes=processes,
        server__metrics_listen=metrics_listen,
        server__log_level=log_level,
    )
    from rexec import logs
    from rexec.server import CannotServe
    from rexec.server import serve as serving
    from rexec.supervisor import supervise

    logs.configure(settings.server)

    def ready(addresses: tuple[str, ...]) -> None:
        click.echo(greeting(settings, addresses))
        sys.stdout.flush()

    try:
        run(lambda: (serving if settings.processes == 1 else supervise)(settings, config, ready))
    except CannotServe as error:
        raise click.ClickException(str(error)) from error


def greeting(config: Config, addresses: tuple[str, ...]) -> str:
    """What `rexec serve` prints once it answers calls: where it is, and what to paste into the clients."""
    hostname = socket.gethostname()
    access = access_of(config)
    lines = [
        f"rexec {__version__} serves on {', '.join(addresses)}",
        f"  {local_workers(config)}; instance names {named(config)}; data in {kept_in(config, config.state_path)}",
        *pool_lines(config),
    ]
    if config.local_slots == 0 and not autoscaling_of(config).pools:
        lines.append(f"  no local worker: start some with  {worker_flags(reachable(addresses[0], hostname), access)}")
    lines += [f"  warning: {text}" for text in warnings(config, addresses)]
    flags = client_flags(addresses[0], config.server.instance_names, True, hostname, access)
    return "\n".join([*lines, "", flags, "", "Ctrl-C stops the server."])


def kept_in(config: Config, state_path: Path) -> str:
    """Where a server's data are, for people."""
    return f"{state_path}, blobs in {config.store.elsewhere}" if config.store.elsewhere else str(state_path)


def local_workers(config: Config) -> str:
    """What runs actions on this machine, for people."""
    slots = config.local_slots
    pools = [pool for pool in autoscaling_of(config).pools if pool.kind is PoolKind.LOCAL]
    parts = [f"{slots} local slot{'' if slots == 1 else 's'}"] if slots or not pools else []
    if pools:
        sizes = sorted({pool.slots for pool in pools})
        of_each = f"{' or '.join(map(str, sizes))} slot{'' if sizes == [1] else 's'} each"
        least, most = sum(pool.min for pool in pools), sum(pool.max for pool in pools)
        parts.append(f"{least} to {most} local workers as there is work, {of_each}")
    return " and ".join(parts)


def require_server_of_pods(config: Config) -> None:
    """Refuse pools of pods that nobody has told where to connect; what else pods need is known where they are made.

    Raises ConfigError.
    """
    settings = config.autoscale
    if not any(pool.kind is PoolKind.KUBERNETES for pool in settings.pools):
        return
    expected = "expected where the workers in pods connect: grpc[s]://HOST:PORT"
    if not settings.server:
        raise ConfigError(f"[autoscale] server is empty, {expected}")
    try:
        channel_target(settings.server)
    except ValueError as error:
        raise ConfigError(f"[autoscale] server is {settings.server!r}, {expected}") from error


def pool_lines(config: Config) -> list[str]:
    """The pools of workers elsewhere."""
    pools = autoscaling_of(config).pools
    return [f"  pool {pool.name}: {pool.min} to {pool.max} pods" for pool in pools if pool.kind is PoolKind.KUBERNETES]
