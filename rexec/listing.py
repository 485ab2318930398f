"""The whole configuration as a file: every option with its value and what it is for, so that none has to be looked up."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec

from rexec.options import Section, sections
from rexec.toml import toml_key, toml_value

_WIDTH = 100


def listing(config: msgspec.Struct) -> str:
    """`config` as TOML, which read again gives it back. Options without a value are in it as comments."""
    values: dict[str, Any] = msgspec.to_builtins(config)
    lines: list[str] = []
    for section in sections(type(config)):
        tables = list(_tables(values, section))
        if section.text:
            lines += ["", *_comment(section.text)]
        if not tables:
            lines += _section(section, section.heading, None)
        for heading, table in tables:
            lines += _section(section, heading, table)
    return "\n".join(lines).strip() + "\n"


def _tables(values: dict[str, Any], section: Section) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables of that section in `values` with their headings: none for one that is not there."""
    path = section.path[:-1] if section.named else section.path
    found: Any = values
    for name in path:
        found = None if found is None else found[name]
    if section.named:
        for name, table in (found or {}).items():
            yield f"[{'.'.join([*path, toml_key(name)])}]", table
    elif isinstance(found, dict):
        yield section.heading, found
    else:
        for table in found or []:
            yield section.heading, table


def _section(section: Section, heading: str, table: dict[str, Any] | None) -> Iterator[str]:
    absent = "# " if table is None else ""
    if heading:
        yield f"{absent}{heading}"
    for option in section.options:
        yield ""
        yield from _comment(option.text)
        default = msgspec.to_builtins(option.default) if option.default is not msgspec.UNSET else None
        value = default if table is None else table[option.name]
        if value is None:
            yield f"# {option.name} ="
        else:
            yield f"{absent}{option.name} = {toml_value(value)}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
