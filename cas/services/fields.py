"""Fields of requests, turned into checked values. Raises MalformedRequest, which names the field."""

from __future__ import annotations

from collections.abc import Iterable

from cas.digest import Digest, parse_digest
from cas.errors import MalformedRequest
from cas.hashing import DigestFunction
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2


def digest_field(message: re_pb2.Digest, field: str, function: DigestFunction | None) -> Digest:
    """The digest in `field`. An unset field reads as a digest without hash, which is told apart from a wrong one."""
    if not message.hash:
        raise MalformedRequest(f"{field} has no digest")
    try:
        return parse_digest(message.hash, message.size_bytes, function)
    except MalformedRequest as wrong:
        raise MalformedRequest(f"{field}: {wrong}") from None


def digests_field(messages: Iterable[re_pb2.Digest], field: str, function: DigestFunction | None) -> list[Digest]:
    """The digests in the repeated `field`, in order."""
    digests: list[Digest] = []
    try:
        for message in messages:
            digests.append(parse_digest(message.hash, message.size_bytes, function))
    except MalformedRequest as wrong:
        raise MalformedRequest(f"{field}[{len(digests)}]: {wrong}") from None
    return digests
