"""Digests: the hash and size that name a blob, checked once, where they enter.

A `Digest` is a value that has been checked: the hash is lower-case hexadecimal of the length that its function gives, the
size is not negative. Bytes and messages from outside become one through `Digest.from_proto` or `parse_digest` only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import repeat
from typing import Final

import msgspec

from cas.errors import MalformedRequest
from cas.hashing import DigestFunction, Hasher, function_of_length, function_of_value, hash_of, hasher
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

_HEX: Final = re.compile(r"[0-9a-f]+").fullmatch

MAX_SIZE_BYTES: Final = (1 << 63) - 1
"""Digest.size_bytes is an int64."""


class Digest(msgspec.Struct, frozen=True, cache_hash=True):
    """REAPI Digest: the name of a blob. `size_bytes` is part of the name: a right hash with a wrong size is another blob."""

    hash: str
    size_bytes: int
    function: DigestFunction = DigestFunction.SHA256

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, function: DigestFunction = DigestFunction.SHA256) -> Digest:
        """The digest of `data`."""
        return cls(hash_of(data, function), len(data), function)

    @classmethod
    def from_proto(cls, message: re_pb2.Digest, function: DigestFunction | None = None) -> Digest:
        """The digest that a message names; `function` is the request's, None if it names none (see `function_for`)."""
        return parse_digest(message.hash, message.size_bytes, function)

    def to_proto(self) -> re_pb2.Digest:
        """This digest as a message."""
        return re_pb2.Digest(hash=self.hash, size_bytes=self.size_bytes)

    def blob_name(self) -> str:
        """The resource name without instance, "blobs/{hash}/{size}" or "blobs/{function}/{hash}/{size}".

        REAPI (ByteStream resource names, PreconditionFailure subjects): the function is named unless it is one of those
        that the length of the hash tells.
        """
        segment = self.function.resource_segment
        prefix = f"blobs/{segment}/" if segment else "blobs/"
        return f"{prefix}{self.hash}/{self.size_bytes}"

    def __str__(self) -> str:
        name = "" if self.function is DigestFunction.SHA256 else f"{self.function.name.lower()}:"
        return f"{name}{self.hash}/{self.size_bytes}"


def parse_digest(hash_text: str, size_bytes: int, function: DigestFunction | None = None) -> Digest:
    """A checked digest. Raises MalformedRequest for a wrong length, a character that is not lower-case hex, a size < 0.

    Without `function` the length of the hash decides (REAPI, e.g. FindMissingBlobsRequest.digest_function).
    """
    if function is None:
        function = function_of_length(len(hash_text))
        if function is None:
            raise MalformedRequest(
                f"digest hash {hash_text[:200]!r} has {len(hash_text)} characters, which no known function gives"
            )
    elif len(hash_text) != function.hash_length:
        raise MalformedRequest(
            f"digest hash {hash_text[:200]!r} has {len(hash_text)} characters; {function.name} gives {function.hash_length}"
        )
    if _HEX(hash_text) is None:
        raise MalformedRequest(f"digest hash {hash_text[:200]!r} is not lower-case hexadecimal")
    if not 0 <= size_bytes <= MAX_SIZE_BYTES:
        raise MalformedRequest(f"digest size {size_bytes} of {hash_text} is not a size in bytes")
    return Digest(hash_text, size_bytes, function)


def parse_digests(
    messages: Sequence[re_pb2.Digest], function: DigestFunction | None, field: str, first: int = 0
) -> list[Digest]:
    """The checked digests of many messages, as `parse_digest` gives them one by one, at a third of the cost.

    Raises MalformedRequest for the first that is wrong, naming its place in `field`, of which `messages` are the part that
    begins at `first`.
    """
    hashes = [message.hash for message in messages]
    sizes = [message.size_bytes for message in messages]
    lengths = set(map(len, hashes))
    if len(lengths) == 1:
        (length,) = lengths
        told = function or function_of_length(length)
        # What is left when the hexadecimal digits are taken away is wrong in one of them.
        if (
            told is not None
            and told.hash_length == length
            and min(sizes) >= 0
            and not "".join(hashes).encode().translate(None, b"0123456789abcdef")
        ):
            return list(map(Digest, hashes, sizes, repeat(told)))
    digests: list[Digest] = []  # of several functions, or with a wrong one that the text has to name
    try:
        for hash_text, size_bytes in zip(hashes, sizes, strict=True):
            digests.append(parse_digest(hash_text, size_bytes, function))
    except MalformedRequest as wrong:
        raise MalformedRequest(f"{field}[{first + len(digests)}]: {wrong}") from None
    return digests


def function_for(value: int) -> DigestFunction | None:
    """The function that a request's digest_function field names, None if it is unset.

    Raises MalformedRequest for a function that this server does not know.
    """
    if value == re_pb2.DigestFunction.UNKNOWN:
        return None
    function = function_of_value(value)
    if function is None:
        raise MalformedRequest(f"digest function {value} is not supported")
    return function


EMPTY: Final[dict[DigestFunction, Digest]] = {function: Digest.of(b"", function) for function in DigestFunction}
"""The empty blob of each function: it exists always and everywhere (REAPI, ContentAddressableStorage)."""

__all__ = [
    "EMPTY",
    "MAX_SIZE_BYTES",
    "Digest",
    "DigestFunction",
    "Hasher",
    "function_for",
    "hasher",
    "parse_digest",
    "parse_digests",
]
