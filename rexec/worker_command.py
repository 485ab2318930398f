"""`rexec worker`: the command."""

from __future__ import annotations

from pathlib import Path

import click

from rexec.address import channel_target
from rexec.command_line import CONFIG, configured, connecting, environment_in, properties_in, resources_in, run


@click.command()
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
@connecting
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
    "--environment",
    multiple=True,
    metavar="NAME=VALUE",
    help="Variable that actions start with; may be repeated. Replaces what [worker.environment] has of that name.",
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
    name: str | None,
    properties: tuple[str, ...],
    environment: tuple[str, ...],
    resources: tuple[str, ...],
    instance_names: tuple[str, ...],
    cache_max_bytes: int | None,
    drain_grace_seconds: float | None,
    config: Path | None,
    parent_pid: int | None,
    metrics_listen: str | None,
    log_level: str | None,
    **connection: str | None,
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
        worker__environment={**from_file.environment, **environment_in(environment)} if environment else None,
        worker__resources={**from_file.resources, **resources_in(resources)} if resources else None,
        worker__scheduler=scheduler.split(",") if scheduler is not None else None,
        worker__slots=slots,
        worker__cache_dir=cache_dir,
        worker__work_dir=work_dir,
        worker__name=name,
        worker__instance_names=list(instance_names) or None,
        worker__cache_max_bytes=cache_max_bytes,
        worker__drain_grace_seconds=drain_grace_seconds,
        worker__parent_pid=parent_pid,
        worker__metrics_listen=metrics_listen,
        server__log_level=log_level,
        **connection,
    )
    from rexec import logs
    from rexec.worker_process import CannotWork, work

    logs.configure(settings.server)
    try:
        run(lambda: work(server, settings))
    except CannotWork as error:
        raise click.ClickException(str(error)) from error
