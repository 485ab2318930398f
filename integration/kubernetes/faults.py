"""A proxy before the API server that can be told to fail: the server is throttled, broken, silent or gone for those behind it.

Plain HTTP towards the tests, the administrator's TLS towards the server. One request a connection; watches go through piece by
piece.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml

CLOSED = "closed"
"""A verdict: the connection is closed without an answer."""
SILENT = "silent"
"""A verdict: nothing is answered, and the connection stays open."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict: answer so instead of the server."""

    code: int
    reason: str
    message: str
    retry_after: int | None = None

    def encoded(self) -> bytes:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.code, "reason": self.reason}
        body = json.dumps({**status, "message": self.message}).encode()
        after = f"Retry-After: {self.retry_after}\r\n" if self.retry_after is not None else ""
        head = f"HTTP/1.1 {self.code} {self.reason}\r\nContent-Type: application/json\r\nConnection: close\r\n{after}"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True, slots=True)
class Instead:
    """A verdict: the server is asked for this target and not the one named."""

    target: str


@dataclass(frozen=True, slots=True)
class Event:
    """A verdict: the watch has this one event, and ends."""

    type: str
    code: int
    message: str

    def encoded(self) -> bytes:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.code, "message": self.message}
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
        return head.encode() + json.dumps({"type": self.type, "object": status}).encode() + b"\n"


Verdict = Answer | Event | Instead | str | None
"""None: the server answers."""


class FaultProxy:
    """The proxy. `judge` is asked for a verdict on each request, by method and target; it may be replaced at any time."""

    def __init__(self, kubeconfig: Path) -> None:
        self.judge: Callable[[str, str], Verdict] = lambda method, target: None
        self.requests: list[tuple[str, str]] = []
        """Method and target of all so far."""
        self.times: list[float] = []
        """When each of them came, in seconds since 1970."""
        config = yaml.safe_load(kubeconfig.read_text())
        context = next(entry["context"] for entry in config["contexts"] if entry["name"] == config["current-context"])
        cluster = next(entry["cluster"] for entry in config["clusters"] if entry["name"] == context["cluster"])
        user = next(entry["user"] for entry in config["users"] if entry["name"] == context["user"])
        self._server = urlsplit(cluster["server"])
        self._token = user.get("token", "")
        self._tls = _tls(cluster, user)
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._ended = asyncio.Event()
        self.port = 0

    def cut(self) -> None:
        """Close all connections that are open, watches too."""
        self._loop.call_soon_threadsafe(self._abort_all)

    def run(self, ready: threading.Event) -> None:
        """Serve until `end`; on the thread that calls."""
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(ready))
        self._loop.close()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)

    async def _serve(self, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._ended.wait()
        server.close()
        self._abort_all()

    def _abort_all(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._pass(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests.append((method, target))
        self.times.append(time.time())
        match self.judge(method, target):
            case None:
                pass
            case Answer() | Event() as answer:
                writer.write(answer.encoded())
                await writer.drain()
                return
            case Instead(other):
                first = f"{method} {other} HTTP/1.1"
            case "silent":
                await reader.read()
                return
            case _:
                writer.transport.abort()
                return
        headers |= {"host": self._server.netloc, "connection": "close"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        upstream_reader, upstream = await asyncio.open_connection(
            self._server.hostname, self._server.port or 443, ssl=self._tls
        )
        self._open.add(upstream)
        try:
            sent = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            upstream.write(f"{first}\r\n{sent}\r\n".encode() + body)
            gone = asyncio.create_task(reader.read())
            gone.add_done_callback(lambda _: upstream.transport.abort())
            while piece := await upstream_reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()
            gone.cancel()
        finally:
            self._open.discard(upstream)
            upstream.transport.abort()


@contextmanager
def fault_proxy(kubeconfig: Path, folder: Path) -> Iterator[tuple[FaultProxy, Path]]:
    """A proxy before the server of the kubeconfig, and the kubeconfig of those who come through it."""
    proxy = FaultProxy(kubeconfig)
    ready = threading.Event()
    thread = threading.Thread(target=proxy.run, args=(ready,), name="fault proxy")
    thread.start()
    try:
        assert ready.wait(10)
        behind = folder / "proxied.kubeconfig"
        behind.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{proxy.port}"}}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        yield proxy, behind
    finally:
        proxy.end()
        thread.join(10)


def _tls(cluster: dict[str, str], user: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=cluster.get("certificate-authority"))
    if data := cluster.get("certificate-authority-data"):
        context.load_verify_locations(cadata=base64.b64decode(data).decode())
    if data := user.get("client-certificate-data"):
        # The module ssl reads certificates from files only.
        with tempfile.NamedTemporaryFile() as file:
            file.write(base64.b64decode(data) + b"\n" + base64.b64decode(user["client-key-data"]))
            file.flush()
            context.load_cert_chain(file.name)
    elif "client-certificate" in user:
        context.load_cert_chain(user["client-certificate"], user["client-key"])
    return context
