"""What is wrong with a configuration, for the person who wrote the file: where, what was expected, what was meant perhaps.

msgspec speaks of types and of paths such as `$.server.listen`; here this becomes "[server] listen: expected a list".
"""

from __future__ import annotations

import difflib
import json
import re
from enum import Enum
from typing import Any, Literal, get_args, get_origin

import msgspec

from rexec.options import Option, Section, sections
from rexec.toml import toml_value

_PLACED = re.compile(r"(?P<text>.*) - at `(?P<path>\$.*)`", re.DOTALL).fullmatch
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>[^\]]*)\]")
_EXPECTED = re.compile(r"Expected `(?P<wanted>[^`]+)`, got `(?P<got>[^`]+)`").fullmatch
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL).fullmatch
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`").fullmatch
_ENUM = re.compile(r"Invalid enum value (?P<value>.+)", re.DOTALL).fullmatch

_WORDS = {
    "array": "a list",
    "str": "a text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "a table",
}


def complaint(text: str, root: type[msgspec.Struct]) -> str:
    """The text of msgspec.ValidationError, or one of ours with " - at `$.path`" behind it, in the words of the file."""
    placed = _PLACED(text)
    said, path = (placed["text"], placed["path"]) if placed else (text, "$")
    known = sections(root)
    section, rest = _section(path, known)
    option = next((option for option in section.options if rest and option.name == rest[0]), None)
    place = " ".join(part for part in (section.heading, *rest[:1]) if part)
    entries = "".join(f", entry {int(step) + 1}" if step.isdecimal() else "" for step in rest[1:])
    if unknown := _UNKNOWN(said):
        return _unknown(unknown["name"], section, known)
    if missing := _MISSING(said):
        return f"{section.heading} {missing['name']} is missing; it has no default".strip()
    if expected := _EXPECTED(said):
        said = _expected(expected["wanted"], expected["got"], option if not entries else None)
    elif option is not None and (enum := _ENUM(said)):
        said = f"{enum['value']} is not one of {', '.join(_choices(option.kind))}"
    if place == section.heading and said.split(" ", 1)[0] in {option.name for option in section.options}:
        return f"{place} {said}".strip()  # "[server] listen is empty"
    return f"{place}{entries}: {said}" if place else said


def _section(path: str, known: tuple[Section, ...]) -> tuple[Section, list[str]]:
    """The innermost section on the path, and the steps that remain."""
    steps = [match["name"] or match["index"] for match in _STEP.finditer(path)]
    found, taken = known[0], 0
    names: list[str] = []
    for position, step in enumerate(steps, start=1):
        if found.repeated and step.isdecimal():
            taken = position
            continue
        names.append(step)
        above = next((section for section in known if section.named and section.path[:-1] == tuple(names)), None)
        if above is not None:
            continue  # what comes next is a name, for which the last part of its path stands
        if step == "...":
            names[-1] = "NAME"
        inner = next((section for section in known if section.path == tuple(names)), None)
        if inner is None:
            break
        found, taken = inner, position
    return found, steps[taken:]


def _unknown(name: str, section: Section, known: tuple[Section, ...]) -> str:
    below = {other.path[-1]: other for other in known if other.path and other.path[:-1] == section.path}
    elsewhere = [
        other for other in known if other is not section and any(name == option.name for option in other.options)
    ]
    names = [option.name for option in section.options]
    meant = difflib.get_close_matches(name, [*names, *below], 1)
    deeper = [other.heading for other in known if not other.named and other.path[-1:] == (name,)]
    where = f" in {section.heading}" if section.heading else ""
    if elsewhere:
        homes = " or ".join(other.heading or "the top of the file, above all sections" for other in elsewhere)
        hint = f"{name} belongs in {homes}" if elsewhere[0].heading else f"{name} belongs at {homes}"
    elif deeper:
        hint = f"did you mean {' or '.join(deeper)}?"
    elif meant:
        hint = f"did you mean {below[meant[0]].heading if meant[0] in below else meant[0]}?"
    elif away := difflib.get_close_matches(name, {option.name for other in known for option in other.options}, 1):
        holders = [other for other in known if any(away[0] == option.name for option in other.options)]
        homes = " or ".join(other.heading or "the top of the file" for other in holders)
        hint = f"did you mean {away[0]} in {homes}?"
    else:
        hint = f"known are {', '.join([*names, *(other.heading for other in below.values())])}"
    return f"unknown key {json.dumps(name[:100])}{where}; {hint}"


def _expected(wanted: str, got: str, option: Option | None) -> str:
    kinds = [kind for kind in wanted.split(" | ") if kind != "null"]
    words = " or ".join(_WORDS.get(kind, kind) for kind in kinds)
    if option is not None and option.name.endswith("_bytes"):
        words = 'a number of bytes, or a text such as "20GiB"'
    elif option is not None and "array" in kinds:
        example = option.default if option.default and option.default is not msgspec.UNSET else ["..."]
        words = f"a list such as {toml_value(msgspec.to_builtins(example))}"
    return f"expected {words}, got {_WORDS.get(got, got)}"


def _choices(kind: Any) -> list[str]:
    """The values that a type of few values has, wherever in it they are."""
    if get_origin(kind) is Literal:
        return [json.dumps(value) for value in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [json.dumps(member.value) for member in kind]
    return [choice for inner in get_args(kind) for choice in _choices(inner)]
