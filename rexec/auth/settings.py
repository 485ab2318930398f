"""[auth]: who may do what."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from rexec.auth.rights import EVERY_RIGHT, Right

ALGORITHMS = ("RS256", "ES256", "EdDSA")
"""Signatures that can be allowed: all of private keys that this server never sees."""


class TokenSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[auth.tokens]: bearer tokens that are listed in a file."""

    file: str = ""
    """TOML: a table [[token]] for each, with `identity`, `sha256` (of the token, hex), `rights`, `instances` (absent: all) and
    `tenant` (absent: the instance). Read again when it changes. Empty: no such tokens."""


class JwtSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[auth.jwt]: signed tokens of an identity provider (RFC 7519)."""

    issuer: str
    """The `iss` that a token must have."""
    audience: tuple[str, ...]
    """One of these must be among the token's `aud`: a token for another service counts for nothing here."""
    jwks_file: str = ""
    """The provider's public keys (RFC 7517), read again when the file changes. Either this or jwks_url."""
    jwks_url: str = ""
    """Where the provider publishes them, https://; fetched when needed and kept."""
    jwks_ca: str = ""
    """PEM file of the authorities to trust for jwks_url. Empty: those of the system."""
    algorithms: tuple[str, ...] = ALGORITHMS
    """Signature algorithms that count; no other can be allowed."""
    leeway_seconds: float = 30.0
    """How far the provider's clock may be off, for `exp` and `nbf`."""
    max_token_bytes: int = 12 << 10
    """A longer token is not looked at. gRPC takes at most 16 KiB of headers."""
    fetch_seconds: float = 5.0
    """How long jwks_url may take to answer."""
    refresh_seconds: float = 600.0
    """The age at which fetched keys are fetched again, beside the calls; the old ones count until that succeeds."""
    retry_seconds: float = 10.0
    """The shortest time between two fetches: tokens that name unknown keys cause no more."""
    name_claim: str = "sub"
    """The claim that names the identity in the log."""
    rights_claim: str = "rexec_rights"
    """The claim with the rights: a list, or a text with spaces between them. Others than ours are left alone."""
    instances_claim: str = "rexec_instances"
    """The claim with the instance names: a list, or a text with spaces between them."""
    rights: tuple[Right, ...] = ()
    """The rights of a token without the rights claim."""
    instances: tuple[str, ...] | None = None
    """The instances of a token without the instances claim. Unset: all."""
    tenant_claim: str = "rexec_tenant"
    """The claim with the tenant, a text: the team whose share of the workers the actions take."""
    tenant: str = ""
    """The tenant of a token without the tenant claim. Empty: the instance that the actions use stands for it."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, or that would let anyone in, naming them."""
        if not self.issuer:
            raise ValueError("issuer is empty, expected the iss of the tokens")
        if not self.audience or "" in self.audience:
            raise ValueError("audience is empty, expected the aud of the tokens")
        if bool(self.jwks_file) is bool(self.jwks_url):
            raise ValueError("expected one of jwks_file and jwks_url")
        url = urlsplit(self.jwks_url)
        if self.jwks_url and (url.scheme != "https" or not url.hostname):
            raise ValueError(f"jwks_url is {self.jwks_url!r}, expected https://HOST/...")
        for name in self.algorithms:
            if name not in ALGORITHMS:
                raise ValueError(f"algorithm {name!r} is not one of {', '.join(ALGORITHMS)}")
        if not self.algorithms:
            raise ValueError(f"algorithms is empty, expected some of {', '.join(ALGORITHMS)}")
        if not 0 <= self.leeway_seconds <= 3600:
            raise ValueError(f"leeway_seconds is {self.leeway_seconds}, expected 0 to 3600")
        for name in ("max_token_bytes", "fetch_seconds", "refresh_seconds", "retry_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")


class CertificateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[[auth.certificates]]: who a client certificate stands for. [server.tls] client_ca has to be set."""

    identity: str
    """The name in the log."""
    alternative_name: str = ""
    """One of the certificate's subject alternative names, whole: a DNS name, URI, email or IP address. Either this or
    common_name."""
    common_name: str = ""
    """The CN of the certificate's subject, whole."""
    rights: tuple[Right, ...] = ()
    """What its owner may do."""
    instances: tuple[str, ...] | None = None
    """Unset: all."""
    tenant: str = ""
    """The team whose share of the workers his actions take. Empty: the instance that they use stands for it."""

    def __post_init__(self) -> None:
        """Refuse a table that names no certificate."""
        if bool(self.alternative_name) is bool(self.common_name):
            raise ValueError(f"certificate of {self.identity!r}: expected one of alternative_name and common_name")


class AuthSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[auth]: who may do what. Rights are "read", "execute", "update_action_cache", "work", "operate" and "front"
    (rexec/auth/rights.py)."""

    anonymous: tuple[Right, ...] | None = None
    """The rights of calls without credentials. Unset: every right if nothing else of [auth] is set, none otherwise."""
    anonymous_instances: tuple[str, ...] | None = None
    """The instances of calls without credentials. Unset: all."""
    tokens: TokenSettings = TokenSettings()
    jwt: JwtSettings | None = None
    certificates: tuple[CertificateSettings, ...] = ()

    @property
    def knows_identities(self) -> bool:
        """Whether any credentials count here."""
        return bool(self.tokens.file or self.jwt is not None or self.certificates)

    @property
    def anonymous_rights(self) -> tuple[Right, ...]:
        """The rights of calls without credentials."""
        if self.anonymous is not None:
            return self.anonymous
        return () if self.knows_identities else EVERY_RIGHT
