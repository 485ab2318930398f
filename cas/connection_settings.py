"""[connection]: how this program shows a server who it is."""

from __future__ import annotations

import msgspec


class ConnectionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[connection]: how `rexec worker` and `rexec frontend` show who they are. The local worker of `rexec serve` needs none of
    it."""

    tls_ca: str = ""
    """PEM file of the authorities to trust for grpcs://. Empty: those that gRPC brings along."""
    tls_certificate: str = ""
    """PEM file of the certificate to show, for a server that asks for one."""
    tls_key: str = ""
    """PEM file of its private key."""
    token_file: str = ""
    """File with a bearer token, read again when it changes."""

    def __post_init__(self) -> None:
        """Refuse half of a pair."""
        if bool(self.tls_certificate) is not bool(self.tls_key):
            raise ValueError("expected both tls_certificate and tls_key, or neither")
