"""The public keys that signed tokens are checked with: a JWK set (RFC 7517) from a file or from the provider's address.

Keys that came from an address are kept. They are fetched again beside the calls when they are old, and at once, with the
caller waiting, when a token names a key that is not among them; but never more often than every `retry_seconds`, so that
made-up key names cost the provider nothing. A fetch belongs to the server and not to the call that asked for it: a client
that goes away must not spoil it for others.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import structlog
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from rexec.auth.credentials import AuthUnusable
from rexec.auth.settings import JwtSettings
from rexec.auth.watched_file import WatchedFile

log = structlog.get_logger()

MAX_SET_BYTES = 1 << 20
"""Of what the provider's address answers."""

_ALGORITHM_OF = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
"""The one algorithm that a key is for, by its `kty` and `crv`. A key never serves another one, whatever a token says."""


class KeyName(NamedTuple):
    """What a token says of its key."""

    kid: str | None
    algorithm: str


KeySet = Mapping[KeyName, PyJWK]
Fetch = Callable[[], Awaitable[bytes]]


class Keys(Protocol):
    """Where keys come from."""

    def current(self) -> KeySet:
        """The keys that count now; the same object while they stay the same."""
        ...

    async def renew(self) -> None:
        """Look whether there are newer ones, if it is worth it."""
        ...


def parse_keys(algorithms: Iterable[str], data: bytes) -> KeySet:
    """The usable public keys of a JWK set. Others (secret ones, for encryption, of other algorithms) are left alone.

    Raises ValueError if none is left: a provider without keys is more likely broken than meant.
    """
    allowed = frozenset(algorithms)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JWK set: {type(error).__name__}") from error
    listed = document.get("keys") if isinstance(document, dict) else None
    keys: dict[KeyName, PyJWK] = {}
    for jwk in listed if isinstance(listed, list) else []:
        name = _usable(jwk)
        if name is not None and name.algorithm in allowed:
            try:
                keys[name] = PyJWK(jwk, name.algorithm)
            except (PyJWTError, ValueError, TypeError, KeyError) as error:
                log.warning("key not used", kid=name.kid, reason=type(error).__name__)
    if not keys:
        raise ValueError(f"not a JWK set with a key for {', '.join(sorted(allowed))}")
    return keys


def _usable(jwk: Any) -> KeyName | None:
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
        return None
    kty, curve, kid = jwk.get("kty"), jwk.get("crv"), jwk.get("kid")
    if not (isinstance(kty, str) and isinstance(curve, str | None) and isinstance(kid, str | None)):
        return None
    algorithm = _ALGORITHM_OF.get((kty, curve))
    if algorithm is None or jwk.get("alg", algorithm) != algorithm:
        return None
    return KeyName(kid, algorithm)


def key_for(keys: KeySet, name: KeyName) -> PyJWK | None:
    """The key of that name; for a token that names none, the only one of its algorithm."""
    if name.kid is not None:
        return keys.get(name)
    of_algorithm = [key for known, key in keys.items() if known.algorithm == name.algorithm]
    return of_algorithm[0] if len(of_algorithm) == 1 else None


class FileKeys:
    """Keys from a file."""

    def __init__(self, path: Path, algorithms: Iterable[str]) -> None:
        """Reads the file. Raises AuthUnusable."""
        try:
            self._file = WatchedFile(path, partial(parse_keys, tuple(algorithms)))
        except (OSError, ValueError) as error:
            raise AuthUnusable(f"{path}: {error}") from error

    def current(self) -> KeySet:
        """See Keys."""
        return self._file.value()

    async def renew(self) -> None:
        """Nothing: the file is looked at all the time."""


class FetchedKeys:
    """Keys from an address; none until the first fetch. Fetches happen inside `running`."""

    def __init__(self, settings: JwtSettings, fetch: Fetch, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._fetch = fetch
        self._monotonic = monotonic
        self._keys: KeySet = {}
        self._data = b""
        self._fetched_at = -math.inf
        self._attempted_at = -math.inf
        self._wanted = asyncio.Event()
        self._attempted = asyncio.Event()
        """Set when the fetch that is under way, or else the next one, has ended; and then replaced."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Fetch when asked to, meanwhile."""
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self._run(), name="fetch keys")
            try:
                yield
            finally:
                task.cancel()

    def current(self) -> KeySet:
        """See Keys. Asks for new ones when these are old, and does not wait for them."""
        if self._keys and self._monotonic() - self._fetched_at > self._settings.refresh_seconds and self._may_fetch():
            self._wanted.set()
        return self._keys

    async def renew(self) -> None:
        """See Keys. Waits for the fetch, its own or one under way; returns at once when the last one was just now."""
        if not self._wanted.is_set() and not self._may_fetch():
            return
        self._wanted.set()
        await self._attempted.wait()

    def _may_fetch(self) -> bool:
        return self._monotonic() - self._attempted_at >= self._settings.retry_seconds

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            try:
                async with asyncio.timeout(self._settings.fetch_seconds):
                    data = await self._fetch()
                if data != self._data:
                    self._keys = parse_keys(self._settings.algorithms, data)
                    self._data = data
                    log.info("keys fetched", url=self._settings.jwks_url, keys=len(self._keys))
                self._fetched_at = self._monotonic()
            except (OSError, ValueError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
                log.warning("keys not fetched", url=self._settings.jwks_url, reason=reason, kept=len(self._keys))
            self._attempted_at = self._monotonic()
            self._wanted.clear()
            self._attempted.set()
            self._attempted = asyncio.Event()


def over_https(settings: JwtSettings) -> Fetch:
    """Gets what is at jwks_url. Raises AuthUnusable if jwks_ca cannot be read; the fetch raises OSError and ValueError."""
    try:
        context = ssl.create_default_context(cafile=settings.jwks_ca or None)
    except OSError as error:
        raise AuthUnusable(f"{settings.jwks_ca}: {error}") from error
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirects())

    def get() -> bytes:
        deadline = time.monotonic() + settings.fetch_seconds
        data = b""
        with opener.open(settings.jwks_url, timeout=settings.fetch_seconds) as answer:
            while piece := answer.read1(64 << 10):
                data += piece
                if len(data) > MAX_SET_BYTES:
                    raise ValueError(f"more than {MAX_SET_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not all there after {settings.fetch_seconds:g} s")
        return data

    return partial(asyncio.to_thread, get)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The address in the configuration is the one that is trusted, and no other."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None
