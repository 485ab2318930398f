"""Fields of requests, turned into checked values. Raises MalformedRequest, which names the field."""

from __future__ import annotations

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
