"""What can be configured, read off the settings structs themselves: sections, options, types, defaults and their text."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import msgspec


@dataclass(frozen=True, slots=True)
class Option:
    """One key of a section."""

    name: str
    kind: Any
    """Its type, as annotated."""
    default: Any
    """msgspec.UNSET if it has to be given."""
    text: str
    """The docstring below the field, on one line; empty without one."""


@dataclass(frozen=True, slots=True)
class Section:
    """One table of the file; the first one is the file itself."""

    path: tuple[str, ...]
    kind: type[msgspec.Struct]
    options: tuple[Option, ...]
    repeated: bool = False
    """Whether there may be several: [[path]]."""
    named: bool = False
    """Whether there may be several with names of their own, for which the last part of the path stands: [path.NAME]."""

    @property
    def heading(self) -> str:
        """As in the file, "" for the file itself."""
        name = ".".join(self.path)
        return (f"[[{name}]]" if self.repeated else f"[{name}]") if name else ""

    @property
    def text(self) -> str:
        """What the section is about."""
        return " ".join((self.kind.__doc__ or "").split()) if self.path else ""


def sections(root: type[msgspec.Struct]) -> tuple[Section, ...]:
    """Every section of a configuration of type `root`, each before those below it."""
    return tuple(_sections(root, ()))


def _sections(
    kind: type[msgspec.Struct], path: tuple[str, ...], repeated: bool = False, named: bool = False
) -> Iterator[Section]:
    fields = msgspec.structs.fields(kind)
    texts = _texts(kind)
    options = tuple(
        Option(field.name, field.type, _default(field), texts.get(field.name, ""))
        for field in fields
        if struct_in(field.type) is None
    )
    yield Section(path, kind, options, repeated, named)
    for field in fields:
        below = struct_in(field.type)
        if below is None:
            continue
        origins = _origins(field.type) if field.type is not below else set()
        if dict in origins:
            yield from _sections(below, (*path, field.name, "NAME"), named=True)
        else:
            yield from _sections(below, (*path, field.name), repeated=tuple in origins)


def struct_in(kind: Any) -> type[msgspec.Struct] | None:
    """The struct that a type is, or has inside (X | None, tuple[X, ...]); None if there is none."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for inner in get_args(kind) if (found := struct_in(inner)) is not None), None)


def _origins(kind: Any) -> set[Any]:
    return {getattr(kind, "__origin__", None), *(getattr(inner, "__origin__", None) for inner in get_args(kind))}


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else msgspec.UNSET


@cache
def _texts(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The docstring below each field, which Python itself throws away."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        match before, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
