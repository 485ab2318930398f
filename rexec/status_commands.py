"""The commands that show what goes on: `rexec ps`, `rexec top`, `rexec workers`."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from rexec.address import channel_target
from rexec.command_line import Command, configured, connecting

if TYPE_CHECKING:
    from cas.connection_settings import ConnectionSettings
    from protos.rexec.scheduler.v1 import status_pb2

STAGES = {
    "queued": ["QUEUED"],
    "executing": ["EXECUTING"],
    "completed": ["COMPLETED"],
    "all": ["QUEUED", "EXECUTING", "COMPLETED"],
}
"""REAPI ExecutionStage.Value by what is said on the command line."""

DEFAULT_SERVER = "grpc://127.0.0.1:8980"


def reaching(command: Command) -> Command:
    """The options that say which server, and who asks."""
    for option in reversed(
        (
            click.option(
                "--server",
                default=DEFAULT_SERVER,
                envvar="REXEC_SERVER",
                metavar="grpc[s]://HOST:PORT",
                callback=_checked_server,
                help=f"The server to ask. [default: $REXEC_SERVER or {DEFAULT_SERVER}]",
            ),
            click.option(
                "--instance",
                "instances",
                multiple=True,
                metavar="NAME",
                help='Only this instance; may be repeated, "" is the one without a name. [default: all that you may use]',
            ),
            connecting,
            click.option(
                "--json", "as_json", is_flag=True, help="One JSON object a line, with everything that is known."
            ),
        )
    ):
        command = option(command)
    return command


def _checked_server(_context: click.Context, _parameter: click.Parameter, server: str) -> str:
    try:
        channel_target(server)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return server


@click.command()
@click.option("--stage", "stages", multiple=True, type=click.Choice(list(STAGES)),
              help="Only these; may be repeated. [default: queued and executing]")  # fmt: skip
@click.option("--tenant", metavar="NAME", help="Only this tenant's.")
@click.option("--user", metavar="NAME", help="Only this user's.")
@click.option("--invocation", metavar="ID", help="Only this build's: the id as `rexec ps --wide` shows it.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many. [default: all]")
@click.option(
    "--wide", "-w", is_flag=True, help="Whole names and reasons, however long. [default: if not on a terminal]"
)
@click.option("--quiet", "-q", is_flag=True, help="Names of operations only, such as `rexec logs` takes.")
@reaching
def ps(
    server: str,
    instances: tuple[str, ...],
    stages: tuple[str, ...],
    tenant: str | None,
    user: str | None,
    invocation: str | None,
    limit: int | None,
    wide: bool,
    quiet: bool,
    as_json: bool,
    **connection: str | None,
) -> None:
    """List operations: where each is, and why it waits.

    One line for each, in the order in which they came. Exit status: 0, also if there is none; 1 if the server does not tell,
    and standard error says why.
    """
    settings = settings_of(connection)
    from protos.rexec.scheduler.v1 import status_pb2
    from rexec.ps_command import operation_lines
    from rexec.status_client import status_client
    from rexec.status_text import harmless, json_line

    request = status_pb2.FindOperationsRequest(
        instances=instances_of(instances),
        tenant=tenant,
        user=user,
        invocation=invocation,
        stages=sorted({name for stage in stages for name in STAGES[stage]}),
    )

    async def show() -> None:
        async with status_client(server, settings) as client:
            found = client.every_operation(request, limit)
            if as_json or quiet:
                async for operation in found:
                    click.echo(json_line(operation) if as_json else harmless(operation.name))
                return
            operations = [operation async for operation in found]
        if operations:
            echo_lines(operation_lines(operations, None if wide else terminal_width()))
        else:
            click.echo("rexec: no operation waits or runs" if not stages else "rexec: no such operation", err=True)

    run_shown(show)


@click.command()
@click.option("--wide", "-w", is_flag=True, help="Whole lines, however long. [default: if not on a terminal]")
@reaching
def workers(
    server: str, instances: tuple[str, ...], wide: bool, as_json: bool, **connection: str | None
) -> None:  # fmt: skip
    """List workers: their state, how they are, what they offer and what they run.

    What a worker offers are the platform properties that actions may require: its compilers (gcc=12.2.0) and the SHA-256 of each
    (gcc-digest, with --wide or --json), its os, libc, cores and what is configured. `rexec drain` takes workers out of service.

    Exit status: 0, also if there is none; 1 if the server does not tell, and standard error says why.
    """
    settings = settings_of(connection)
    from protos.rexec.scheduler.v1 import status_pb2
    from rexec.no_workers import no_workers
    from rexec.ps_command import worker_lines
    from rexec.status_client import status_client
    from rexec.status_text import harmless, json_line

    request = status_pb2.FindWorkersRequest(instances=instances_of(instances))

    async def show() -> None:
        async with status_client(server, settings) as client:
            found = [worker async for worker in client.every_worker(request)]
            if not found and not as_json:
                overview = await client.overview(status_pb2.GetOverviewRequest(instances=instances_of(instances)))
                click.echo(f"rexec: {harmless(no_workers(overview))}", err=True)
        if as_json:
            echo_lines([json_line(worker) for worker in found])
        elif found:
            echo_lines(worker_lines(found, None if wide else terminal_width()))

    run_shown(show)


@click.command()
@click.option("--once", is_flag=True, help="Show one picture and end.")
@click.option("--interval", type=click.FloatRange(min=0.2), default=2.0, show_default=True, metavar="SECONDS",
              help="How often the picture is drawn.")  # fmt: skip
@reaching
def top(
    server: str,
    instances: tuple[str, ...],
    once: bool,
    interval: float,
    as_json: bool,
    **connection: str | None,
) -> None:
    """Watch the queue, the workers and what builds cost.

    q or Ctrl-C leaves. An ETA supposes that the build keeps the slots that it has now. Without a terminal there is one
    picture. Exit status: 0; 1 if the server does not tell, and standard error says why.
    """
    settings = settings_of(connection)
    from protos.rexec.scheduler.v1 import status_pb2
    from rexec.top_command import show_live, show_once

    request = status_pb2.GetOverviewRequest(instances=instances_of(instances))
    live = not once and not as_json
    if live and not (sys.stdin.isatty() and sys.stdout.isatty()):
        click.echo("rexec: not on a terminal, so this is shown once; --once says nothing of it", err=True)
        live = False
    if live:
        with suppress(click.exceptions.Exit):  # Ctrl-C is the way to leave
            run_shown(lambda: show_live(server, settings, request, interval))
    else:
        run_shown(lambda: show_once(server, settings, request, as_json=as_json, output=sys.stdout))


def settings_of(options: dict[str, str | None]) -> ConnectionSettings:
    try:
        return configured(None, **options).connection
    except click.ClickException as error:  # nothing but options was said, so it is told in their words
        raise click.UsageError(error.message.replace("_", "-")) from error


def instances_of(names: tuple[str, ...]) -> status_pb2.Instances | None:
    from protos.rexec.scheduler.v1 import status_pb2

    return status_pb2.Instances(names=names) if names else None


def terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def echo_lines(lines: list[str]) -> None:
    for line in lines:
        click.echo(line)


def run_shown(show: Callable[[], Coroutine[Any, Any, None]]) -> None:
    from rexec.status_client import CannotShow

    try:
        asyncio.run(show())
    except CannotShow as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None
