"""Values as TOML has them, on one line each. Python's own library only reads it."""

from __future__ import annotations

import json
import re
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+").fullmatch


def toml_value(value: Any) -> str:
    """A text, number, truth value, list or table. Raises TypeError for anything else."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            # JSON's escapes are TOML's too; of what TOML wants escaped JSON leaves DEL alone.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(toml_value, value))}]"
        case dict():
            pairs = ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case _:
            raise TypeError(f"{type(value).__name__} has no form in TOML")


def toml_key(name: str) -> str:
    """A key, in quotes if it needs them."""
    return name if _BARE(name) else toml_value(name)
