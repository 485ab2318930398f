"""The command line: `rexec serve`, `rexec worker` and what looks at them; the other roles are in rexec/role_commands.py."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import click

from rexec import __version__
from rexec.address import channel_target
from rexec.agent_copy import copy_agent_command
from rexec.autoscale.settings import PoolKind
from rexec.autoscale_command import autoscale
from rexec.client_flags import client_flags, reachable, worker_flags
from rexec.command_line import CONFIG, configured, properties_in, resources_in, run
from rexec.config import Config, ConfigError
from rexec.drain_command import drain
from rexec.exposure import warnings
from rexec.external_metrics_command import external_metrics
from rexec.local_pools import autoscaling_of
from rexec.part_command import part
from rexec.role_commands import access_of, frontend, named, scheduler
from rexec.status_commands import DEFAULT_SERVER, ps, top, workers

# Read by gRPC when it is imported: its notices on standard error mean nothing to users, and its fork handlers, which
# nothing here needs, would write one for every process started.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rexec")
def main() -> None:
    """Run the actions of Bazel, recc, BuildStream, Buck2 and other Remote Execution API clients.

    \b
    On one machine, everything in one command:
        rexec serve
    and more machines to help it:
        rexec worker --server grpc://HOST:PORT
    The same in parts, on as many machines as it takes:
        rexec scheduler
        rexec frontend --scheduler grpc://HOST:PORT
        rexec worker --server grpc://HOST:PORT
    Workers that come and go with the work, as processes or as pods:
        rexec serve --workers 0..8
        rexec autoscale --server grpc://HOST:PORT --config FILE
    """


main.add_command(scheduler)
main.add_command(part)
main.add_command(frontend)
main.add_command(autoscale)
main.add_command(external_metrics)
main.add_command(ps)
main.add_command(top)
main.add_command(workers)
main.add_command(drain)
main.add_command(copy_agent_command)


@main.command()
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


@main.command()
@click.option("--server", required=True, metavar="grpc[s]://HOST:PORT", help="The rexec server to work for.")
@click.option(
    "--scheduler",
    metavar="ADDR[,ADDR]",
    help="The scheduler, and those that stand by for it, to take actions from directly. [default: through the server]",
)
@click.option(
    "--slots", type=click.IntRange(min=1), metavar="N", help="Actions to run at once. [default: one for each core]"
)
@click.option("--cache-dir", metavar="DIR", help="Where input files are kept. [default: WORK_DIR/cache]")
@click.option(
    "--work-dir",
    metavar="DIR",
    help="Where actions run. [default: $XDG_STATE_HOME/rexec-worker or ~/.local/state/rexec-worker]",
)
@click.option("--tls-ca", metavar="FILE", help="Authorities to trust for grpcs://. [default: the public ones]")
@click.option("--tls-certificate", metavar="FILE", help="Certificate to show, if the server wants one; with --tls-key.")
@click.option("--tls-key", metavar="FILE", help="Private key of the certificate.")
@click.option("--token-file", metavar="FILE", help="File with the bearer token to show.")
@click.option(
    "--name",
    envvar="REXEC_WORKER_NAME",
    metavar="NAME",
    help="The worker's name in results and logs. [default: $REXEC_WORKER_NAME or HOST-PID]",
)
@click.option(
    "--property",
    "properties",
    multiple=True,
    metavar="NAME=VALUE",
    help="Platform property to offer; may be repeated, also for several values of one. Replaces what [worker.properties] "
    "has of that name.",
)
@click.option(
    "--resource",
    "resources",
    multiple=True,
    metavar="NAME=AMOUNT",
    help="What its actions may use up together: cpu in thousandths of a core, memory in bytes, or any other. Replaces what "
    "[worker.resources] has of that name.",
)
@click.option(
    "--instance-name",
    "instance_names",
    multiple=True,
    metavar="NAME",
    help="Instance to work for; may be repeated. [default: all of them]",
)
@click.option(
    "--cache-max-bytes", type=click.IntRange(min=1), metavar="BYTES", help="Of input files kept. [default: 10 GiB]"
)
@click.option(
    "--drain-grace-seconds",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long running actions may go on after SIGTERM. [default: 25]",
)
@click.option("--config", type=CONFIG, metavar="FILE", help="TOML file; its [worker] section holds every other option.")
@click.option(
    "--parent-pid",
    type=click.IntRange(min=1),
    metavar="PID",
    help="End when this process, which starts the worker, ends.",
)
@click.option("--metrics-listen", metavar="HOST:PORT", help="Answer /metrics, /healthz and /readyz over HTTP there.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
def worker(
    server: str,
    scheduler: str | None,
    slots: int | None,
    cache_dir: str | None,
    work_dir: str | None,
    tls_ca: str | None,
    tls_certificate: str | None,
    tls_key: str | None,
    token_file: str | None,
    name: str | None,
    properties: tuple[str, ...],
    resources: tuple[str, ...],
    instance_names: tuple[str, ...],
    cache_max_bytes: int | None,
    drain_grace_seconds: float | None,
    config: Path | None,
    parent_pid: int | None,
    metrics_listen: str | None,
    log_level: str | None,
) -> None:
    """Run actions for a server.

    Only connects outwards. SIGTERM, or `rexec drain`, lets running actions end and hands back what does not end in time
    ([worker] drain_grace_seconds); a second SIGTERM hands back all of it. Exit status: 0 once it has left, 1 if it cannot work.

    At its start it looks for compilers and what else the machine is, and offers it as platform properties such as gcc=12.2.0
    and os=debian-12 ([worker] announce); `rexec workers --wide` lists them.
    """
    try:
        channel_target(server)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--server") from error
    from_file = configured(config).worker
    settings = configured(
        config,
        worker__properties={**from_file.properties, **properties_in(properties)} if properties else None,
        worker__resources={**from_file.resources, **resources_in(resources)} if resources else None,
        worker__scheduler=scheduler.split(",") if scheduler is not None else None,
        worker__slots=slots,
        worker__cache_dir=cache_dir,
        worker__work_dir=work_dir,
        worker__name=name,
        worker__instance_names=list(instance_names) or None,
        worker__cache_max_bytes=cache_max_bytes,
        worker__drain_grace_seconds=drain_grace_seconds,
        connection__tls_ca=tls_ca,
        connection__tls_certificate=tls_certificate,
        connection__tls_key=tls_key,
        connection__token_file=token_file,
        worker__parent_pid=parent_pid,
        worker__metrics_listen=metrics_listen,
        server__log_level=log_level,
    )
    from rexec import logs
    from rexec.worker_process import CannotWork, work

    logs.configure(settings.server)
    try:
        run(lambda: work(server, settings))
    except CannotWork as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("operation")
@click.option("--server", default=DEFAULT_SERVER, envvar="REXEC_SERVER", metavar="grpc[s]://HOST:PORT",
              help=f"The server to ask. [default: $REXEC_SERVER or {DEFAULT_SERVER}]")  # fmt: skip
@click.option("--instance", default="", metavar="NAME", help="Instance name to look for an action's operation in.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the action has ended.")
@click.option("--stdout", "outputs", flag_value="stdout", multiple=True, help="Standard output only.")
@click.option("--stderr", "outputs", flag_value="stderr", multiple=True, help="Standard error only.")
@click.option("--tls-ca", metavar="FILE", help="Authorities to trust for grpcs://. [default: the public ones]")
@click.option("--tls-certificate", metavar="FILE", help="Certificate to show, if the server wants one; with --tls-key.")
@click.option("--tls-key", metavar="FILE", help="Private key of the certificate.")
@click.option("--token-file", metavar="FILE", help="File with the bearer token to show.")
def logs(
    operation: str,
    server: str,
    instance: str,
    follow: bool,
    outputs: tuple[str, ...],
    tls_ca: str | None,
    tls_certificate: str | None,
    tls_key: str | None,
    token_file: str | None,
) -> None:
    """Show what an action prints, while it runs or afterwards.

    OPERATION is the name of an operation, or the digest of an action as HASH/SIZE. Standard output goes to standard
    output, standard error to standard error. Exit status: 0, or 1 if there is nothing to show.
    """
    try:
        channel_target(server)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--server") from error
    settings = configured(
        None,
        connection__tls_ca=tls_ca,
        connection__tls_certificate=tls_certificate,
        connection__tls_key=tls_key,
        connection__token_file=token_file,
    )
    from rexec.logs_command import NoLogs, Wanted, show_logs

    targets = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}

    def write(output: str, data: bytes) -> None:
        targets[output].write(data)
        targets[output].flush()

    wanted = Wanted(operation, instance, outputs or ("stdout", "stderr"), follow)

    async def show() -> None:
        if not await show_logs(server, settings.connection, wanted, write):
            click.echo("rexec: the action has not ended; --follow waits for it", err=True)

    try:
        run(show)
    except NoLogs as error:
        raise click.ClickException(str(error)) from error


@main.command("check-config")
@click.argument("file", type=CONFIG)
def check_config(file: Path) -> None:
    """Check a configuration FILE.

    Exit status: 0 if `rexec serve --config FILE` would take it, else 1, and what is wrong is said.
    """
    settings = configured(file)
    from rexec.auth.authentication import Authentication
    from rexec.auth.credentials import AuthUnusable
    from rexec.tls import read

    try:
        Authentication(settings.auth)
        if settings.server.tls.enabled:
            read(settings.server.tls)
        state_path = settings.state_path
    except (AuthUnusable, ConfigError) as error:
        raise click.ClickException(f"{file}: {error}") from error
    click.echo(f"{file}: good")
    click.echo(f"  listens on {', '.join(settings.server.listen)}; instance names {named(settings)}")
    click.echo(f"  keeps its data in {kept_in(settings, state_path)}; {local_workers(settings)}")
    for text in warnings(settings, settings.server.listen):
        click.echo(f"  warning: {text}")


@main.command("config")
@click.argument("file", type=CONFIG, required=False)
def config_command(file: Path | None) -> None:
    """Print every option, explained.

    The output is a configuration file with the values of FILE, or with the defaults, and what each is for.
    """
    from rexec.listing import listing

    click.echo(listing(configured(file)), nl=False)


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
    if slots or not pools:
        return f"{slots} local slot{'' if slots == 1 else 's'}"
    of_each = f"{pools[0].slots} slot{'' if pools[0].slots == 1 else 's'} each"
    return f"{sum(pool.min for pool in pools)} to {sum(pool.max for pool in pools)} local workers as there is work, {of_each}"


def pool_lines(config: Config) -> list[str]:
    """The pools of workers elsewhere."""
    pools = autoscaling_of(config).pools
    return [f"  pool {pool.name}: {pool.min} to {pool.max} pods" for pool in pools if pool.kind is PoolKind.KUBERNETES]
