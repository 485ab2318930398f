"""Identities of client certificates. That a certificate is good and signed by [server.tls] client_ca, TLS has checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from cas.context import Identity
from rexec.auth.identities import identity_of
from rexec.auth.settings import CertificateSettings


class Certificates:
    """Which certificate stands for whom. The first table that names the certificate counts."""

    def __init__(self, tables: Sequence[CertificateSettings]) -> None:
        self._known = [
            (
                "x509_common_name" if table.common_name else "x509_subject_alternative_name",
                (table.common_name or table.alternative_name).encode(),
                identity_of(table.identity, table.rights, table.instances, table.tenant),
            )
            for table in tables
        ]

    def identity(self, certificate: Callable[[], Mapping[str, Iterable[bytes]]]) -> Identity | None:
        """Whose certificate has these properties (gRPC's names); None: nobody's, or there is none."""
        properties = certificate() if self._known else {}
        for property_name, value, identity in self._known:
            if value in properties.get(property_name, ()):
                return identity
        return None
