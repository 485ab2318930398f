"""The options of Remote Asset: what is remembered, and what the server may fetch from outside. Data only."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import msgspec

from cas.fetch_origin import OriginPattern


class AssetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The [assets] section: assets remembered by URI (Remote Asset Push), and fetching from outside (Remote Asset Fetch)."""

    max_entries: int = 1_000_000
    """Assets remembered at most, one for each URI of a push. Those asked for longest ago are forgotten first."""

    max_bytes: int = 256 << 20
    """Bound of what is remembered; an asset takes about 400 bytes and 110 for each reference. The content itself is in the
    store."""

    fetch: bool = False
    """Fetch http and https URLs that nobody pushed. Off: whoever may ask this server could make it connect to anywhere."""

    allowed_urls: tuple[str, ...] = ("https://*", "http://*")
    """What may be fetched, redirects included: "SCHEME://HOST[:PORT][/PATH]". HOST "*" is any, "*.example.org" any below
    example.org; PATH is a beginning, whole segments of it. The port must be the one named, or the scheme's own."""

    private_networks: tuple[str, ...] = ()
    """Networks such as "10.1.0.0/16" that may be connected to although they are not public. Without them addresses of
    private, loopback, link-local and other special networks are refused, whatever name leads there."""

    fetch_max_bytes: int = 1 << 30
    """Largest file fetched."""

    fetch_seconds: float = 600.0
    """Longest a fetch may take, redirects included; a request may ask for less (FetchBlobRequest.timeout)."""

    idle_seconds: float = 30.0
    """How long a server may take to accept, to answer, and between two pieces of its answer."""

    max_redirects: int = 10
    """Redirects followed for one URL."""

    max_fetches: int = 16
    """Fetches under way at once; one more is refused with RESOURCE_EXHAUSTED. Each may hold fetch_max_bytes on the disk."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        for field in ("max_entries", "max_bytes", "fetch_max_bytes", "max_fetches"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected at least 1")
        for field in ("fetch_seconds", "idle_seconds"):
            if not 0 < getattr(self, field) <= 86400:
                raise ValueError(f"{field} is {getattr(self, field)}; expected more than 0 and at most 86400")
        if not 0 <= self.max_redirects <= 100:
            raise ValueError(f"max_redirects is {self.max_redirects}; expected 0 to 100")
        self.origins()
        self.networks()

    def origins(self) -> tuple[OriginPattern, ...]:
        """`allowed_urls`, parsed. Raises ValueError."""
        return tuple(map(OriginPattern.parse, self.allowed_urls))

    def networks(self) -> Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """`private_networks`, parsed. Raises ValueError."""
        try:
            return [ipaddress.ip_network(network) for network in self.private_networks]
        except ValueError as wrong:
            raise ValueError(f"private_networks: {wrong}") from None
