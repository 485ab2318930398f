"""One GET over HTTP, for a client that is not trusted to a server that is not trusted.

Every hop of a chain of redirects is checked as the first one was: the URL, then the addresses of its host, and the
connection is made to one of the addresses that were checked. Headers of the client's go to the origin they were meant for
and are left out after a redirect elsewhere. Nothing is decompressed, so there is no bomb to go off.

Needs aiohttp (the extra `fetch`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from cas.assets_config import AssetSettings
from cas.errors import Code
from cas.fetch_address import Guard
from cas.fetch_failure import FetchFailed
from cas.fetch_origin import parse_url, same_origin, shown

PIECE_BYTES: Final = 64 << 10
"""Read from the connection at most at once."""

USER_AGENT: Final = "rexec"

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CODES: Final = {
    401: Code.PERMISSION_DENIED,
    403: Code.PERMISSION_DENIED,
    407: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    408: Code.DEADLINE_EXCEEDED,
    410: Code.NOT_FOUND,
    429: Code.RESOURCE_EXHAUSTED,
    504: Code.DEADLINE_EXCEEDED,
}


class HttpSource:
    """Opens http and https URLs within the limits of the settings."""

    def __init__(self, settings: AssetSettings, guard: Guard) -> None:
        self._settings = settings
        self._guard = guard
        self._origins = settings.origins()
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=settings.idle_seconds, sock_read=settings.idle_seconds
        )

    @asynccontextmanager
    async def open(
        self, text: str, headers: Sequence[tuple[str, str]], *, encoded_allowed: bool
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of the URL's answer, in pieces. Raises FetchFailed, on entering and from the pieces.

        `encoded_allowed` takes a body with a Content-Encoding as it is: its checksum will tell. Without one it is refused,
        for nobody could tell what its bytes are.
        """
        url = parse_url(text, self._origins)
        hop_headers = tuple(headers)
        for _ in range(self._settings.max_redirects + 1):
            target: str
            async with self._get(url, hop_headers) as response:
                if response.status not in _REDIRECTS:
                    self._check(url, response, encoded_allowed)
                    yield self._pieces(url, response)
                    return
                target = response.headers.get("Location", "")
            following = self._join(url, target)
            if url.scheme == "https" and following.scheme == "http":
                raise FetchFailed(Code.PERMISSION_DENIED, f"{shown(url)} redirects from https to http")
            if not same_origin(url, following):
                hop_headers = ()
            url = following
        raise FetchFailed(Code.ABORTED, f"more than {self._settings.max_redirects} redirects, the last to {shown(url)}")

    def _join(self, url: URL, target: str) -> URL:
        """Where a redirect leads."""
        if not target:
            raise FetchFailed(Code.ABORTED, f"{shown(url)} redirects to nowhere")
        try:
            following = str(url.join(URL(target)))
        except (ValueError, UnicodeError):
            raise FetchFailed(Code.ABORTED, f"{shown(url)} redirects to what is no URL") from None
        return parse_url(following, self._origins)

    @asynccontextmanager
    async def _get(self, url: URL, headers: Sequence[tuple[str, str]]) -> AsyncIterator[aiohttp.ClientResponse]:
        host = url.host
        if host is None or url.port is None:
            raise FetchFailed(Code.ABORTED, f"{shown(url)} names no host")
        try:
            async with asyncio.timeout(self._settings.idle_seconds):
                addresses = await self._guard.addresses_of(host, url.port)
        except TimeoutError:
            raise FetchFailed(Code.DEADLINE_EXCEEDED, f"host {host[:200]!r} was not resolved in time") from None
        # A connector of its own for each hop: it knows no other addresses and keeps no connection for someone else's URL.
        connector = aiohttp.TCPConnector(
            resolver=_Pinned(addresses),
            socket_factory=_factory(addresses),
            use_dns_cache=False,
            force_close=True,
            limit=1,
        )
        sent = {"accept-encoding": "identity", "accept": "*/*", "user-agent": USER_AGENT, **dict(headers)}
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            auto_decompress=False,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=PIECE_BYTES,
        ) as session:
            with _translated(url):
                response = await session.get(url, headers=sent, allow_redirects=False)
            try:
                yield response
            finally:
                response.close()

    def _check(self, url: URL, response: aiohttp.ClientResponse, encoded_allowed: bool) -> None:
        """Raises FetchFailed unless the answer is the content."""
        status = response.status
        if status != 200:
            code = _CODES.get(status, Code.UNAVAILABLE if status >= 500 else Code.ABORTED)
            raise FetchFailed(code, f"{shown(url)} answered {status}")
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity" and not encoded_allowed:
            raise FetchFailed(
                Code.ABORTED,
                f"{shown(url)} answered with content encoding {encoding[:50]!r}; only identity was asked for",
            )
        if response.content_length is not None and response.content_length > self._settings.fetch_max_bytes:
            raise self._too_large(url)

    async def _pieces(self, url: URL, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        received_bytes = 0
        while True:
            with _translated(url):
                piece = await response.content.read(PIECE_BYTES)
            if not piece:
                return
            received_bytes += len(piece)
            if received_bytes > self._settings.fetch_max_bytes:
                raise self._too_large(url)
            yield piece

    def _too_large(self, url: URL) -> FetchFailed:
        limit = self._settings.fetch_max_bytes
        return FetchFailed(Code.RESOURCE_EXHAUSTED, f"{shown(url)} has more than the {limit} bytes that may be fetched")


class _Pinned(AbstractResolver):
    """Resolves every name to the addresses that were checked."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See AbstractResolver."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """See AbstractResolver."""


def _factory(addresses: Sequence[str]) -> Any:
    """Makes the sockets of one hop, and none for another address: hosts that are addresses never reach the resolver."""
    allowed = {ipaddress.ip_address(address) for address in addresses}

    def make(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = info
        if ipaddress.ip_address(address[0]) not in allowed:
            raise OSError(f"{address[0]} is not an address that was checked")
        made = socket.socket(family=family, type=kind, proto=protocol)
        made.setblocking(False)
        return made

    return make


class _translated:  # noqa: N801 - reads as a statement
    """Failures of the HTTP client within become FetchFailed."""

    def __init__(self, url: URL) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _traceback: object) -> None:
        name = shown(self._url)
        match error:
            case None | FetchFailed():
                return
            case aiohttp.ServerTimeoutError():
                raise FetchFailed(Code.DEADLINE_EXCEEDED, f"{name} did not answer in time") from None
            case aiohttp.ClientPayloadError():
                raise FetchFailed(Code.ABORTED, f"{name} broke off its answer") from None
            case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
                raise FetchFailed(Code.PERMISSION_DENIED, f"{name} has no certificate that is trusted here") from None
            case aiohttp.ClientConnectionError() | OSError():
                raise FetchFailed(Code.UNAVAILABLE, f"{name} cannot be reached") from None
            case aiohttp.ClientError() | ValueError():
                raise FetchFailed(Code.ABORTED, f"{name} did not answer as an HTTP server does") from None
