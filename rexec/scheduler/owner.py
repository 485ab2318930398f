"""Whose work a request is: the tenant, the user and the invocation between which slots are shared."""

from __future__ import annotations

from hashlib import blake2b

from cas.context import Identity
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.task import Owner

MAX_NAME_CHARACTERS = 256
"""Of each of the three names; clients choose the invocation's as they like."""


def owner_of(instance_name: str, identity: Identity, metadata: re_pb2.RequestMetadata) -> Owner:
    """The tenant of the identity, or the instance that he uses; the identity's name, which is one for all who have none; and
    the invocation that the client names, or else the larger thing that it says it belongs to."""
    return Owner(
        bounded(identity.tenant or instance_name),
        bounded(identity.name),
        bounded(metadata.tool_invocation_id or metadata.correlated_invocations_id),
    )


def bounded(name: str) -> str:
    """The name if it is short enough and can be written down, else its beginning and a hash of all of it: different names
    stay different."""
    # A web token may hold half a surrogate pair, which no message can.
    readable = name if name.isascii() else name.encode(errors="replace").decode()
    if len(name) <= MAX_NAME_CHARACTERS and readable == name:
        return name
    said = blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"{readable[: MAX_NAME_CHARACTERS - 33]}~{said}"
