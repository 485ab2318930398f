"""[server.tls]: the server's certificate, and the authority whose clients it takes.

The files are read again when they change, at the next connection. New ones count once certificate and key belong together, so
that it does not matter in which order they are written.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from rexec.auth.credentials import AuthUnusable
from rexec.auth.watched_file import Mark, mark_of
from rexec.tls_settings import TlsSettings

if TYPE_CHECKING:
    import grpc

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Identification:
    """What the files hold: one certificate with its key, and whom to trust."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class TlsFiles:
    """The files of [server.tls]."""

    def __init__(self, settings: TlsSettings) -> None:
        """Reads the files. Raises AuthUnusable."""
        self._settings = settings
        self._marks = self._look()
        self.current = read(settings)

    def changed(self) -> Identification | None:
        """What the files hold, if that is new and can be used."""
        marks = self._look()
        if marks == self._marks:
            return None
        self._marks = marks
        try:
            found = read(self._settings)
        except AuthUnusable as error:
            log.warning("changed TLS files not used", reason=str(error))
            return None
        if found == self.current:
            return None
        self.current = found
        log.info("TLS files read again", certificate=self._settings.certificate)
        return found

    def _look(self) -> list[Mark | None]:
        files = self._settings.certificate, self._settings.key, self._settings.client_ca
        return [mark_of(Path(name)) for name in files if name]


def read(settings: TlsSettings) -> Identification:
    """What the files hold. Raises AuthUnusable for what OpenSSL would not take, and for a key of another certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = f"{settings.certificate} and {settings.key}"
    try:
        before = Path(settings.certificate).read_bytes(), Path(settings.key).read_bytes()
        context.load_cert_chain(settings.certificate, settings.key, password="")
        if (Path(settings.certificate).read_bytes(), Path(settings.key).read_bytes()) != before:
            raise AuthUnusable(f"{files} are being written")
        client_ca = None
        if settings.client_ca:
            files = settings.client_ca
            client_ca = Path(settings.client_ca).read_bytes()
            context.load_verify_locations(cadata=client_ca.decode("ascii"))
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise AuthUnusable(f"{files} cannot be used: {error}") from error
    return Identification(*before, client_ca)


def server_credentials(settings: TlsSettings) -> grpc.ServerCredentials | None:
    """What gRPC's ports are opened with, None without TLS. Raises AuthUnusable."""
    if not settings.enabled:
        return None
    import grpc  # not by those who only check a configuration

    files = TlsFiles(settings)

    def configuration(found: Identification) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(found.key, found.certificate)], root_certificates=found.client_ca
        )

    def fetch() -> grpc.ServerCertificateConfiguration | None:  # by a thread of gRPC's, for each new connection
        found = files.changed()
        return None if found is None else configuration(found)

    return grpc.dynamic_ssl_server_credentials(
        configuration(files.current),
        fetch,  # type: ignore[arg-type]  # None means no change, which types-grpcio does not know
        require_client_authentication=bool(settings.client_ca),
    )
