"""The command line: what all its commands are, and those that are small."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from rexec import __version__
from rexec.address import channel_target
from rexec.agent_copy import copy_agent_command
from rexec.autoscale_command import autoscale
from rexec.command_line import CONFIG, configured, connecting, run
from rexec.config import ConfigError
from rexec.drain_command import drain
from rexec.exposure import warnings
from rexec.external_metrics_command import external_metrics
from rexec.part_command import part
from rexec.role_commands import frontend, named, scheduler
from rexec.serve_command import kept_in, local_workers, pool_lines, require_server_of_pods, serve
from rexec.status_commands import DEFAULT_SERVER, ps, top, workers
from rexec.worker_command import worker

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


main.add_command(serve)
main.add_command(worker)
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
@click.argument("operation")
@click.option("--server", default=DEFAULT_SERVER, envvar="REXEC_SERVER", metavar="grpc[s]://HOST:PORT",
              help=f"The server to ask. [default: $REXEC_SERVER or {DEFAULT_SERVER}]")  # fmt: skip
@click.option("--instance", default="", metavar="NAME", help="Instance name to look for an action's operation in.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the action has ended.")
@click.option("--stdout", "outputs", flag_value="stdout", multiple=True, help="Standard output only.")
@click.option("--stderr", "outputs", flag_value="stderr", multiple=True, help="Standard error only.")
@connecting
def logs(
    operation: str,
    server: str,
    instance: str,
    follow: bool,
    outputs: tuple[str, ...],
    **connection: str | None,
) -> None:
    """Show what an action prints, while it runs or afterwards.

    OPERATION is the name of an operation, or the digest of an action as HASH/SIZE. Standard output goes to standard
    output, standard error to standard error. Exit status: 0, or 1 if there is nothing to show.
    """
    try:
        channel_target(server)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--server") from error
    settings = configured(None, **connection)
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

    Exit status: 0 if `rexec serve --config FILE` would take it, else 1, and what is wrong is said. Not looked at:
    pod templates, buckets, clusters, and whether optional libraries are installed.
    """
    settings = configured(file)
    from rexec.auth.authentication import Authentication
    from rexec.auth.credentials import AuthUnusable
    from rexec.tls import read

    try:
        Authentication(settings.auth)
        if settings.server.tls.enabled:
            read(settings.server.tls)
        require_server_of_pods(settings)
        state_path = settings.state_path
    except (AuthUnusable, ConfigError) as error:
        raise click.ClickException(f"{file}: {error}") from error
    click.echo(f"{file}: good")
    click.echo(f"  listens on {', '.join(settings.server.listen)}; instance names {named(settings)}")
    click.echo(f"  keeps its data in {kept_in(settings, state_path)}; {local_workers(settings)}")
    for line in pool_lines(settings):
        click.echo(line)
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
