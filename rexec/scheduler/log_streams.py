"""Reading the logs of actions by google.bytestream.ByteStream.Read (REAPI, ExecuteOperationMetadata.stdout_stream_name).

While the action waits or runs the call stays open and gives what is printed as it comes; it ends when the action has ended.
A command that prints nothing makes a response without data now and then (google.bytestream.ReadResponse.data allows it).
A log can be read for as long as its operation is known; once the action has ended it comes from the stored output.

`read_offset` counts the bytes of the present attempt, which are those that the stored output will have: a line that says
that the action was started again does not count.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from cas.context import RequestContext
from cas.digest import Digest
from cas.errors import MalformedRequest, OffsetOutOfRange
from cas.instances import Instances
from cas.store import BlobStore
from protos.google.bytestream import bytestream_pb2
from rexec.scheduler.log_name import LogName, Output, is_log_name, parse_log_name
from rexec.scheduler.scheduler import LogRest, Scheduler

MAX_OFFSET = 1 << 62
"""Offsets travel to the worker with room added to them, as int64."""


class LogStreams:
    """What ByteStream reads logs from (cas.services.bytestream.OtherReader)."""

    def __init__(self, instances: Instances, scheduler: Scheduler) -> None:
        self._instances = instances
        self._scheduler = scheduler

    def claims(self, resource_name: str) -> bool:
        """Whether this is the name of a log, also of one that does not exist."""
        return is_log_name(resource_name)

    async def read(
        self, request: bytestream_pb2.ReadRequest, context: RequestContext
    ) -> AsyncGenerator[bytes, None]:  # fmt: skip
        """The bytes of a log. Who may read the blobs of an instance may read its logs, which become blobs.

        Raises MalformedRequest, NotFound, OffsetOutOfRange, ResourceExhausted, and Unavailable when the server stops.
        """
        name = parse_log_name(request.resource_name)
        offset, limit = request.read_offset, request.read_limit
        if limit < 0:
            raise MalformedRequest(f"read_limit {limit} is negative")
        if not 0 <= offset <= MAX_OFFSET:
            raise OffsetOutOfRange(f"read_offset {offset} is not in a log; the least is 0")
        store = self._instances.readable(name.instance_name, context.identity).store
        left = limit
        async with aclosing(self._bytes(name, offset, store)) as pieces:
            async for piece in pieces:
                yield piece[:left] if limit else piece
                left -= len(piece)
                if limit and left <= 0:
                    return

    async def _bytes(self, name: LogName, offset: int, store: BlobStore) -> AsyncGenerator[bytes, None]:
        was_live = False
        async with aclosing(self._scheduler.log(name.operation_name, name.output, offset)) as parts:
            async for part in parts:
                if isinstance(part, LogRest):
                    async with aclosing(_rest(part, name.output, store, must_reach=not was_live)) as pieces:
                        async for piece in pieces:
                            yield piece
                else:
                    was_live = True
                    yield part


async def _rest(rest: LogRest, output: Output, store: BlobStore, must_reach: bool) -> AsyncGenerator[bytes, None]:
    """What the result holds from the offset on; nothing if there is no result.

    With `must_reach` an offset past the end is the client's fault. Raises OffsetOutOfRange, BlobNotFound.
    """
    response = rest.state.response
    if response is None or not response.HasField("result"):
        return
    result = response.result
    raw: bytes = getattr(result, f"{output}_raw")
    digest = None
    if result.HasField(f"{output}_digest"):
        digest = Digest.from_proto(getattr(result, f"{output}_digest"), rest.state.action_digest.function)
    size_bytes = len(raw) if raw or digest is None else digest.size_bytes
    if rest.offset > size_bytes and must_reach:
        raise OffsetOutOfRange(f"read_offset {rest.offset} is past the end of a log of {size_bytes} bytes")
    if rest.offset >= size_bytes:
        return
    if raw or digest is None:
        yield raw[rest.offset :]
        return
    async with store.open(digest, rest.offset) as chunks:
        async for chunk in chunks:
            yield chunk
