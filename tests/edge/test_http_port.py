"""The HTTP port: what it answers, and what it does with those who ask in bad faith."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric

from rexec import http_port
from rexec.http_port import MAX_CONNECTIONS, MAX_HEAD_BYTES, Figures, shown

GUARD_SECONDS = 20


class Process:
    """Something to be asked about."""

    def __init__(self) -> None:
        self.reason = ""
        registry = CollectorRegistry()
        self.counter = Counter("things", "Things.", registry=registry)
        self.figures = Figures(registry, self.state, lambda: self.reason)

    def state(self) -> Sequence[Metric]:
        self.asked_in = threading.current_thread()
        return (GaugeMetricFamily("now", "What is true.", value=7),)


async def ask(port: int, request: bytes) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of the answer to these bytes."""
    async with asyncio.timeout(GUARD_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body.decode()


async def get(port: int, path: str) -> tuple[int, str]:
    status, _, body = await ask(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return status, body


@asynccontextmanager
async def port_of(process: Process, connection_seconds: float = GUARD_SECONDS) -> AsyncIterator[int]:
    with shown("127.0.0.1:0", process.figures, connection_seconds) as port:
        yield port


@pytest.fixture
async def process() -> Process:
    return Process()


async def test_a_process_that_lives_and_takes_work_says_so(process: Process) -> None:
    async with port_of(process) as port:
        assert await get(port, "/healthz") == (200, "lives\n")
        assert await get(port, "/readyz") == (200, "ready\n")


async def test_a_process_that_takes_no_work_says_why_and_lives_on(process: Process) -> None:
    async with port_of(process) as port:
        process.reason = "it is draining"
        assert await get(port, "/readyz?verbose") == (503, "it is draining\n")
        assert (await get(port, "/healthz"))[0] == 200


async def test_counters_and_state_are_shown_and_state_is_asked_for_on_the_main_loop(process: Process) -> None:
    process.counter.inc(3)
    async with port_of(process) as port:
        status, headers, body = await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert "things_total 3.0" in body
    assert "now 7.0" in body
    assert process.asked_in is threading.current_thread()


async def test_a_stuck_event_loop_is_neither_healthy_nor_ready_and_its_counters_are_still_shown(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_port, "LOOP_SECONDS", 0.05)
    process.counter.inc()
    answers: list[tuple[int, str]] = []

    def others(port: int) -> None:
        async def all_three() -> None:
            answers.extend([await get(port, path) for path in ("/healthz", "/readyz", "/metrics")])

        asyncio.run(all_three())

    async with port_of(process) as port:
        asking = threading.Thread(target=others, args=(port,))
        asking.start()
        asking.join(GUARD_SECONDS)  # this is the main loop's thread: nothing runs on it meanwhile
        assert [status for status, _ in answers] == [503, 503, 200]
        assert answers[0][1] == "the event loop has not answered for 0.05 s\n"
        assert "things_total 1.0" in answers[2][1]
        assert "now" not in answers[2][1]
        assert (await get(port, "/healthz"))[0] == 200  # once it is free again


async def test_anything_else_is_not_found_and_what_there_is_is_named(process: Process) -> None:
    async with port_of(process) as port:
        for path in ("/", "/metrics/", "/../etc/passwd", "http://x/metrics", "/%6detrics"):
            status, body = await get(port, path)
            assert status == 404
            assert "/metrics" in body
            assert "/healthz" in body


async def test_a_head_is_answered_without_a_body(process: Process) -> None:
    async with port_of(process) as port:
        status, headers, body = await ask(port, b"HEAD /healthz HTTP/1.1\r\n\r\n")
    assert (status, headers["Content-Length"], body) == (200, "6", "")


async def test_other_methods_are_refused_and_their_bodies_not_read(process: Process) -> None:
    async with port_of(process) as port:
        for method in ("POST", "PUT", "DELETE", "get"):
            request = f"{method} /metrics HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n"
            status, headers, _ = await ask(port, request.encode())
            assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "line", [b"", b"GET", b"GET /metrics", b"GET / metrics HTTP/1.1", b"GET / HTTP/2.0", b"\xff\x00 \xff \xff"]
)
async def test_what_is_not_http_is_refused(process: Process, line: bytes) -> None:
    async with port_of(process) as port:
        assert (await ask(port, line + b"\r\n\r\n"))[0] == 400


async def test_a_head_that_is_too_large_is_refused_however_it_comes(process: Process) -> None:
    async with port_of(process) as port:
        for end in (b"", b"\r\n\r\n"):
            request = b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (3 * MAX_HEAD_BYTES) + end
            status, _, body = await ask(port, request)
            assert status == 431
            assert str(MAX_HEAD_BYTES) in body


async def test_a_client_that_never_ends_its_request_is_told_and_let_go(process: Process) -> None:
    async with port_of(process, connection_seconds=0.2) as port:
        status, _, body = await ask(port, b"GET /healthz HTTP/1.1\r\nX: ")
    assert (status, body) == (408, "no whole request came within 0.1 s\n")


async def test_a_client_that_hangs_up_harms_nobody(process: Process) -> None:
    async with port_of(process) as port:
        for request in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\n\r\n"):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            writer.transport.abort()
        assert (await get(port, "/healthz"))[0] == 200


async def test_there_are_never_more_connections_than_the_limit(process: Process) -> None:
    async with port_of(process) as port, asyncio.timeout(GUARD_SECONDS):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        for first, opened in held:
            opened.write(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert (await first.readline()) == b"HTTP/1.1 200 OK\r\n"
            opened.close()


async def test_a_fault_in_the_figures_is_an_answer_too(process: Process) -> None:
    def broken() -> str:
        raise KeyError("secret")

    figures = Figures(process.figures.registry, process.figures.state, broken)
    with shown("127.0.0.1:0", figures) as port:
        status, body = await get(port, "/readyz")
        assert status == 500
        assert "secret" not in body
        assert (await get(port, "/healthz"))[0] == 200


async def test_a_port_that_is_taken_is_an_error_and_a_closed_one_is_free_again(process: Process) -> None:
    with shown("127.0.0.1:0", process.figures) as port:
        with pytest.raises(OSError, match="in use"), shown(f"127.0.0.1:{port}", process.figures):
            pass
        _, waiting = await asyncio.open_connection("127.0.0.1", port)
    with shown(f"127.0.0.1:{port}", process.figures):
        assert (await get(port, "/readyz"))[0] == 200
    waiting.close()
