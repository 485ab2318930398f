"""HTTP against servers that lie, stall, redirect and resolve to wherever they like. All of them listen on 127.0.0.1."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cas.assets_config import AssetSettings
from cas.errors import Code
from cas.fetch_address import Guard
from cas.fetch_failure import FetchFailed
from cas.fetch_http import HttpSource

Respond = Callable[[str, dict[str, str], asyncio.StreamWriter], Awaitable[None]]


def plain(content: bytes = b"content", status: str = "200 OK", **headers: str) -> bytes:
    """An answer, with the Content-Length that is true unless the headers say otherwise."""
    fields = {"Content-Length": str(len(content))} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items() if value)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + content


class Web:
    """Servers by path, and hosts by name."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | Respond] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.hosts: dict[str, list[str]] = {"host.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}
        self.resolved: list[str] = []
        self.port = 0
        self.stalled = asyncio.Event()

    def url(self, path: str, host: str = "host.test") -> str:
        return f"http://{host}:{self.port}{path}"

    async def resolve(self, host: str, _port: int) -> Sequence[str]:
        self.resolved.append(host)
        if host not in self.hosts:
            raise OSError("no such host")
        return self.hosts[host]

    def source(self, **settings: Any) -> HttpSource:
        defaults: dict[str, Any] = {
            "fetch": True,
            "allowed_urls": (f"http://*:{self.port}", "http://*", "https://*", f"https://*:{self.port}"),
            "private_networks": ("127.0.0.0/8",),
            "idle_seconds": 30.0,
        }
        chosen = AssetSettings(**(defaults | settings))
        return HttpSource(chosen, Guard(chosen.networks(), self.resolve))

    async def get(self, url: str, headers: tuple[tuple[str, str], ...] = (), **settings: Any) -> bytes:
        encoded_allowed = settings.pop("encoded_allowed", False)
        async with (
            asyncio.timeout(20),
            self.source(**settings).open(url, headers, encoded_allowed=encoded_allowed) as pieces,
        ):
            return b"".join([piece async for piece in pieces])

    async def failure(self, url: str, headers: tuple[tuple[str, str], ...] = (), **settings: Any) -> FetchFailed:
        with pytest.raises(FetchFailed) as caught:
            await self.get(url, headers, **settings)
        return caught.value

    async def stall(self, _path: str, _headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        """Say nothing until the test is over."""
        await writer.drain()
        await self.stalled.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            path = head[0].split(" ")[1]
            headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head[1:] if line}
            self.requests.append((path, headers))
            answer = self.answers[path]
            if isinstance(answer, bytes):
                writer.write(answer)
            else:
                await answer(path, headers, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client left, as it should
        finally:
            writer.close()


@asynccontextmanager
async def running_web() -> AsyncIterator[Web]:
    web = Web()
    server = await asyncio.start_server(web.serve, "127.0.0.1", 0)
    web.port = server.sockets[0].getsockname()[1]
    try:
        yield web
    finally:
        web.stalled.set()
        server.close()
        await server.wait_closed()


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with running_web() as running:
        yield running


async def test_content_arrives_with_the_name_of_the_host_and_the_headers_asked_for(web: Web) -> None:
    web.answers["/a?b=c"] = plain(b"x" * 200_000)
    assert await web.get(web.url("/a?b=c"), (("authorization", "Bearer token"),)) == b"x" * 200_000
    ((_, headers),) = web.requests
    assert headers["host"] == f"host.test:{web.port}"
    assert headers["authorization"] == "Bearer token"
    assert headers["accept-encoding"] == "identity"


async def test_a_body_without_a_length_ends_with_the_connection(web: Web) -> None:
    web.answers["/"] = plain(Content_Length="")
    assert await web.get(web.url("/")) == b"content"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("404 Not Found", Code.NOT_FOUND),
        ("410 Gone", Code.NOT_FOUND),
        ("401 Unauthorized", Code.PERMISSION_DENIED),
        ("403 Forbidden", Code.PERMISSION_DENIED),
        ("407 Proxy Authentication Required", Code.PERMISSION_DENIED),
        ("408 Request Timeout", Code.DEADLINE_EXCEEDED),
        ("429 Too Many Requests", Code.RESOURCE_EXHAUSTED),
        ("500 Internal Server Error", Code.UNAVAILABLE),
        ("503 Service Unavailable", Code.UNAVAILABLE),
        ("504 Gateway Timeout", Code.DEADLINE_EXCEEDED),
        ("204 No Content", Code.ABORTED),
        ("206 Partial Content", Code.ABORTED),
        ("304 Not Modified", Code.ABORTED),
        ("418 I'm a teapot", Code.ABORTED),
    ],
)
async def test_each_answer_that_is_not_the_content_has_its_code(web: Web, status: str, code: Code) -> None:
    web.answers["/?secret"] = plain(b"", status)
    failure = await web.failure(web.url("/?secret"))
    assert failure.code is code
    assert status[:3] in str(failure)
    assert "secret" not in str(failure)


# Where a connection leads.


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::ffff:127.0.0.1]", "[::1]"]
)
async def test_this_machine_is_not_connected_to_however_it_is_written(web: Web, host: str) -> None:
    web.answers["/"] = plain()
    settings = AssetSettings(fetch=True, allowed_urls=(f"http://*:{web.port}",))
    source = HttpSource(settings, Guard())
    with pytest.raises(FetchFailed) as caught:
        async with source.open(web.url("/", host), (), encoded_allowed=False):
            pass
    assert caught.value.code is Code.PERMISSION_DENIED
    assert web.requests == []


async def test_a_public_name_for_a_private_address_is_not_connected_to(web: Web) -> None:
    web.answers["/"] = plain()
    assert (await web.failure(web.url("/"), private_networks=())).code is Code.PERMISSION_DENIED
    assert web.requests == []


async def test_a_redirect_to_a_private_address_is_not_followed(web: Web) -> None:
    web.hosts["inside.test"] = ["10.0.0.1"]
    for target in (web.url("/", "inside.test"), f"http://169.254.169.254:{web.port}/latest", "http://[::1]/"):
        web.hosts |= {"169.254.169.254": ["169.254.169.254"], "::1": ["::1"]}
        web.answers["/"] = plain(b"", "302 Found", Location=target)
        assert (await web.failure(web.url("/"))).code is Code.PERMISSION_DENIED
    assert [path for path, _ in web.requests] == ["/"] * 3


async def test_a_name_is_resolved_once_for_each_hop_and_that_address_is_connected_to(web: Web) -> None:
    """A name that changes between the check and the connection gains nothing."""
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])

    async def rebinding(_host: str, _port: int) -> Sequence[str]:
        return next(answers)

    settings = AssetSettings(fetch=True, allowed_urls=(f"http://*:{web.port}",), private_networks=("127.0.0.0/8",))
    source = HttpSource(settings, Guard(settings.networks(), rebinding))
    web.answers["/"] = plain()
    async with source.open(web.url("/"), (), encoded_allowed=False) as pieces:
        assert b"".join([piece async for piece in pieces]) == b"content"
    with pytest.raises(FetchFailed) as caught:
        async with source.open(web.url("/"), (), encoded_allowed=False):
            pass
    assert caught.value.code is Code.PERMISSION_DENIED


async def test_only_addresses_that_were_checked_are_connected_to(web: Web) -> None:
    """A host that is an address never reaches the HTTP client's resolver; the socket is the last place to look."""
    web.answers["/"] = plain()
    web.hosts["127.0.0.1"] = ["127.0.0.2"]
    assert (await web.failure(web.url("/", "127.0.0.1"))).code is Code.UNAVAILABLE
    assert web.requests == []


async def test_a_host_that_does_not_exist_or_does_not_listen_is_unavailable(web: Web) -> None:
    assert (await web.failure(web.url("/", "nowhere.test"))).code is Code.UNAVAILABLE
    async with running_web() as gone:
        port = gone.port
    failure = await web.failure(f"http://host.test:{port}/", allowed_urls=(f"http://*:{port}",))
    assert failure.code is Code.UNAVAILABLE


async def test_a_server_that_does_not_speak_tls_is_given_up(web: Web) -> None:
    failure = await web.failure(web.url("/").replace("http://", "https://"), idle_seconds=0.1)
    assert failure.code is Code.DEADLINE_EXCEEDED
    assert web.requests == []


# Redirects.


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
async def test_redirects_are_followed(web: Web, status: str) -> None:
    web.answers["/start"] = plain(b"", status, Location="/relative")
    web.answers["/relative"] = plain(b"", status, Location=web.url("/end", "other.test"))
    web.answers["/end"] = plain()
    assert await web.get(web.url("/start")) == b"content"
    assert web.resolved == ["host.test", "host.test", "other.test"]


async def test_headers_are_not_sent_to_another_origin(web: Web) -> None:
    web.answers["/start"] = plain(b"", "302 x", Location="/here")
    web.answers["/here"] = plain(b"", "302 x", Location=web.url("/there", "other.test"))
    web.answers["/there"] = plain(b"", "302 x", Location=web.url("/end"))
    web.answers["/end"] = plain()
    await web.get(web.url("/start"), (("authorization", "secret"), ("x-token", "secret")))
    assert [("authorization" in headers, "x-token" in headers) for _, headers in web.requests] == [
        (True, True),
        (True, True),
        (False, False),
        (False, False),
    ]


async def test_cookies_are_not_kept(web: Web) -> None:
    web.answers["/start"] = plain(b"", "302 x", Location="/end", Set_Cookie="a=b")
    web.answers["/end"] = plain()
    await web.get(web.url("/start"))
    assert "cookie" not in web.requests[1][1]


async def test_an_endless_chain_of_redirects_ends(web: Web) -> None:
    web.answers["/"] = plain(b"", "302 x", Location="/")
    assert (await web.failure(web.url("/"), max_redirects=4)).code is Code.ABORTED
    assert len(web.requests) == 5


async def test_redirects_can_be_switched_off(web: Web) -> None:
    web.answers["/"] = plain(b"", "302 x", Location="/end")
    assert (await web.failure(web.url("/"), max_redirects=0)).code is Code.ABORTED
    assert len(web.requests) == 1


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("", Code.ABORTED),
        ("file:///etc/passwd", Code.PERMISSION_DENIED),
        ("ftp://host.test/", Code.PERMISSION_DENIED),
        ("http://user:secret@host.test/", Code.PERMISSION_DENIED),
        ("http://host.test:22/", Code.PERMISSION_DENIED),
        ("http://[::1", Code.ABORTED),
        ("http://host.test:999999/", Code.ABORTED),
        ("/" + "a" * 9000, Code.ABORTED),
    ],
)
async def test_redirects_to_what_may_not_be_fetched_are_refused(web: Web, target: str, code: Code) -> None:
    web.answers["/"] = plain(b"", "302 x", Location=target)
    failure = await web.failure(web.url("/"))
    assert failure.code is code
    assert "secret" not in str(failure)
    assert len(web.requests) == 1


async def test_a_redirect_out_of_the_allowed_urls_is_refused(web: Web) -> None:
    web.answers["/group/a"] = plain(b"", "302 x", Location="/other")
    failure = await web.failure(web.url("/group/a"), allowed_urls=(f"http://host.test:{web.port}/group",))
    assert failure.code is Code.PERMISSION_DENIED
    assert len(web.requests) == 1


# Sizes and encodings.


async def test_more_than_allowed_is_refused_before_it_is_read(web: Web) -> None:
    web.answers["/"] = plain(b"x", Content_Length=str(1 << 60))
    assert (await web.failure(web.url("/"), fetch_max_bytes=1000)).code is Code.RESOURCE_EXHAUSTED


async def test_more_than_allowed_is_refused_without_a_length_too(web: Web) -> None:
    async def endless(_path: str, _headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(plain(b"", Content_Length=""))
        while True:
            writer.write(bytes(10_000))
            await writer.drain()

    web.answers["/"] = endless
    assert (await web.failure(web.url("/"), fetch_max_bytes=1 << 20)).code is Code.RESOURCE_EXHAUSTED


async def test_exactly_as_much_as_allowed_is_taken(web: Web) -> None:
    web.answers["/"] = plain(bytes(1000))
    assert await web.get(web.url("/"), fetch_max_bytes=1000) == bytes(1000)


async def test_less_than_promised_is_not_the_content(web: Web) -> None:
    web.answers["/"] = plain(b"short", Content_Length="1000")
    assert (await web.failure(web.url("/"))).code is Code.ABORTED


async def test_what_comes_after_the_promised_length_is_not_part_of_the_content(web: Web) -> None:
    async def chatty(_path: str, _headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(plain(b"content", Content_Length="7"))
        await writer.drain()
        await web.stalled.wait()
        writer.write(b" and more")

    web.answers["/"] = chatty
    async with web.source().open(web.url("/"), (), encoded_allowed=False) as pieces:
        first = await anext(pieces)
        web.stalled.set()
        assert first + b"".join([piece async for piece in pieces]) == b"content"
    # Where it comes at once the whole answer is refused.
    web.answers["/"] = plain(b"content and more", Content_Length="7")
    assert (await web.failure(web.url("/"))).code is Code.ABORTED


async def test_a_broken_chunk_is_not_the_content(web: Web) -> None:
    web.answers["/"] = plain(b"5\r\nhello\r\nZZ\r\n", Content_Length="", Transfer_Encoding="chunked")
    assert (await web.failure(web.url("/"))).code is Code.ABORTED


async def test_a_compressed_bomb_stays_compressed(web: Web) -> None:
    bomb = gzip.compress(bytes(20 << 20))
    web.answers["/"] = plain(bomb, Content_Encoding="gzip")
    assert (await web.failure(web.url("/"))).code is Code.ABORTED
    assert await web.get(web.url("/"), encoded_allowed=True, fetch_max_bytes=len(bomb)) == bomb


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", b"HTTP/1.1 " + b"9" * 100_000,
     b"HTTP/1.1 200 OK\r\nA: " + b"a" * 100_000 + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"\x16\x03\x01\x02\x00"],
)  # fmt: skip
async def test_what_is_no_answer_is_a_failure_of_the_fetch(web: Web, answer: bytes) -> None:
    web.answers["/"] = answer
    assert (await web.failure(web.url("/"))).code in (Code.ABORTED, Code.UNAVAILABLE)


# Time.


async def test_a_server_that_does_not_answer_is_given_up(web: Web) -> None:
    web.answers["/"] = web.stall
    assert (await web.failure(web.url("/"), idle_seconds=0.05)).code is Code.DEADLINE_EXCEEDED


async def test_a_server_that_stops_in_the_middle_is_given_up(web: Web) -> None:
    async def half(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(plain(b"half", Content_Length="8"))
        await web.stall(path, headers, writer)

    web.answers["/"] = half
    assert (await web.failure(web.url("/"), idle_seconds=0.05)).code is Code.DEADLINE_EXCEEDED


async def test_a_resolver_that_does_not_answer_is_given_up(web: Web) -> None:
    async def silent(_host: str, _port: int) -> Sequence[str]:
        await web.stalled.wait()
        return []

    settings = AssetSettings(fetch=True, idle_seconds=0.05)
    with pytest.raises(FetchFailed) as caught:
        async with HttpSource(settings, Guard((), silent)).open("http://host.test/", (), encoded_allowed=False):
            pass
    assert caught.value.code is Code.DEADLINE_EXCEEDED
