"""[server.tls]: which certificate the server shows, and whose clients it takes."""

from __future__ import annotations

import msgspec


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[server.tls]: encryption of every port in [server] listen. The Unix socket of the local worker has none."""

    certificate: str = ""
    """PEM file of the server's certificate, followed by those between it and its authority. Empty: no TLS."""
    key: str = ""
    """PEM file of its private key, without a passphrase."""
    client_ca: str = ""
    """PEM file of authorities. Set: clients have to show a certificate that one of them signed (mutual TLS)."""

    def __post_init__(self) -> None:
        """Refuse half of a pair."""
        if bool(self.certificate) is not bool(self.key):
            raise ValueError("expected both certificate and key, or neither")
        if self.client_ca and not self.certificate:
            raise ValueError("client_ca is set, expected certificate and key as well")

    @property
    def enabled(self) -> bool:
        """Whether the ports speak TLS."""
        return bool(self.certificate)
