"""Messages on their way to one worker, over one stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from cas.errors import ResourceExhausted, StatusError
from protos.rexec.worker.v1 import worker_pb2

MAX_MESSAGES = 100_000
"""A worker that makes us answer and does not read is cut off here."""

MAX_TOGETHER_BYTES = 256 << 10
"""Messages that travel as one have so many bytes at most; a lease alone may have more."""


class Outbox:
    """An unread-message queue that never blocks the sender. One reader."""

    def __init__(self) -> None:
        self.worker_id: str | None = None
        """Whose it is; None until the worker has said so."""
        self.heartbeat_seconds = 0.0
        """How often the worker was told to say that it lives."""
        self._messages: deque[worker_pb2.ToWorker] = deque()
        self._changed = asyncio.Event()
        self._closed = False
        self._failure: StatusError | None = None

    @property
    def closed(self) -> bool:
        """Whether the stream is to end."""
        return self._closed

    def put(self, message: worker_pb2.ToWorker) -> None:
        """Send a message, unless the stream is to end anyway."""
        if self._closed:
            return
        if len(self._messages) >= MAX_MESSAGES:
            self.close(ResourceExhausted(f"{MAX_MESSAGES} messages wait and the worker reads none"))
            return
        self._messages.append(message)
        self._changed.set()

    def close(self, failure: StatusError | None = None) -> None:
        """End the stream: with a failure at once, without one after what has been put. The first call counts."""
        if self._closed:
            return
        self._closed, self._failure = True, failure
        if failure is not None:
            self._messages.clear()
        self._changed.set()

    async def messages(self) -> AsyncGenerator[worker_pb2.ToWorker, None]:
        """What has been put, in order, until the outbox is closed: what waits travels together (ToWorker.also). Raises the
        failure that it was closed with."""
        while True:
            while self._messages:
                yield self._together()
            if self._closed:
                if self._failure is not None:
                    raise self._failure
                return
            self._changed.clear()
            await self._changed.wait()

    def _together(self) -> worker_pb2.ToWorker:
        """The next message, and with it those that wait behind it as far as they are small."""
        first = self._messages.popleft()
        if self._messages and first.WhichOneof("message") != "welcome":
            room = MAX_TOGETHER_BYTES - first.ByteSize()
            while self._messages and (room := room - self._messages[0].ByteSize()) >= 0:
                first.also.append(self._messages.popleft())
        return first
