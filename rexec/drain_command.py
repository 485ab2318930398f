"""`rexec drain`: take workers out of service without a build that notices."""

from __future__ import annotations

import click

from rexec.status_commands import echo_lines, instances_of, reaching, run_shown, settings_of, terminal_width

GRACE_SECONDS = 3600.0


@click.command()
@click.argument("names", metavar="[WORKER]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All workers that you may drain.")
@click.option(
    "--property", "properties", multiple=True, metavar="NAME=VALUE",
    help="The workers that offer this, as `rexec workers --wide` lists it; may be repeated: those that offer all.",
)  # fmt: skip
@click.option("--grace", "grace_seconds", type=click.FloatRange(min=0, max=7 * 86400), default=GRACE_SECONDS,
              metavar="SECONDS", show_default=True,
              help="How long running actions may take to end. 0: none goes on.")  # fmt: skip
@click.option("--reason", default="", metavar="TEXT", help="For those who look at the workers.")
@click.option("--wait", is_flag=True, help="Return when they have left, and say meanwhile who is still there.")
@click.option("--timeout", "timeout_seconds", type=click.FloatRange(min=0), metavar="SECONDS",
              help="With --wait: for how long at most. [default: until they have left]")  # fmt: skip
@reaching
def drain(
    server: str,
    instances: tuple[str, ...],
    names: tuple[str, ...],
    every: bool,
    properties: tuple[str, ...],
    grace_seconds: float,
    reason: str,
    wait: bool,
    timeout_seconds: float | None,
    as_json: bool,
    **connection: str | None,
) -> None:
    """Take workers out of service.

    A drained worker gets no more actions. It leaves when those that it runs have ended, at once if it runs none, and its
    process ends with exit status 0. Actions that do not end within the grace go to other workers, which counts as no attempt;
    those that are known to take longer go there at once. The order cannot be taken back: a worker that has heard of it leaves.
    Started again it takes actions again.

    \b
        rexec drain build-7                      one worker, by the name that `rexec workers` shows
        rexec drain --property os=debian-11      a kind of worker
        rexec drain --all --grace 30             all, within half a minute
        rexec drain build-7 --wait && reboot     on build-7: when nothing runs there any more

    With authentication it takes the right "operate", and --wait that to execute. Exit status: 0; 1 if a named worker is not
    there, the server refuses, or --timeout is over before they have left, and standard error says why.
    """
    if (bool(names) + every + bool(properties)) != 1:
        raise click.UsageError("name workers, or say --all, or --property NAME=VALUE: one of the three")
    if timeout_seconds is not None and not wait:
        raise click.UsageError("--timeout is how long --wait waits: it takes both")
    settings = settings_of(connection)
    from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
    from protos.rexec.scheduler.v1 import fleet_pb2, status_pb2
    from rexec.drain_wait import wait_until_gone
    from rexec.status_client import StatusClient, status_client
    from rexec.status_text import columns, harmless, json_line

    request = fleet_pb2.DrainWorkersRequest(
        instances=instances_of(instances), names=names, all=every, grace_seconds=grace_seconds, reason=reason
    )
    for said in properties:
        name, separator, value = said.partition("=")
        if not name or not separator:
            raise click.BadParameter(f"{said!r}, expected NAME=VALUE", param_hint="--property")
        request.properties.append(re_pb2.Platform.Property(name=name, value=value))

    def say(text: str) -> None:
        click.echo(f"rexec: {text}", err=True)

    async def have_left(client: StatusClient, answer: fleet_pb2.DrainWorkersResponse) -> bool:
        async def look() -> list[status_pb2.FoundWorker]:
            everyone = status_pb2.FindWorkersRequest(instances=instances_of(instances))
            return [worker async for worker in client.every_worker(everyone)]

        return await wait_until_gone(
            look,
            frozenset(worker.worker_id for worker in answer.workers),
            say,
            and_all_that_leave=answer.workers_left_out > 0,
            timeout_seconds=timeout_seconds,
        )

    async def show() -> None:
        async with status_client(server, settings) as client:
            answer = await client.drain(request)
            tell(answer)
            if wait and answer.workers and not await have_left(client, answer):
                raise click.ClickException(f"they have not left within {timeout_seconds:g} s, and go on leaving")
        if answer.unknown:
            raise click.exceptions.Exit(1)

    def tell(answer: fleet_pb2.DrainWorkersResponse) -> None:
        if as_json:
            echo_lines([json_line(worker) for worker in answer.workers])
        elif answer.workers:
            rows = (
                (worker.name, str(worker.kept), str(worker.handed_back), "when it comes back" if worker.away else "now")
                for worker in answer.workers
            )
            echo_lines(columns(("WORKER", "MAY END", "HANDED BACK", "STARTS TO LEAVE"), rows, terminal_width()))
        elif not answer.unknown:
            say("no such worker")
        if answer.workers_left_out:
            say(f"and {answer.workers_left_out} more workers")
        if answer.unknown:
            say(f"no worker that you may drain is named {', '.join(map(harmless, answer.unknown))}")

    run_shown(show)
