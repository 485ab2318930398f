"""What the commands have in common: the configuration that a file and options make, and the event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from rexec.config import Config, ConfigError, load, with_changes

CONFIG = click.Path(exists=True, dir_okay=False, path_type=Path)
"""The type of an option that names a configuration file."""

LEVEL = click.Choice(["debug", "info", "warning", "error"])
"""The type of an option that says what is logged."""

_IN_PAIRS = ("--tls-certificate", "--tls-key")
"""Options of which one alone is refused."""


def configured(file: Path | None, **changes: Any) -> Config:
    """The configuration of the file with what the options say, named like `rexec.config.with_changes` wants them.

    Raises click's exceptions, which name the option.
    """
    try:
        config = load(file)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    for name, value in changes.items():
        if value is None:
            continue
        try:
            with_changes(config, **{name: value})
        except ConfigError as error:
            option = "--" + name.rpartition("__")[2].replace("_", "-")
            if option in _IN_PAIRS:
                continue  # told below, if the other half is really missing
            raise click.BadParameter(str(error).partition(": ")[2] or str(error), param_hint=option) from error
    try:
        return with_changes(config, **changes)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error


def run(main_coroutine: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it on an event loop of its own."""
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main_coroutine())
