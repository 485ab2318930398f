"""Whether a server could listen on an address, asked of the system before anything else is started or written.

gRPC says only that it cannot bind, and has the reason on standard error in a form that is not for users.
"""

from __future__ import annotations

import errno
import os
import socket

from rexec.address import host_and_port

_REASONS = {
    errno.EADDRINUSE: "the port is in use; is another server running there?",
    errno.EACCES: "permission denied; ports below 1024 are for the administrator",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


class CannotListen(Exception):
    """The text names the address, why, and the option."""


def require_free(address: str, option: str, share_port: bool = False) -> None:
    """Raises CannotListen unless a socket can be bound to "HOST:PORT", which `option` asks for.

    A host name may stand for several addresses: one of them must be free, and none may be in use.
    """
    host, port = host_and_port(address)
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise CannotListen(f"cannot listen on {address}: the host name is not known ({option})") from error
    failures = [_bound(family, where, share_port) for family, _, _, _, where in found]
    in_use = any(failure is not None and failure.errno == errno.EADDRINUSE for failure in failures)
    if in_use or None not in failures:
        number = errno.EADDRINUSE if in_use else next(failure.errno or 0 for failure in failures if failure)
        reason = _REASONS.get(number) or os.strerror(number).lower()
        raise CannotListen(f"cannot listen on {address}: {reason} ({option})")


def _bound(family: int, where: tuple[object, ...], share_port: bool) -> OSError | None:
    """Why a socket cannot be bound there, None if it can."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do: connections of an earlier one that are being closed are no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if share_port:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(where)
    except OSError as failure:
        return failure
    return None
