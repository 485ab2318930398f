"""Who sends a call.

1. Through the Unix socket: the server's own user, who may do everything.
2. With an `authorization: Bearer` header: whose token it is. One that does not count is refused, never taken for nobody's.
3. With a client certificate that [[auth.certificates]] names: who it stands for.
4. Else nobody in particular, with the rights of [auth] anonymous.

Clients hear "not authenticated" and no more; the reason is the cause of the exception, which the edge logs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cas.context import Identity
from cas.errors import NotAuthenticated
from cas.extras import how_to_install
from rexec.auth.certificates import Certificates
from rexec.auth.credentials import AuthUnusable, Credentials, Refused
from rexec.auth.identities import THE_SERVERS_OWN, identity_of
from rexec.auth.settings import AuthSettings, JwtSettings
from rexec.auth.tokens import Tokens

if TYPE_CHECKING:
    from rexec.auth.keys import FetchedKeys
    from rexec.auth.web_tokens import WebTokens


class Authentication:
    """Identifies callers as [auth] says. Inside `running`."""

    def __init__(self, settings: AuthSettings) -> None:
        """Reads the files that the settings name. Raises AuthUnusable."""
        rights = settings.anonymous_rights
        self._anonymous = identity_of("anonymous", rights, settings.anonymous_instances) if rights else None
        self._tokens = Tokens(Path(settings.tokens.file)) if settings.tokens.file else None
        self._certificates = Certificates(settings.certificates)
        self._web_tokens: WebTokens | None = None
        self._fetched: FetchedKeys | None = None
        if settings.jwt is not None:
            self._web_tokens, self._fetched = _web_tokens(settings.jwt)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keys are fetched meanwhile, when they are needed."""
        async with AsyncExitStack() as stack:
            if self._fetched is not None:
                await stack.enter_async_context(self._fetched.running())
            yield

    async def identify(self, credentials: Credentials) -> Identity:
        """Raises NotAuthenticated, and Unavailable when that cannot be found out now."""
        if credentials.peer.startswith("unix:"):
            return THE_SERVERS_OWN
        try:
            return await self._identity(credentials)
        except Refused as reason:
            raise NotAuthenticated("not authenticated") from reason

    async def _identity(self, credentials: Credentials) -> Identity:
        header = credentials.headers.get("authorization")
        if header is not None and (self._tokens is not None or self._web_tokens is not None):
            return await self._bearer(header)
        identity = self._certificates.identity(credentials.certificate) or self._anonymous
        if identity is None:
            raise Refused("no credentials")
        return identity

    async def _bearer(self, header: str | bytes) -> Identity:
        scheme, _, token = header.partition(" ") if isinstance(header, str) else ("", "", "")
        token = token.strip(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refused("the authorization header is not of the form Bearer TOKEN")
        identity = self._tokens.identity(token) if self._tokens is not None else None
        if identity is not None:
            return identity
        if self._web_tokens is None:
            raise Refused("token is not listed")
        return await self._web_tokens.identity(token)


def _web_tokens(settings: JwtSettings) -> tuple[WebTokens, FetchedKeys | None]:
    try:
        import cryptography  # noqa: F401  # PyJWT does without until a signature is checked

        from rexec.auth.keys import FetchedKeys, FileKeys, over_https
        from rexec.auth.web_tokens import WebTokens
    except ModuleNotFoundError as missing:
        raise AuthUnusable(f"[auth.jwt] needs {missing.name}: {how_to_install('auth')}") from missing
    if settings.jwks_file:
        return WebTokens(settings, FileKeys(Path(settings.jwks_file), settings.algorithms)), None
    fetched = FetchedKeys(settings, over_https(settings))
    return WebTokens(settings, fetched), fetched
