"""Behaviour 13, its other half: the server bears with clients that ping."""

from __future__ import annotations

import asyncio
import ssl
import struct

from integration.conformance.case import Phase, behaviour
from integration.conformance.client import Client
from integration.conformance.expect import fail

PING_SECONDS = 10.0
PINGS = 6
"""gRPC servers with default settings lose patience at the third."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1


def _frame(kind: int, flags: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame of the connection itself (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + bytes(4) + payload


async def _open(client: Client) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    target = client.options.target
    if target.startswith("unix:"):
        return await asyncio.open_unix_connection(target.removeprefix("unix:"))
    host, _, port = target.rpartition(":")
    context = None
    if client.options.tls:
        context = ssl.create_default_context(cafile=client.options.tls_ca or None)
        context.set_alpn_protocols(["h2"])
    return await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)


@behaviour(
    13, "client pings every 10 s without a call do not end the connection", phase=Phase.BACKGROUND, timeout_seconds=120
)
async def pings(client: Client) -> None:
    """An idle connection over HTTP/2 that pings for a minute gets its answers and no GOAWAY."""
    reader, writer = await _open(client)
    answered = 0
    try:
        writer.write(PREFACE + _frame(SETTINGS, 0))

        async def read() -> None:
            nonlocal answered
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags = head[3], head[4]
                if kind == GOAWAY:
                    code = int.from_bytes(payload[4:8], "big")
                    fail(f"expected the connection to live, got GOAWAY {code} {payload[8:].decode(errors='replace')!r}")
                if kind == SETTINGS and not flags & ACK:
                    writer.write(_frame(SETTINGS, ACK))
                if kind == PING:
                    if flags & ACK:
                        answered += 1
                    else:
                        writer.write(_frame(PING, ACK, payload))

        reading = asyncio.ensure_future(read())
        for number in range(PINGS):
            writer.write(_frame(PING, 0, number.to_bytes(8, "big")))
            done, _ = await asyncio.wait([reading], timeout=PING_SECONDS)
            if done:
                try:
                    await reading
                except (asyncio.IncompleteReadError, ConnectionError):
                    fail(f"expected the connection to live, the server closed it after {number + 1} pings")
        reading.cancel()
        if answered != PINGS:
            fail(f"expected {PINGS} answers to as many pings, got {answered}")
    finally:
        writer.close()
