"""The qualifiers of a fetch (Remote Asset, Qualifier): what is understood of them, and what must be refused.

Understood, as Bazel sends them:

    checksum.sri            what the content must be: "sha256-BASE64", also sha384, sha512 (W3C Subresource Integrity)
    bazel.canonical_id      tells assets of one URL apart; part of the asset's key and nothing else
    bazel.auth_headers      JSON, {"URL": {"Header": "value"}}; older Bazels
    http_header:NAME        a header for every URL
    http_header_url:N:NAME  a header for the URL at place N of the request, from 0

Of an asset that was pushed any qualifiers are possible; they are part of its key, and nothing is understood of them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from cas.errors import MalformedRequest, QualifiersNotSupported

MAX_QUALIFIERS: Final = 100
MAX_QUALIFIER_BYTES: Final = 64 << 10
"""Name and value of one; tokens in headers have some kB."""

CHECKSUM: Final = "checksum.sri"
CANONICAL_ID: Final = "bazel.canonical_id"
AUTH_HEADERS: Final = "bazel.auth_headers"
HEADER_PREFIX: Final = "http_header:"
URL_HEADER_PREFIX: Final = "http_header_url:"

_LENGTHS: Final = {"sha256": 32, "sha384": 48, "sha512": 64}
"""By strength, weakest first."""
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", re.ASCII)
_URL_HEADER: Final = re.compile(r"http_header_url:([0-9]{1,4}):(.+)", re.ASCII)
_OURS: Final = frozenset(
    [
        *("connection", "keep-alive", "proxy-connection", "upgrade", "te", "trailer", "transfer-encoding"),
        *("accept-encoding", "content-length", "expect", "host", "proxy-authorization", "range"),
    ]
)
"""Headers that say how this server speaks HTTP (RFC 9110); a client that set them could change what is understood."""


class Qualifier(Protocol):
    """build.bazel.remote.asset.v1.Qualifier."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the content of an asset must hash to: one of `hashes`, by hashlib's `algorithm`."""

    algorithm: str
    hashes: frozenset[bytes]

    def start(self) -> hashlib._Hash:
        """A hash in the making."""
        return hashlib.new(self.algorithm)


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """What the qualifiers of one request ask for."""

    checksum: Checksum | None = None
    headers: tuple[tuple[tuple[str, str], ...], ...] = ()
    """For each URL of the request the headers to send, names in lower case."""


def checked(qualifiers: Sequence[Qualifier]) -> dict[str, str]:
    """Values by name. Raises MalformedRequest for too many, too large ones, and a name that comes twice."""
    if len(qualifiers) > MAX_QUALIFIERS:
        raise MalformedRequest(f"qualifiers has {len(qualifiers)} entries; {MAX_QUALIFIERS} is the most")
    values: dict[str, str] = {}
    for qualifier in qualifiers:
        if not qualifier.name:
            raise MalformedRequest("a qualifier has no name")
        if len(qualifier.name) + len(qualifier.value) > MAX_QUALIFIER_BYTES:
            raise MalformedRequest(f"qualifier {qualifier.name[:200]!r} has more than {MAX_QUALIFIER_BYTES} characters")
        if qualifier.name in values:
            raise MalformedRequest(f"qualifier {qualifier.name[:200]!r} is there twice")
        values[qualifier.name] = qualifier.value
    return values


def is_secret(name: str) -> bool:
    """Whether the qualifier carries headers, which may be credentials."""
    return name == AUTH_HEADERS or name.startswith((HEADER_PREFIX, URL_HEADER_PREFIX))


def refuse_others(qualifiers: Iterable[str]) -> None:
    """Raises QualifiersNotSupported with all the names that are not understood."""
    others = [name for name in qualifiers if name not in (CHECKSUM, CANONICAL_ID) and not is_secret(name)]
    if others:
        raise QualifiersNotSupported(others)


def fetch_options(qualifiers: Mapping[str, str], urls: Sequence[str]) -> FetchOptions:
    """What a FetchBlob of these URLs is asked to do. Raises MalformedRequest, QualifiersNotSupported among them."""
    refuse_others(qualifiers)
    checksum = parse_checksum(qualifiers[CHECKSUM]) if CHECKSUM in qualifiers else None
    general: dict[str, str] = {}
    single: list[dict[str, str]] = [{} for _ in urls]
    for url, headers in _auth_headers(qualifiers.get(AUTH_HEADERS, "")).items():
        for place, candidate in enumerate(urls):
            if candidate == url:
                single[place] |= headers
    for name, value in qualifiers.items():
        if name.startswith(HEADER_PREFIX):
            general |= _header(name.removeprefix(HEADER_PREFIX), value)
        elif name.startswith(URL_HEADER_PREFIX):
            found = _URL_HEADER.fullmatch(name)
            if found is None or int(found[1]) >= len(urls):
                raise MalformedRequest(f"qualifier {name[:200]!r} names no URL of the request")
            single[int(found[1])] |= _header(found[2], value)
    # Repeated headers of one name are not sent: what is meant for one URL takes the place of what is meant for all.
    return FetchOptions(checksum, tuple(tuple(sorted((general | own).items())) for own in single))


def parse_checksum(text: str) -> Checksum:
    """The strongest of the checksums named (W3C Subresource Integrity). Raises MalformedRequest."""
    by_algorithm: dict[str, set[bytes]] = {}
    for part in text.split():
        algorithm, _, rest = part.partition("-")
        encoded = rest.partition("?")[0]
        if algorithm not in _LENGTHS:
            raise MalformedRequest(f"{CHECKSUM}: {part[:200]!r} is not of the form sha256-, sha384- or sha512-BASE64")
        try:
            value = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise MalformedRequest(f"{CHECKSUM}: {part[:200]!r} is not base64") from None
        if len(value) != _LENGTHS[algorithm]:
            raise MalformedRequest(
                f"{CHECKSUM}: {part[:200]!r} has {len(value)} bytes; {algorithm} gives {_LENGTHS[algorithm]}"
            )
        by_algorithm.setdefault(algorithm, set()).add(value)
    for algorithm in reversed(_LENGTHS):
        if algorithm in by_algorithm:
            return Checksum(algorithm, frozenset(by_algorithm[algorithm]))
    raise MalformedRequest(f"{CHECKSUM} is empty")


def _auth_headers(text: str) -> dict[str, dict[str, str]]:
    """Headers by URL. Newer Bazels write a list of values where older ones write one."""
    if not text:
        return {}
    try:
        table = msgspec.json.decode(text, type=dict[str, dict[str, str | list[str]]])
    except (msgspec.DecodeError, RecursionError):
        raise MalformedRequest(f"{AUTH_HEADERS} is not JSON of the form {{URL: {{header: value}}}}") from None
    found: dict[str, dict[str, str]] = {}
    for url, headers in table.items():
        own = found.setdefault(url, {})
        for name, value in headers.items():
            own |= _header(name, value if isinstance(value, str) else ",".join(value))
    return found


def _header(name: str, value: str) -> dict[str, str]:
    """One header. Raises MalformedRequest, without the value: it may be a secret."""
    lowered = name.lower()
    if _TOKEN.fullmatch(name) is None or lowered in _OURS:
        raise MalformedRequest(f"header {name[:200]!r} cannot be sent")
    if not value.isascii() or any(not (" " <= character <= "~" or character == "\t") for character in value):
        raise MalformedRequest(f"the value of header {name!r} holds a character that no header can have")
    return {lowered: value}
