"""The HTTP port for Prometheus, Kubernetes and people with curl: `/healthz`, `/readyz`, `/metrics`.

It runs on an event loop of its own, in a thread, because it has to say so when the process's main loop is stuck. Whatever
the main loop owns is asked for there and never touched from here; an answer that takes longer than LOOP_SECONDS is
itself the news. Counters and histograms are locked by the library and read from here.

Whoever reaches the port needs no credentials, so everything about a connection is bounded: its number, the head of its
request, its one request and its time. Bodies are not read. The thread makes the text of `/metrics`, so nobody but
Prometheus should reach the port.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from rexec.address import host_and_port

log = structlog.get_logger()

T = TypeVar("T")

LOOP_SECONDS: Final = 1.0
"""How long the main loop may take to answer before it counts as stuck."""

MAX_CONNECTIONS: Final = 64
"""At once. One more is closed without a word: probes and Prometheus need a handful."""

MAX_HEAD_BYTES: Final = 8 << 10
"""Request line and headers."""

CONNECTION_SECONDS: Final = 10.0
"""From a connection to its end, however slowly the client sends or reads."""

LINGER_SECONDS: Final = 1.0
"""How long what the client still sends is thrown away after the answer: closing with bytes unread resets the connection, and
the client might never see the answer."""

_HEAD_END: Final = b"\r\n\r\n"
_TEXT: Final = "text/plain; charset=utf-8"
_HINT: Final = "try /metrics (Prometheus), /healthz (does it live?) or /readyz (does it take work?)\n"
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Figures:
    """What a process shows. The functions are called on the main loop and must return at once."""

    registry: CollectorRegistry
    """What is counted."""
    state: Callable[[], Sequence[Metric]]
    """What is true now. Left out of `/metrics` while the main loop is stuck: a number that may be wrong is not shown."""
    unready: Callable[[], str]
    """Why the process takes no work, in words; "" if it does."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = _TEXT

    def encoded(self, with_body: bool) -> bytes:
        head = (
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}\r\n"
            f"Content-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\n"
            "Cache-Control: no-store\r\n"
            + ("Allow: GET, HEAD\r\n" if self.status == 405 else "")
            + "Connection: close\r\n\r\n"
        )
        return head.encode("ascii") + (self.body if with_body else b"")


def _said(status: int, text: str) -> _Answer:
    return _Answer(status, f"{text}\n".encode())


class _Unanswered(Exception):
    """The main loop has not answered in time."""


class _Port:
    """Answers requests on the loop that it is used on, about the process whose main loop is `main`."""

    def __init__(self, figures: Figures, main: asyncio.AbstractEventLoop, connection_seconds: float) -> None:
        self._figures = figures
        self._main = main
        self._connection_seconds = connection_seconds
        self._connections = 0

    async def serve(self, listener: socket.socket, closed: Coroutine[None, None, object]) -> None:
        """Until `closed` returns; connections that are open then are cut off."""
        server = await asyncio.start_server(self._connected, sock=listener, limit=MAX_HEAD_BYTES)
        try:
            await closed
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections += 1
        try:
            async with asyncio.timeout(self._connection_seconds):
                await self._converse(reader, writer)
        except (OSError, TimeoutError):
            pass  # the client went away, or neither asks nor reads
        finally:
            self._connections -= 1
            writer.transport.abort()  # all that was to be sent has been, or never will be

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with_body = True
        try:
            # Shorter than the whole, so that there is time left to say so.
            async with asyncio.timeout(self._connection_seconds / 2):
                head = await reader.readuntil(_HEAD_END)
        except asyncio.LimitOverrunError:
            answer = _said(431, f"the head of a request may have {MAX_HEAD_BYTES} bytes")
        except TimeoutError:
            answer = _said(408, f"no whole request came within {self._connection_seconds / 2:g} s")
        except asyncio.IncompleteReadError:
            return
        else:
            with_body = not head.startswith(b"HEAD ")
            answer = await self._answer(head)
        writer.transport.set_write_buffer_limits(0)  # so that drain waits for the last byte
        writer.write(answer.encoded(with_body))
        await writer.drain()
        writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while await reader.read(MAX_HEAD_BYTES):
                    pass

    async def _answer(self, head: bytes) -> _Answer:
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _said(400, "expected a line such as: GET /metrics HTTP/1.1")
        method, target, _ = words
        if method not in (b"GET", b"HEAD"):
            return _said(405, "expected GET or HEAD")
        try:
            match target.partition(b"?")[0]:
                case b"/healthz":
                    return await self._health()
                case b"/readyz":
                    return await self._readiness()
                case b"/metrics":
                    return await self._metrics()
                case _:
                    return _said(404, f"nothing here; {_HINT}".rstrip("\n"))
        except Exception:
            log.exception("a request to the HTTP port failed", target=target[:100].decode("latin-1"))
            return _said(500, "this is a fault of the server; its log says more")

    async def _health(self) -> _Answer:
        try:
            await self._asked(lambda: None)
        except _Unanswered as stuck:
            return _said(503, str(stuck))
        return _said(200, "lives")

    async def _readiness(self) -> _Answer:
        try:
            reason = await self._asked(self._figures.unready)
        except _Unanswered as stuck:
            return _said(503, str(stuck))
        return _said(503, reason) if reason else _said(200, "ready")

    async def _metrics(self) -> _Answer:
        try:
            state = await self._asked(self._figures.state)
        except _Unanswered:
            state = ()
        text = generate_latest(self._figures.registry) + generate_latest(_Taken(state))
        return _Answer(200, text, CONTENT_TYPE_LATEST)

    async def _asked(self, question: Callable[[], T]) -> T:
        """What `question` returns on the main loop. Raises _Unanswered."""
        answered: Future[T] = Future()

        def ask() -> None:
            if not answered.set_running_or_notify_cancel():
                return  # nobody waits any more
            try:
                answered.set_result(question())
            except Exception as error:  # noqa: BLE001  # raised where it was asked
                answered.set_exception(error)

        try:
            self._main.call_soon_threadsafe(ask)
            async with asyncio.timeout(LOOP_SECONDS):
                return await asyncio.wrap_future(answered)
        except TimeoutError:
            raise _Unanswered(f"the event loop has not answered for {LOOP_SECONDS:g} s") from None
        except RuntimeError as error:
            raise _Unanswered("the event loop has ended") from error


class _Taken(Collector):
    """Metrics that were made before."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


@contextmanager
def shown(address: str, figures: Figures, connection_seconds: float = CONNECTION_SECONDS) -> Iterator[int]:
    """Answer at http://ADDRESS meanwhile; gives the port. Raises OSError if it is taken. To be used on the main loop."""
    host, port = host_and_port(address)
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listener = socket.create_server(found[0][4][:2], family=found[0][0], backlog=128)
    answering = _Port(figures, asyncio.get_running_loop(), connection_seconds)
    loop = asyncio.new_event_loop()
    closed = asyncio.Event()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(answering.serve(listener, closed.wait()))

    # A daemon: a process that ends without leaving this block must not be held up by it.
    thread = threading.Thread(target=run, name="http port", daemon=True)
    real_port: int = listener.getsockname()[1]
    thread.start()
    try:
        yield real_port
    finally:
        with suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(closed.set)
        thread.join(LOOP_SECONDS)
        listener.close()
