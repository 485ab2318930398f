"""The HTTPS port of the external metrics API: TLS, who may ask, and the bounds of a connection.

An API server passes on what users of its cluster ask once it has found that they may (RBAC), and shows the certificate of
its front proxy. Given the authority of that certificate, nobody else is answered but probes. Without it whoever reaches the port
reads figures, and nothing more: nothing can be changed here.

A connection is for one request without a body; its head, its time and the number of connections are bounded. Certificates are
read again when their files change, at the next connection.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

import structlog

from rexec.address import host_and_port
from rexec.external_metrics import Answer, Ask, answer, failure, is_probe
from rexec.tls import TlsFiles
from rexec.tls_settings import TlsSettings

log = structlog.get_logger()

MAX_CONNECTIONS: Final = 64
"""At once. One more is closed without a word."""

MAX_HEAD_BYTES: Final = 32 << 10
"""Request line and headers; the API server adds the groups of a user and what its authenticator knows of him."""

CONNECTION_SECONDS: Final = 15.0
"""From the end of the handshake to the end of the connection."""

HANDSHAKE_SECONDS: Final = 10.0

_HEAD_END: Final = b"\r\n\r\n"


class MetricsPort:
    """Answers requests by asking the scheduler."""

    def __init__(self, settings: TlsSettings, names: Sequence[str], ask: Ask) -> None:
        """`settings.client_ca`: of the front proxy, if only that may ask; `names`: its certificate's common names, none for any.
        Raises AuthUnusable."""
        self._settings = settings
        self._names = frozenset(names)
        self._ask = ask
        self._files = TlsFiles(settings)
        self._current = self._context()
        self._connections = 0

    @asynccontextmanager
    async def listening(self, address: str) -> AsyncIterator[int]:
        """Answer at https://ADDRESS meanwhile; gives the port. Raises OSError if it is taken."""
        host, port = host_and_port(address)
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listener = socket.create_server(found[0][4][:2], family=found[0][0], backlog=128)
        outer = self._context()
        outer.sni_callback = self._choose
        server = await asyncio.start_server(
            self._connected,
            sock=listener,
            ssl=outer,
            limit=MAX_HEAD_BYTES,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
        )
        try:
            yield listener.getsockname()[1]
        finally:
            server.close()

    def _choose(self, connection: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called at each handshake, whatever name the client gives."""
        if self._files.changed() is not None:
            try:
                self._current = self._context()
            except OSError as error:  # changed again this moment
                log.warning("changed TLS files not used", reason=str(error))
        connection.context = self._current

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._settings.certificate, self._settings.key, password="")
        if self._settings.client_ca:
            # Probes show none, so it is looked at with the request.
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(self._settings.client_ca)
        return context

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections += 1
        try:
            async with asyncio.timeout(CONNECTION_SECONDS):
                with_body, found = await self._conversed(reader, writer)
                writer.write(_encoded(found, with_body))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client went away, or neither asks nor reads
        finally:
            self._connections -= 1
            with suppress(OSError):
                writer.transport.abort()

    async def _conversed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bool, Answer]:
        """Whether the answer is sent with its body, and the answer."""
        try:
            head = await reader.readuntil(_HEAD_END)
        except asyncio.LimitOverrunError:
            return True, failure(400, f"the head of a request may have {MAX_HEAD_BYTES} bytes")
        words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return True, failure(400, "expected a line such as: GET /apis HTTP/1.1")
        method, target, _version = words
        with_body = method != "HEAD"
        if not is_probe(target.partition("?")[0]) and not self._may_ask(writer.get_extra_info("peercert")):
            return with_body, failure(403, "expected the certificate of the API server's front proxy")
        try:
            return with_body, await answer(method, target, self._ask, datetime.now(UTC))
        except Exception:
            log.exception("a request for external metrics failed", target=target[:200])
            return with_body, failure(500, "this is a fault of rexec external-metrics; its log says more")

    def _may_ask(self, certificate: dict[str, Any] | None) -> bool:
        """`certificate`: as ssl.SSLSocket.getpeercert gives it, of one that has been verified."""
        if not self._settings.client_ca:
            return True
        if not certificate:
            return False
        subject = [pair for part in certificate.get("subject", ()) for pair in part]
        return not self._names or any(name == "commonName" and value in self._names for name, value in subject)


def _encoded(found: Answer, with_body: bool) -> bytes:
    is_text = isinstance(found.body, str)
    body = found.body.encode() if isinstance(found.body, str) else json.dumps(found.body).encode()
    head = (
        f"HTTP/1.1 {found.status} {HTTPStatus(found.status).phrase}\r\n"
        f"Content-Type: {'text/plain; charset=utf-8' if is_text else 'application/json'}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + (body if with_body else b"")
