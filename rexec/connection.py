"""How this program reaches a server as its client: the channel, with or without TLS, and the token it shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
from grpc import aio

from cas.connection_settings import ConnectionSettings
from cas.remote import CHANNEL_OPTIONS
from rexec.address import channel_target, is_secure
from rexec.auth.watched_file import WatchedFile


class CannotConnect(Exception):
    """The settings do not make a connection; the text names the file."""


class Bearer:
    """The headers that show the token in a file, as it is whenever they are iterated."""

    def __init__(self, path: Path) -> None:
        """Raises OSError and ValueError."""
        self._file = WatchedFile(path, _token)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        yield "authorization", f"Bearer {self._file.value()}"


def headers(server: str, settings: ConnectionSettings) -> Iterable[tuple[str, str]]:
    """The headers of every call to the server. Raises CannotConnect."""
    if not settings.token_file or server.startswith("unix:"):
        return ()
    try:
        return Bearer(Path(settings.token_file))
    except (OSError, ValueError) as error:
        raise CannotConnect(f"{settings.token_file}: {error}") from error


def open_channel(
    server: str, settings: ConnectionSettings, options: Iterable[tuple[str, int | str]] = ()
) -> aio.Channel:  # fmt: skip
    """A channel to the server, given as grpc://, grpcs:// or unix:. Raises ValueError and CannotConnect.

    `options` go before those that every channel has.
    """
    target = channel_target(server)
    chosen = tuple((dict(CHANNEL_OPTIONS) | dict(options)).items())
    if not is_secure(server):
        return aio.insecure_channel(target, options=chosen)
    try:
        ca, key, certificate = (
            Path(name).read_bytes() if name else None
            for name in (settings.tls_ca, settings.tls_key, settings.tls_certificate)
        )
    except OSError as error:
        raise CannotConnect(f"{error.filename}: {error.strerror}, expected a PEM file") from error
    return aio.secure_channel(target, grpc.ssl_channel_credentials(ca, key, certificate), options=chosen)


def _token(data: bytes) -> str:
    token = data.decode("ascii").strip()
    if not token or any(character <= " " or character == "\x7f" for character in token):
        raise ValueError("expected a token and nothing else")
    return token
