"""What the commands have in common: the configuration that a file and options make, and the event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from rexec.address import channel_target
from rexec.config import Config, ConfigError, load, with_changes

CONFIG = click.Path(exists=True, dir_okay=False, path_type=Path)
"""The type of an option that names a configuration file."""

LEVEL = click.Choice(["debug", "info", "warning", "error"])
"""The type of an option that says what is logged."""

Command = TypeVar("Command", bound=Callable[..., None])

_IN_PAIRS = ("--tls-certificate", "--tls-key")
"""Options of which one alone is refused."""


def connecting(command: Command) -> Command:
    """The options that say who asks, for a command that takes them as `**connection` and hands that on to `configured`."""
    for option in reversed(
        (
            click.option(
                "--tls-ca",
                "connection__tls_ca",
                metavar="FILE",
                help="Authorities to trust for grpcs://. [default: the public ones]",
            ),
            click.option(
                "--tls-certificate",
                "connection__tls_certificate",
                metavar="FILE",
                help="Certificate to show, if the server wants one; with --tls-key.",
            ),
            click.option("--tls-key", "connection__tls_key", metavar="FILE", help="Private key of the certificate."),
            click.option(
                "--token-file", "connection__token_file", metavar="FILE", help="File with the bearer token to show."
            ),
        )
    ):
        command = option(command)
    return command


def addresses_in(text: str, option: str) -> tuple[str, ...]:
    """The servers of an option ADDR[,ADDR]. Raises click.BadParameter for what is no address of one."""
    addresses = tuple(part.strip() for part in text.split(","))
    for address in addresses:
        try:
            channel_target(address)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=option) from error
    return addresses


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


def properties_in(options: Sequence[str]) -> dict[str, list[str]]:
    """The platform properties in NAME=VALUE options, with all values of each name. Raises click.BadParameter."""
    properties: dict[str, list[str]] = {}
    for name, value in _pairs("--property", options, "NAME=VALUE"):
        properties.setdefault(name, []).append(value)
    return properties


def environment_in(options: Sequence[str]) -> dict[str, str]:
    """The variables in NAME=VALUE options, the last one of each name. Raises click.BadParameter."""
    return dict(_pairs("--environment", options, "NAME=VALUE"))


def resources_in(options: Sequence[str]) -> dict[str, int]:
    """The amounts in NAME=AMOUNT options. Raises click.BadParameter."""
    resources = {}
    for name, amount in _pairs("--resource", options, "NAME=AMOUNT"):
        if not (amount.isascii() and amount.isdecimal() and len(amount) < 20):
            raise click.BadParameter(f"{name}={amount[:80]}, expected a whole number", param_hint="--resource")
        resources[name] = int(amount)
    return resources


def _pairs(option: str, said: Sequence[str], form: str) -> Iterator[tuple[str, str]]:
    for text in said:
        name, sign, value = text.partition("=")
        if not name or not sign:
            raise click.BadParameter(f"{text[:80]!r}, expected {form}", param_hint=option)
        yield name, value


def run(main_coroutine: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it on an event loop of its own. Raises click's exceptions for a configuration that turns out not to be usable here."""
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(main_coroutine())
        except ConfigError as error:
            raise click.ClickException(str(error)) from error
