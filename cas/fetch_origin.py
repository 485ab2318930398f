"""Which URLs may be fetched: http and https without credentials in them, at the origins that the configuration allows.

A URL is taken apart once, by the parser of the HTTP client itself (yarl, which aiohttp uses), so that what is checked is
what is connected to. Without that library nothing can be fetched, so it is loaded where the first URL is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import unquote

from cas.errors import Code
from cas.fetch_failure import FetchFailed

if TYPE_CHECKING:
    from yarl import URL

MAX_URL_BYTES: Final = 8 << 10
"""Longer ones are refused by most servers too."""

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_PATTERN: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>\*|(?:\*\.)?[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^?#\\]*)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class OriginPattern:
    """One entry of allowed_urls."""

    scheme: str
    host: str
    """In lower case; "*", "*.example.org", or the host itself."""
    port: int
    segments: tuple[str, ...]
    """The beginning of the path, without empty segments."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError, which says what was expected."""
        found = _PATTERN.fullmatch(text)
        if found is None:
            raise ValueError(
                f"allowed_urls: {text!r} is not of the form SCHEME://HOST[:PORT][/PATH] with http or https, "
                'a host in lower case or "*" or "*.HOST"'
            )
        port = int(found["port"] or DEFAULT_PORTS[found["scheme"]])
        segments = tuple(segment for segment in (found["path"] or "").split("/") if segment)
        return cls(found["scheme"], found["host"].strip("[]"), port, segments)

    def allows(self, url: URL) -> bool:
        """Whether the URL, one that `parse_url` gave, is among those meant."""
        host = (url.raw_host or "").lower().rstrip(".")
        if url.scheme != self.scheme or url.port != self.port:
            return False
        if self.host.startswith("*."):
            if not host.endswith(self.host[1:]):
                return False
        elif self.host not in ("*", host):
            return False
        if not self.segments:
            return True
        segments = [unquote(segment) for segment in url.raw_path.split("/") if segment]
        # Dots and slashes in disguise: a server may take them for a way out of the path that is allowed.
        if any(segment in (".", "..") or "/" in segment or "\\" in segment for segment in segments):
            return False
        return tuple(segments[: len(self.segments)]) == self.segments


def is_fetchable(uri: str) -> bool:
    """Whether this is a URL of a kind that can be fetched at all; anything else can only have been pushed."""
    return uri[:8].lower().startswith(("http://", "https://"))


def parse_url(text: str, allowed: Iterable[OriginPattern]) -> URL:
    """The URL, checked. Raises FetchFailed with PERMISSION_DENIED for one that may not be fetched, ABORTED for none."""
    from yarl import URL

    if len(text) > MAX_URL_BYTES:
        raise FetchFailed(Code.ABORTED, f"a URL of {len(text)} characters is too long; {MAX_URL_BYTES} is the most")
    if any(ord(character) <= 0x20 or ord(character) == 0x7F or character == "\\" for character in text):
        raise FetchFailed(Code.ABORTED, "a URL with a space, a backslash or a control character in it is none")
    try:
        url = URL(text)
        host, port = url.raw_host, url.port
    except (ValueError, UnicodeError):
        raise FetchFailed(Code.ABORTED, f"not a URL: {text[:200]!r}") from None
    if url.scheme not in DEFAULT_PORTS or not host or not port:
        raise FetchFailed(Code.PERMISSION_DENIED, f"only http and https URLs are fetched, not {text[:200]!r}")
    if url.raw_user is not None or url.raw_password is not None:
        raise FetchFailed(
            Code.PERMISSION_DENIED, "credentials in a URL are refused; send them as an http_header qualifier"
        )
    url = url.with_fragment(None)
    if not any(pattern.allows(url) for pattern in allowed):
        raise FetchFailed(Code.PERMISSION_DENIED, f"{shown(url)} is not an origin that this server may fetch from")
    return url


def same_origin(one: URL, other: URL) -> bool:
    """Whether two URLs lead to the same server, so that what was meant for one may be sent to the other."""
    return (one.scheme, one.raw_host, one.port) == (other.scheme, other.raw_host, other.port)


def shown(url: URL) -> str:
    """The URL for a log or an error: without the query, which may be a signature that gives access."""
    return str(url.with_query(None))[:300]
