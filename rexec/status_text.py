"""Texts and numbers of others, fit for a terminal: harmless, short, in columns; and whole, as JSON.

What is shown comes from clients and workers, through a server that need not be a friend either. A name with an escape
sequence in it must not reach the terminal as one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from google.protobuf.message import Message
from rich.cells import cell_len, set_cell_size

_GAP: Final = "  "
_MOST_CELLS: Final = 40
"""Of a column that is not the last one, on a terminal."""


def harmless(text: str) -> str:
    """The text with everything that is not printable written as an escape: control characters, line ends, marks that turn
    the direction of writing round."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def cut(text: str, cells: int) -> str:
    """As much of a harmless text as goes into so many cells of a terminal, with a mark if something is missing."""
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, cells - 1).rstrip() + "…" if cells > 1 else "…"[:cells]


def duration(seconds: float) -> str:
    """At most six characters for anything up to a hundred days, such as 0.4s, 59s, 3m05s, 2h10m, 4d03h."""
    if not seconds > 0:  # clocks that differ, and what is not a number
        return "0s"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = int(min(seconds, 9999 * 86400.0))
    if whole < 60:
        return f"{whole}s"
    for unit, size, below, below_size in (("m", 60, "s", 1), ("h", 3600, "m", 60), ("d", 86400, "h", 3600)):
        if whole < size * (60 if unit == "m" else 24) or unit == "d":
            return f"{whole // size}{unit}{whole % size // below_size:02}{below}"
    raise AssertionError("days have no end")


def size(amount_bytes: float) -> str:
    """Such as 512B, 1.5KiB, 20GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount_bytes < 1024 or unit == "TiB":
            short = f"{amount_bytes:.1f}" if amount_bytes < 10 and unit != "B" else f"{amount_bytes:.0f}"
            return short + unit
        amount_bytes /= 1024
    raise AssertionError("the last unit takes all")


def money(amount: float, currency: str) -> str:
    """With two places, more for small amounts."""
    places = 2 if amount >= 1 or amount == 0 else 4
    return f"{amount:.{places}f} {harmless(currency)}".rstrip()


def columns(titles: Sequence[str], rows: Iterable[Sequence[str]], width: int | None) -> list[str]:
    """Lines of a table, its titles first. With a `width` in cells nothing is longer; the last column has what is left."""
    table = [list(titles), *([harmless(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(row[place]) for row in table) for place in range(len(titles))]
    if width is not None:
        widths = [min(cells, _MOST_CELLS) for cells in widths[:-1]] + widths[-1:]
    lines = []
    for row in table:
        cells = [set_cell_size(cut(cell, most), most) for cell, most in zip(row[:-1], widths, strict=False)]
        line = _GAP.join([*cells, row[-1]]).rstrip()
        lines.append(line if width is None else cut(line, width))
    return lines


def plain(message: Message) -> dict[str, Any]:
    """Every field of a message by its name, for JSON: enums by their lower-case names, null for what is not set."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def json_line(message: Message) -> str:
    """The message as one line of ASCII."""
    return json.dumps(plain(message))


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return dict(value)
        return [_value(field, item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: Any, value: Any) -> Any:
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return named.name.lower() if named is not None else value
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None  # JSON has no word for it
    return value
