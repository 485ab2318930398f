"""What a call brings along that can say who sends it, and why it may not count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of one call."""

    peer: str
    """gRPC's name of the connection's other end: "unix:..." or "ipv4:HOST:PORT" and the like."""
    headers: Mapping[str, str | bytes]
    certificate: Callable[[], Mapping[str, Iterable[bytes]]]
    """Properties of the client's certificate by gRPC's names; empty without one. A call, because making it costs."""


class Refused(Exception):
    """Credentials that do not count. The text is for the log: it never holds the credentials, and never goes to clients."""


class AuthUnusable(Exception):
    """[auth] or [server.tls] cannot be put to use; the text names the file and what was expected."""
