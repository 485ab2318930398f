"""Bearer tokens that a file lists by their hash, so that whoever reads the file cannot use them."""

from __future__ import annotations

import hashlib
import hmac
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cas.context import Identity
from rexec.auth.credentials import AuthUnusable, Refused
from rexec.auth.identities import identity_of
from rexec.auth.rights import Right
from rexec.auth.watched_file import WatchedFile

_BLINDING = os.urandom(32)


class TokenEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One [[token]] of the file."""

    identity: str
    """The name in the log."""
    sha256: str
    """Of the token's bytes, 64 hexadecimal digits. A plain hash is enough for a random token, and for no password."""
    rights: tuple[Right, ...]
    instances: tuple[str, ...] | None = None
    """Absent: all."""
    tenant: str = ""
    """The team whose share of the workers its actions take. Absent: the instance that they use stands for it."""

    def __post_init__(self) -> None:
        """Refuse what is no hash. The text does not repeat it: it may be the token, put there by mistake."""
        if len(self.sha256) != 64 or not set(self.sha256.lower()) <= set("0123456789abcdef"):
            raise ValueError(f"sha256 of {self.identity!r} is not 64 hexadecimal digits")


class _TokenFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    token: tuple[TokenEntry, ...] = ()


_Known = Mapping[bytes, tuple[bytes, Identity]]


class Tokens:
    """The tokens of one file."""

    def __init__(self, path: Path) -> None:
        """Reads the file. Raises AuthUnusable."""
        try:
            self._file: WatchedFile[_Known] = WatchedFile(path, parse)
        except (OSError, ValueError) as error:
            raise AuthUnusable(f"{path}: {error}") from error

    def identity(self, token: str) -> Identity | None:
        """Whose token it is; None: nobody's."""
        return identity_in(self._file.value(), token)


def identity_in(known: _Known, token: str) -> Identity | None:
    """Whose token it is among those known.

    How long this takes says nothing of the hashes that are known: what is looked up is a keyed hash of the token's hash, the
    key is this process's own, and the comparison takes the same time for all.
    """
    try:
        sha256 = hashlib.sha256(token.encode("ascii")).digest()
    except UnicodeEncodeError:
        raise Refused("token has characters beyond ASCII") from None
    found = known.get(_blinded(sha256))
    if found is None or not hmac.compare_digest(found[0], sha256):
        return None
    return found[1]


def parse(data: bytes) -> _Known:
    """The tokens in the text of a file. Raises ValueError."""
    try:
        entries = msgspec.convert(tomllib.loads(data.decode()), _TokenFile).token
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a file of tokens: {error}") from error
    known: dict[bytes, tuple[bytes, Identity]] = {}
    for entry in entries:
        sha256 = bytes.fromhex(entry.sha256)
        blinded = _blinded(sha256)
        if blinded in known:
            raise ValueError(f"{known[blinded][1].name!r} and {entry.identity!r} have the same token")
        known[blinded] = sha256, identity_of(entry.identity, entry.rights, entry.instances, entry.tenant)
    return known


def _blinded(sha256: bytes) -> bytes:
    return hashlib.blake2b(sha256, key=_BLINDING, digest_size=32).digest()
