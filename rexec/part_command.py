"""`rexec part`: one process of `rexec serve --processes`, started by the supervisor (rexec/supervisor.py) and by nobody else.

The configuration comes from standard input as JSON, since it is made of a file, options and what the supervisor has decided.
As soon as the process answers it tells its supervisor, in one line, what those beside it need to know, and from then on every few
seconds that it lives.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from rexec.command_line import CONFIG, run
from rexec.config import Config

if TYPE_CHECKING:
    from rexec.edge import Running


ALIVE_SECONDS: Final = 5.0
"""How often a process says that it lives: well within rexec.kept_process.SILENT_SECONDS."""


@click.command(hidden=True)
@click.argument("role", type=click.Choice(["core", "frontend"]))
@click.option("--parent-pid", type=click.IntRange(min=1), required=True, metavar="PID")
@click.option("--config", type=CONFIG, metavar="FILE", help="For workers that this process starts.")
def part(role: str, parent_pid: int, config: Path | None) -> None:
    """A process of `rexec serve --processes`."""
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=Config)
    from rexec import logs
    from rexec.edge import CannotServe
    from rexec.server import until_stopped
    from rexec.worker.processes import die_with_parent

    logs.configure(settings.server)
    # Ended by the supervisor, or with it.
    die_with_parent(signal.SIGTERM)
    if os.getppid() != parent_pid:
        return
    try:
        run(lambda: until_stopped(_role(role, settings, config), lambda _addresses: None, tell))
    except CannotServe as error:
        raise click.ClickException(str(error)) from error


def tell(running: Running) -> None:
    """Tell the supervisor that this process answers."""
    sys.stdout.write(json.dumps({"addresses": running.addresses, "metrics_port": running.metrics_port}) + "\n")
    sys.stdout.flush()
    loop = asyncio.get_running_loop()

    def live() -> None:
        with suppress(BrokenPipeError):  # the supervisor is gone, and this process goes with it
            sys.stdout.write("{}\n")
            sys.stdout.flush()
        loop.call_later(ALIVE_SECONDS, live)

    loop.call_later(ALIVE_SECONDS, live)


def _role(role: str, config: Config, config_file: Path | None) -> AbstractAsyncContextManager[Running]:
    if role == "core":
        from rexec.scheduler_role import running_scheduler

        return running_scheduler(config, as_core=True, config_file=config_file)
    from rexec.frontend_role import running_frontend

    return running_frontend(config, beside_core=True)
