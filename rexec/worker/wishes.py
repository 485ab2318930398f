"""What an action asks for of an isolation that has choices, through platform properties.

Names and values are those that BuildStream and the sandboxes around it use (unixUID, unixGID, network), and FileSystemRoot,
which is ours. A name that is missing leaves the default; one that is there twice, or has no possible value, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cas.errors import FailedPrecondition, MalformedRequest
from rexec.worker.bubblewrap_settings import RootKind

USER_PROPERTY: Final = "unixUID"
GROUP_PROPERTY: Final = "unixGID"
NETWORK_PROPERTY: Final = "network"
ROOT_PROPERTY: Final = "FileSystemRoot"

ANY_VALUE: Final = "*"
"""Offered for a property of which a worker takes every value."""

MAX_ID: Final = (1 << 31) - 1
"""Of users and groups: bwrap takes no larger ones."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """How one action wants to be isolated."""

    root: RootKind
    user: int | None
    """As which the action sees itself; None: not asked for."""
    group: int | None
    network: bool

    @staticmethod
    def of(platform: Mapping[str, Sequence[str]], default_root: RootKind, *, allow_network: bool) -> Wishes:
        """Raises MalformedRequest for an impossible value, FailedPrecondition for a network that is not to be had here."""
        root = _value(platform, ROOT_PROPERTY)
        if root and root not in list(RootKind):
            raise MalformedRequest(f"{ROOT_PROPERTY} is {root[:200]!r}, expected {' or '.join(RootKind)}")
        network = _value(platform, NETWORK_PROPERTY)
        if network not in ("", "on", "off"):
            raise MalformedRequest(f"{NETWORK_PROPERTY} is {network[:200]!r}, expected on or off")
        if network == "on" and not allow_network:
            raise FailedPrecondition(f"{NETWORK_PROPERTY}=on is not allowed here ([worker.bubblewrap] allow_network)")
        user, group = (_number(platform, name) for name in (USER_PROPERTY, GROUP_PROPERTY))
        return Wishes(RootKind(root or default_root), user, group, network == "on")


def _value(platform: Mapping[str, Sequence[str]], name: str) -> str:
    values = platform.get(name, ())
    if len(set(values)) > 1:
        raise MalformedRequest(f"{name} has {len(values)} values, expected one")
    return values[0] if values else ""


def _number(platform: Mapping[str, Sequence[str]], name: str) -> int | None:
    value = _value(platform, name)
    if not value:
        return None
    # str.isdigit alone takes digits of other scripts, and int() takes signs, spaces and underscores.
    if not (value.isascii() and value.isdigit() and len(value) <= 10 and int(value) <= MAX_ID):
        raise MalformedRequest(f"{name} is {value[:200]!r}, expected a number from 0 to {MAX_ID}")
    return int(value)
