"""How a fetch from outside fails: not a failure of the call, but an answer (FetchBlobResponse.status)."""

from __future__ import annotations

from google.rpc import status_pb2

from cas.errors import Code


class FetchFailed(Exception):
    """The content could not be had from its origin, for a reason outside of this server.

    The codes are those of Remote Asset, FetchBlobResponse.status: NOT_FOUND, PERMISSION_DENIED (refused there, or an origin
    that is not allowed here), ABORTED (broken off, or not what was asked for), DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED (too
    large), and UNAVAILABLE for what another attempt may cure.
    """

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code

    def to_proto(self) -> status_pb2.Status:
        """The status to answer with."""
        return status_pb2.Status(code=int(self.code), message=str(self))
