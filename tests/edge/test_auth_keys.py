"""Where the keys of signed tokens come from."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rexec.auth.credentials import AuthUnusable
from rexec.auth.keys import MAX_SET_BYTES, FetchedKeys, FileKeys, KeyName, over_https, parse_keys
from rexec.auth.settings import ALGORITHMS, JwtSettings
from tests.edge.certificates import Authority
from tests.edge.issuer import AUDIENCE, ISSUER, SigningKey, key_set

FIRST, SECOND = SigningKey("ES256", "first"), SigningKey("ES256", "second")


def settings(**changes: Any) -> JwtSettings:
    url = "https://issuer.test/keys"
    return JwtSettings(**{"issuer": ISSUER, "audience": (AUDIENCE,), "jwks_url": url, **changes})


class Provider:
    """Answers fetches as the test says, and counts them."""

    def __init__(self, *keys: SigningKey) -> None:
        self.answer: bytes | Exception = key_set(*keys)
        self.fetches = 0
        self.asked = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def fetch(self) -> bytes:
        self.fetches += 1
        self.asked.set()
        await self.go.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_only_public_keys_for_signatures_of_allowed_algorithms_are_taken() -> None:
    rsa, ed = SigningKey("RS256", "rsa"), SigningKey("EdDSA", "ed")
    listed = [
        rsa.jwk(),
        {**FIRST.jwk(), "alg": "ES256", "use": "sig"},
        ed.jwk(use="enc"),
        {"kty": "oct", "kid": "secret", "k": "c2VjcmV0", "alg": "HS256"},
        {**rsa.jwk(), "kid": "wrong", "alg": "HS256"},
        {**rsa.jwk(), "kid": "pss", "alg": "PS256"},
        {**FIRST.jwk(), "kid": "curve", "crv": "P-384"},
        {**FIRST.jwk(), "kid": "broken", "x": "AAAA"},
        {**FIRST.jwk(), "kid": "halved", "y": None},
        {**rsa.jwk(), "kid": ["list"]},
        {"kty": ["RSA"]},
        "text",
        None,
    ]
    keys = parse_keys(ALGORITHMS, json.dumps({"keys": listed}).encode())
    assert set(keys) == {KeyName("rsa", "RS256"), KeyName("first", "ES256")}
    assert set(parse_keys(("RS256",), json.dumps({"keys": listed}).encode())) == {KeyName("rsa", "RS256")}


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b'{"keys": [5]}', b"[" * 100_000, b"<html>"],
)
def test_what_is_no_set_of_keys_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a JWK set"):
        parse_keys(ALGORITHMS, data)


def test_a_file_without_keys_is_named(tmp_path: Path) -> None:
    for content in (None, b"{}"):
        if content is not None:
            (tmp_path / "keys.json").write_bytes(content)
        with pytest.raises(AuthUnusable, match=str(tmp_path / "keys.json")):
            FileKeys(tmp_path / "keys.json", ALGORITHMS)


async def test_keys_are_fetched_when_they_are_first_needed_and_then_kept() -> None:
    provider = Provider(FIRST)
    keys = FetchedKeys(settings(), provider.fetch)
    async with keys.running():
        assert not keys.current()
        await keys.renew()
        kept = keys.current()
        await keys.renew()
        assert set(kept) == {KeyName("first", "ES256")}
        assert keys.current() is kept
    assert provider.fetches == 1


async def test_unknown_keys_cause_a_fetch_at_most_every_retry_seconds() -> None:
    provider, clock = Provider(FIRST), Clock()
    keys = FetchedKeys(settings(retry_seconds=10), provider.fetch, clock)
    async with keys.running():
        await keys.renew()
        provider.answer = key_set(SECOND)
        for _ in range(100):
            await keys.renew()
        assert provider.fetches == 1
        clock.now += 10
        await keys.renew()
        assert set(keys.current()) == {KeyName("second", "ES256")}
    assert provider.fetches == 2


async def test_those_who_wait_share_one_fetch_and_one_who_leaves_does_not_spoil_it() -> None:
    provider = Provider(FIRST)
    provider.go.clear()
    keys = FetchedKeys(settings(), provider.fetch)
    async with keys.running(), asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        leaving = tasks.create_task(keys.renew())
        staying = [tasks.create_task(keys.renew()) for _ in range(3)]
        await provider.asked.wait()
        leaving.cancel()
        provider.go.set()
        await asyncio.gather(*staying)
        assert keys.current()
    assert provider.fetches == 1


async def test_old_keys_count_while_new_ones_are_fetched_beside_the_calls() -> None:
    provider, clock = Provider(FIRST), Clock()
    keys = FetchedKeys(settings(refresh_seconds=600), provider.fetch, clock)
    async with keys.running(), asyncio.timeout(10):
        await keys.renew()
        provider.answer = key_set(FIRST, SECOND)
        provider.asked.clear()
        clock.now += 601
        assert set(keys.current()) == {KeyName("first", "ES256")}
        await provider.asked.wait()
        await keys.renew()
        assert set(keys.current()) == {KeyName("first", "ES256"), KeyName("second", "ES256")}


@pytest.mark.parametrize(
    "failure", [OSError("no route"), ValueError("too large"), TimeoutError(), b"<html>", b'{"keys": []}']
)
async def test_a_fetch_that_fails_leaves_the_keys_as_they_are_and_may_be_repeated(failure: Exception | bytes) -> None:
    provider, clock = Provider(FIRST), Clock()
    keys = FetchedKeys(settings(retry_seconds=10), provider.fetch, clock)
    async with keys.running():
        await keys.renew()
        before, good = keys.current(), provider.answer
        provider.answer = failure
        clock.now += 10
        await keys.renew()
        assert keys.current() is before
        provider.answer = good
        clock.now += 10
        await keys.renew()
    assert provider.fetches == 3


class Handler(BaseHTTPRequestHandler):
    body = key_set(FIRST)

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/keys")
            self.end_headers()
            return
        body = b"x" * (MAX_SET_BYTES + 1) if self.path == "/large" else self.body
        self.send_response(404 if self.path == "/absent" else 200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        pass


@contextmanager
def https(authority: Authority) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pair = authority.pair("provider")
    context.load_cert_chain(pair.certificate, pair.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_keys_come_over_https_from_a_provider_that_is_trusted(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    with https(authority) as url:
        trusting = settings(jwks_url=f"{url}/keys", jwks_ca=str(authority.file))
        assert await over_https(trusting)() == Handler.body
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await over_https(settings(jwks_url=f"{url}/keys", jwks_ca=str(other.file)))()


@pytest.mark.parametrize(("path", "complaint"), [("moved", "302"), ("absent", "404"), ("large", "more than")])
async def test_other_answers_are_no_keys(tmp_path: Path, path: str, complaint: str) -> None:
    authority = Authority(tmp_path)
    with https(authority) as url, pytest.raises((OSError, ValueError), match=complaint):
        await over_https(settings(jwks_url=f"{url}/{path}", jwks_ca=str(authority.file)))()


def test_an_authority_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuthUnusable, match="absent"):
        over_https(settings(jwks_ca=str(tmp_path / "absent.pem")))
