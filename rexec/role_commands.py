"""`rexec scheduler` and `rexec frontend`: the parts of `rexec serve` as processes of their own, on any number of machines."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rexec import __version__
from rexec.client_flags import Access, client_flags, frontend_flags, reachable, worker_flags
from rexec.command_line import CONFIG, LEVEL, addresses_in, configured, connecting, run
from rexec.config import Config, ServerSettings
from rexec.exposure import FRONTEND_POWERS, SCHEDULER_POWERS, warnings

if TYPE_CHECKING:
    from rexec.edge import Running

SCHEDULER_LISTENS = ("127.0.0.1:8981",)
"""Where a scheduler listens unless it is told: beside a frontend that listens where clients look for one."""


@click.command()
@click.option(
    "--listen",
    multiple=True,
    metavar="HOST:PORT",
    help=f"Where frontends and workers connect. [default: {SCHEDULER_LISTENS[0]}]",
)
@click.option(
    "--state-dir",
    metavar="DIR",
    help="Where blobs, action results and the queue are kept. [default: $XDG_STATE_HOME/rexec or ~/.local/state/rexec]",
)
@click.option("--config", type=CONFIG, metavar="FILE", help="TOML file with every other option.")
@click.option("--metrics-listen", metavar="HOST:PORT", help="Answer /metrics, /healthz and /readyz over HTTP there.")
@click.option("--log-level", type=LEVEL, help="[default: info]")
def scheduler(
    listen: tuple[str, ...],
    state_dir: str | None,
    config: Path | None,
    metrics_listen: str | None,
    log_level: str | None,
) -> None:
    """Keep the queue, and the store of those who have none.

    Clients do not connect here but to a `rexec frontend`. Workers may connect here or there.
    """
    settings = configured(
        config,
        server__listen=listen or None,
        state_dir=state_dir,
        server__metrics_listen=metrics_listen,
        server__log_level=log_level,
    )
    if settings.server.listen == ServerSettings().listen:
        settings = configured(
            config,
            server__listen=SCHEDULER_LISTENS,
            state_dir=state_dir,
            server__metrics_listen=metrics_listen,
            server__log_level=log_level,
        )
    from rexec.scheduler_role import running_scheduler

    _run(settings, lambda: running_scheduler(settings), scheduler_greeting)


@click.command()
@click.option(
    "--scheduler",
    "schedulers",
    metavar="ADDR[,ADDR]",
    help="grpc[s]://HOST:PORT of the scheduler, and of those that stand by for it. [default: of the --config FILE]",
)
@click.option("--listen", multiple=True, metavar="HOST:PORT", help="Where clients connect. [default: 127.0.0.1:8980]")
@connecting
@click.option("--name", metavar="NAME", help="The frontend's name in the scheduler's log. [default: HOST-PID]")
@click.option("--config", type=CONFIG, metavar="FILE", help="TOML file with every other option.")
@click.option("--metrics-listen", metavar="HOST:PORT", help="Answer /metrics, /healthz and /readyz over HTTP there.")
@click.option("--log-level", type=LEVEL, help="[default: info]")
def frontend(
    schedulers: str | None,
    listen: tuple[str, ...],
    name: str | None,
    config: Path | None,
    metrics_listen: str | None,
    log_level: str | None,
    **connection: str | None,
) -> None:
    """Answer clients for a `rexec scheduler`.

    A frontend keeps nothing: start as many as the clients need, stop them at any time. Workers may connect to one too. Its
    store is the scheduler's unless [store] of the configuration says "remote".
    """
    addresses = None if schedulers is None else addresses_in(schedulers, "--scheduler")
    settings = configured(
        config,
        frontend__schedulers=addresses,
        frontend__name=name,
        server__listen=listen or None,
        server__metrics_listen=metrics_listen,
        server__log_level=log_level,
        **connection,
    )
    if not settings.frontend.schedulers:
        raise click.UsageError("no scheduler is named: give --scheduler, or [frontend] schedulers in the --config FILE")
    from rexec.frontend_role import running_frontend

    _run(settings, lambda: running_frontend(settings), frontend_greeting)


def _run(
    settings: Config,
    role: Callable[[], AbstractAsyncContextManager[Running]],
    greeting: Callable[[Config, tuple[str, ...]], str],
) -> None:
    from rexec import logs
    from rexec.edge import CannotServe
    from rexec.server import until_stopped

    logs.configure(settings.server)

    def ready(addresses: tuple[str, ...]) -> None:
        click.echo(greeting(settings, addresses))
        sys.stdout.flush()

    try:
        run(lambda: until_stopped(role(), ready))
    except CannotServe as error:
        raise click.ClickException(str(error)) from error


def scheduler_greeting(config: Config, addresses: tuple[str, ...]) -> str:
    """What `rexec scheduler` prints once it answers: where it is, and how to start frontends and workers for it."""
    where, access = reachable(addresses[0], socket.gethostname()), access_of(config)
    store = config.store.elsewhere or config.state_path
    lines = [
        f"rexec {__version__} schedules on {', '.join(addresses)}",
        f"  instance names {named(config)}; blobs in {store}",
        f"  start frontends with  {frontend_flags(where, access)}",
    ]
    # Workers read and write blobs where they attach, unless that is elsewhere.
    if config.store.kind != "remote":
        lines.append(f"  and workers with  {worker_flags(where, access)}")
    lines += [f"  warning: {text}" for text in warnings(config, addresses, SCHEDULER_POWERS)]
    return "\n".join([*lines, "", "Ctrl-C stops the scheduler."])


def frontend_greeting(config: Config, addresses: tuple[str, ...]) -> str:
    """What `rexec frontend` prints once it answers: where it is, and what to paste into the clients."""
    hostname, access = socket.gethostname(), access_of(config)
    lines = [
        f"rexec {__version__} serves on {', '.join(addresses)} for the scheduler at {', '.join(config.frontend.schedulers)}",
        f"  instance names {named(config)}; blobs at {config.store.elsewhere or 'the scheduler'}",
        f"  start workers with  {worker_flags(reachable(addresses[0], hostname), access)}",
        *(f"  warning: {text}" for text in warnings(config, addresses, FRONTEND_POWERS)),
    ]
    flags = client_flags(addresses[0], config.server.instance_names, True, hostname, access)
    return "\n".join([*lines, "", flags, "", "Ctrl-C stops the frontend."])


def access_of(config: Config) -> Access:
    """What a server of this configuration asks of those who connect."""
    return Access(
        tls=config.server.tls.enabled,
        certificate=bool(config.server.tls.client_ca),
        token=bool(config.auth.tokens.file or config.auth.jwt),
    )


def named(config: Config) -> str:
    """The instance names, for people."""
    return ", ".join(f'"{name}"' for name in config.server.instance_names)
