"""The command line of the kit."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click
from grpc import aio

from integration.conformance.all_cases import CASES
from integration.conformance.options import Options, shell_hook
from integration.conformance.report import as_json, print_table, write_junit
from integration.conformance.runner import Outcome, Verdict, chosen, run_all

_SCHEMES = {"grpc://": False, "grpcs://": True, "": False}


class _Property(click.ParamType[tuple[str, str]]):
    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not name or not equals:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, text


class _Numbers(click.ParamType[frozenset[int]]):
    name = "N,N-N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[int]:
        if isinstance(value, frozenset):
            return value
        numbers: set[int] = set()
        for part in str(value).split(","):
            first, dash, last = part.partition("-")
            try:
                numbers.update(range(int(first), int(last if dash else first) + 1))
            except ValueError:
                self.fail(f"{part!r} is neither a number nor a range of numbers", param, ctx)
        return frozenset(numbers)


@click.command()
@click.option("--server", required=True, metavar="grpc://HOST:PORT", help="The server; grpcs:// for TLS.")
@click.option("--instance", default="", metavar="NAME", help="Instance name. [default: the empty one]")
@click.option("--only", type=_Numbers(), default=frozenset(), help="Behaviours to try, such as 1,5,39-42.")
@click.option("--slow", is_flag=True, help="Try the cases too that take more than a minute, or gigabytes.")
@click.option("--json", "json_wanted", is_flag=True, help="Print JSON in place of the table.")
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write JUnit XML too.")
@click.option("--timeout-seconds", default=30.0, show_default=True, type=click.FloatRange(min=1))
@click.option("--tls-ca", default="", metavar="FILE", help="PEM file of the authority to trust with grpcs://.")
@click.option("--token", default="", help="Bearer token of the run.")
@click.option("--platform", type=_Property(), multiple=True, help="Property that every action asks for; repeatable.")
@click.option("--busybox", type=click.File("rb"), help="Static busybox for workers that see the input root only.")
@click.option("--offered", type=_Property(), default=("OSFamily", "linux"), help="Property that a worker offers.")
@click.option("--absent", type=_Property(), default=("OSFamily", "plan9"), help="Known property that none offers.")
@click.option("--other-instance", metavar="NAME", help="Another instance name, best one with slashes.")
@click.option("--read-only-token", default="", help="Token of someone who may not update the action cache.")
@click.option("--no-execute-token", default="", help="Token of someone who may not execute.")
@click.option("--restart-command", default="", metavar="CMD", help="Kills the server and starts it again.")
@click.option("--lose-worker-command", default="", metavar="CMD", help="Kills a worker that runs an action.")
@click.option("--kill-action-command", default="", metavar="CMD", help="Kills the action's process with $MARKER.")
@click.option("--store-bytes", default=0, metavar="N", help="The store holds at most so much and may be filled.")
@click.option("--queue-limit", default=0, metavar="N", help="So many actions may wait, one more is refused.")
@click.option("--leak-variable", default="", metavar="NAME", help="Variable in the environment of the workers.")
def main(server: str, only: frozenset[int], json_wanted: bool, junit: Path | None, slow: bool, **settings: Any) -> None:
    """Try a remote execution server's behaviour. Exit status 0 if nothing failed, 1 if something did, 2 if it cannot be
    tried.
    """
    scheme, separator, target = server.partition("://")
    if not separator:
        scheme, target = "", server
    if scheme + separator not in _SCHEMES or not target:
        raise click.BadParameter(f"{server!r} is not grpc://HOST:PORT or grpcs://HOST:PORT", param_hint="--server")
    for hook in ("restart_command", "lose_worker_command", "kill_action_command"):
        settings[hook] = shell_hook(settings[hook]) if settings[hook] else None
    settings["busybox"] = settings["busybox"].read() if settings["busybox"] else b""
    options = Options(target=target, tls=_SCHEMES[scheme + separator], slow=slow, **settings)
    try:
        cases = chosen(CASES, only, slow=slow)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--only") from error
    done: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        done.append(outcome)
        if sys.stderr.isatty():
            click.echo(f"\r{len(done)} of {len(cases)} ", nl=False, err=True)

    try:
        outcomes = asyncio.run(run_all(cases, options, tell))
    except aio.AioRpcError as error:
        click.echo(f"{server} does not answer GetCapabilities: {error.code().name}: {error.details()}", err=True)
        sys.exit(2)
    if json_wanted:
        click.echo(as_json(outcomes))
    else:
        print_table(outcomes)
    if junit is not None:
        write_junit(outcomes, junit, server)
    sys.exit(any(outcome.verdict is Verdict.FAIL for outcome in outcomes))


if __name__ == "__main__":
    main()
