"""Signed bearer tokens (JWT, RFC 7519): whether one counts, and which rights its claims give (RFC 8725 says what to heed).

The algorithm comes from the key and the list of the configuration, never from the token alone; keys that a token brings along
(jwk, jku, x5u) are not looked at. A token that was found good is remembered by its hash until it expires or the keys
change, because a signature costs more to check than a small call to answer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jwt
from jwt.exceptions import PyJWTError

from cas.context import Identity
from cas.errors import Unavailable
from rexec.auth.credentials import Refused
from rexec.auth.identities import identity_of
from rexec.auth.keys import KeyName, Keys, KeySet, key_for
from rexec.auth.rights import Right
from rexec.auth.settings import JwtSettings

MAX_REMEMBERED = 10_000
"""Good tokens that are remembered; the oldest makes room."""

_UNREADABLE = (PyJWTError, ValueError, TypeError, OverflowError, RecursionError)


class WebTokens:
    """The tokens of one provider."""

    def __init__(self, settings: JwtSettings, keys: Keys, wall: Callable[[], float] = time.time) -> None:
        """`wall` gives seconds since 1970. PyJWT itself reads the system's clock when it checks a token."""
        self._settings = settings
        self._keys = keys
        self._wall = wall
        self._remembered: dict[bytes, tuple[Identity, float]] = {}
        self._remembered_for: KeySet = {}

    async def identity(self, token: str) -> Identity:
        """Whose token it is. Raises Refused, and Unavailable while the provider's keys have never been had."""
        if len(token) > self._settings.max_token_bytes:
            raise Refused(f"token of {len(token)} bytes, at most {self._settings.max_token_bytes} are looked at")
        keys = self._keys.current()
        if keys is not self._remembered_for:
            self._remembered.clear()
            self._remembered_for = keys
        mark = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        found = self._remembered.get(mark)
        if found is not None and self._wall() < found[1]:
            return found[0]
        name = key_name(token, self._settings)
        if key_for(keys, name) is None:
            await self._keys.renew()
            keys = self._keys.current()
            if not keys:
                raise Unavailable("credentials cannot be checked now")
        claims = checked(token, keys, self._settings)
        identity = identity_in(claims, self._settings)
        if keys is self._remembered_for:
            if len(self._remembered) >= MAX_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[mark] = identity, float(claims["exp"]) + self._settings.leeway_seconds
        return identity


def key_name(token: str, settings: JwtSettings) -> KeyName:
    """The key that the token says it was signed with. Raises Refused, also for an algorithm that is not allowed."""
    try:
        header = jwt.get_unverified_header(token)
    except _UNREADABLE as error:
        raise Refused(f"JWT header: {type(error).__name__}") from error
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in settings.algorithms:
        raise Refused(f"JWT algorithm {algorithm!r:.50} is not allowed")
    if not isinstance(kid, str | None):
        raise Refused("JWT kid is no text")
    return KeyName(kid, algorithm)


def checked(token: str, keys: KeySet, settings: JwtSettings) -> Mapping[str, Any]:
    """The claims of a token that is signed by one of the keys, for us, and valid now. Raises Refused."""
    name = key_name(token, settings)
    key = key_for(keys, name)
    if key is None:
        raise Refused(f"JWT key {name.kid!r:.100} ({name.algorithm}) is not known")
    try:
        return jwt.decode(
            token,
            key,
            algorithms=[name.algorithm],
            audience=settings.audience,
            issuer=settings.issuer,
            leeway=settings.leeway_seconds,
            options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
        )
    except _UNREADABLE as error:
        # The class alone: some of the library's texts repeat parts of the token.
        raise Refused(f"JWT: {type(error).__name__}") from error


def identity_in(claims: Mapping[str, Any], settings: JwtSettings) -> Identity:
    """The identity that the claims describe. Raises Refused for claims of another shape than expected."""
    name = claims.get(settings.name_claim)
    if not isinstance(name, str) or not name:
        raise Refused(f"JWT claim {settings.name_claim!r} is no text")
    given = _texts(claims, settings.rights_claim)
    rights = settings.rights if given is None else [Right(text) for text in given if text in Right.__members__.values()]
    instances = _texts(claims, settings.instances_claim)
    tenant = claims.get(settings.tenant_claim, settings.tenant)
    if not isinstance(tenant, str):
        raise Refused(f"JWT claim {settings.tenant_claim!r} is no text")
    return identity_of(name[:200], rights, settings.instances if instances is None else instances, tenant[:200])


def _texts(claims: Mapping[str, Any], name: str) -> list[str] | None:
    """The claim's texts; None without the claim."""
    value = claims.get(name)
    if value is None:
        return None
    texts = value.split() if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(f"JWT claim {name!r} is neither a text nor a list of texts")
    return texts
