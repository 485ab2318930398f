"""Digests: the hash and size that name a blob, checked once, where they enter.

A `Digest` is a value that has been checked: the hash is lower-case hexadecimal of the length that its function gives, the
size is not negative. Bytes and messages from outside become one through `Digest.from_proto` or `parse_digest` only.
"""

from __future__ import annotations

import re
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

__all__ = ["EMPTY", "MAX_SIZE_BYTES", "Digest", "DigestFunction", "Hasher", "function_for", "hasher", "parse_digest"]
