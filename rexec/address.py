"""Addresses as people write them: grpc://HOST:PORT, grpcs://HOST:PORT, HOST:PORT, unix:PATH."""

from __future__ import annotations

import re
from typing import Final

_HOST_PORT: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:/\s]+):(?P<port>\d{1,5})").fullmatch


def host_and_port(text: str) -> tuple[str, int]:
    """The parts of "HOST:PORT"; an IPv6 host stands in brackets. Raises ValueError that says what was expected."""
    match = _HOST_PORT(text)
    if match is None or int(match["port"]) > 65535:
        raise ValueError(f"{text!r} is not an address, expected HOST:PORT such as 127.0.0.1:8980")
    return match["host"], int(match["port"])


def channel_target(text: str) -> str:
    """What gRPC wants to connect to, for a server given as grpc[s]://HOST:PORT, HOST:PORT or unix:PATH.

    Raises ValueError for anything else.
    """
    if text.startswith("unix:"):
        if text == "unix:":
            raise ValueError("'unix:' names no path, expected unix:PATH")
        return text
    rest = text.removeprefix("grpcs://" if is_secure(text) else "grpc://").removesuffix("/")
    if "://" in rest:
        raise ValueError(
            f"{text!r} has a scheme that is not known here, expected grpc://HOST:PORT, grpcs://HOST:PORT or unix:PATH"
        )
    host_and_port(rest)
    return rest


def is_secure(text: str) -> bool:
    """Whether the server's address asks for TLS."""
    return text.startswith("grpcs://")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    return host in ("localhost", "[::1]") or host.startswith("127.")
