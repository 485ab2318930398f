"""Fields of requests, turned into checked values. Raises MalformedRequest, which names the field."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

from cas.digest import Digest, parse_digest
from cas.errors import MalformedRequest
from cas.hashing import DigestFunction, function_of_length
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2


def digest_field(message: re_pb2.Digest, field: str, function: DigestFunction | None) -> Digest:
    """The digest in `field`. An unset field reads as a digest without hash, which is told apart from a wrong one."""
    if not message.hash:
        raise MalformedRequest(f"{field} has no digest")
    try:
        return parse_digest(message.hash, message.size_bytes, function)
    except MalformedRequest as wrong:
        raise MalformedRequest(f"{field}: {wrong}") from None


def digests_field(
    messages: Sequence[re_pb2.Digest], field: str, function: DigestFunction | None, first: int = 0
) -> list[Digest]:
    """The digests in the repeated `field`, in order, or in a slice of it that starts at the place `first`.

    FindMissingBlobs has up to 100,000 of them, so they are checked all at once.
    """
    hashes = [message.hash for message in messages]
    sizes = [message.size_bytes for message in messages]
    lengths = set(map(len, hashes))
    if len(lengths) == 1:
        (length,) = lengths
        told = function or function_of_length(length)
        if (
            told is not None
            and told.hash_length == length
            and min(sizes) >= 0
            and not "".join(hashes).encode().translate(None, b"0123456789abcdef")
        ):
            return list(map(Digest, hashes, sizes, repeat(told)))
    digests: list[Digest] = []  # of several functions, or with a wrong one that the text is to name
    try:
        for message in messages:
            digests.append(parse_digest(message.hash, message.size_bytes, function))
    except MalformedRequest as wrong:
        raise MalformedRequest(f"{field}[{first + len(digests)}]: {wrong}") from None
    return digests
