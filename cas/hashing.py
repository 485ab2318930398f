"""The digest functions of REAPI: their numbers, the length of their hashes, and how to compute them.

MURMUR3 and VSO are left out: the first is not a cryptographic hash, so its digests cannot name what a stranger uploads;
of the second no client is known to us.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol, Self

from blake3 import blake3

from cas.sha256tree import Sha256Tree


class DigestFunction(Enum):
    """One digest function; `value` is its number in REAPI DigestFunction.Value."""

    hash_length: int
    """Characters of the hash in hexadecimal."""
    resource_segment: str
    """How resource names spell the function, "" for the functions that the length of the hash tells (REAPI, ByteStream
    resource names): those are never spelled."""

    SHA256 = 1, 64, ""
    SHA1 = 2, 40, ""
    MD5 = 3, 32, ""
    SHA384 = 5, 96, ""
    SHA512 = 6, 128, ""
    SHA256TREE = 8, 64, "sha256tree"
    BLAKE3 = 9, 64, "blake3"
    GITSHA1 = 10, 40, "gitsha1"

    def __new__(cls, value: int, hash_length: int, resource_segment: str) -> Self:
        member = object.__new__(cls)
        member._value_ = value
        member.hash_length = hash_length
        member.resource_segment = resource_segment
        return member

    # Enum hashes the name, in Python, and every dictionary of digests would pay for it. Members are unique.
    __hash__ = object.__hash__


class Hasher(Protocol):
    """A hash in the making, as hashlib has them."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object:
        """Go on with `data`. Inputs of more than 2 KiB let other threads run meanwhile, SHA256TREE's excepted."""
        ...

    def hexdigest(self) -> str:
        """The hash of all bytes so far, in lower-case hexadecimal."""
        ...


def _git_blob(size_bytes: int) -> Hasher:
    """SHA-1 as git computes it for a blob: over a header with the size, then the bytes."""
    return hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)


_START: Final[dict[DigestFunction, Callable[[int], Hasher]]] = {
    DigestFunction.SHA256: lambda _size_bytes: hashlib.sha256(),
    DigestFunction.SHA1: lambda _size_bytes: hashlib.sha1(usedforsecurity=False),
    DigestFunction.MD5: lambda _size_bytes: hashlib.md5(usedforsecurity=False),
    DigestFunction.SHA384: lambda _size_bytes: hashlib.sha384(),
    DigestFunction.SHA512: lambda _size_bytes: hashlib.sha512(),
    DigestFunction.SHA256TREE: lambda _size_bytes: Sha256Tree(),
    DigestFunction.BLAKE3: lambda _size_bytes: blake3(),
    DigestFunction.GITSHA1: _git_blob,
}

_BY_LENGTH: Final = {function.hash_length: function for function in DigestFunction if not function.resource_segment}
_BY_VALUE: Final[dict[int, DigestFunction]] = {function.value: function for function in DigestFunction}
_BY_SEGMENT: Final = {function.resource_segment: function for function in DigestFunction if function.resource_segment}


def hasher(function: DigestFunction, size_bytes: int) -> Hasher:
    """Start a hash of `size_bytes` bytes. Only GITSHA1 uses the size; the caller checks that as many bytes came."""
    return _START[function](size_bytes)


def hash_of(data: bytes | bytearray | memoryview, function: DigestFunction) -> str:
    """The hash of `data`, in lower-case hexadecimal."""
    if function is DigestFunction.SHA256:
        return hashlib.sha256(data).hexdigest()
    started = _START[function](len(data))
    started.update(data)
    return started.hexdigest()


def function_of_length(length: int) -> DigestFunction | None:
    """The function that a hash of `length` characters stands for when nothing names one, None if there is none."""
    return _BY_LENGTH.get(length)


def function_of_value(value: int) -> DigestFunction | None:
    """The function with this number in REAPI DigestFunction.Value, None if it is not known here."""
    return _BY_VALUE.get(value)


def function_of_segment(segment: str) -> DigestFunction | None:
    """The function that a resource name spells so, None for anything else."""
    return _BY_SEGMENT.get(segment)
