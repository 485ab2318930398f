"""A frontend's connection to the scheduler, as `RemoteScheduler` sees it. What it is made of is the edge's affair
(rexec/scheduler_channel.py)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from google.protobuf.message import Message

from protos.methods import Method
from protos.rexec.scheduler.v1 import frontends_pb2

Headers = Sequence[tuple[str, bytes]]
"""Metadata of a call, names that end in "-bin"."""


class LinkBroken(Exception):
    """The connection is over, whoever ended it, or never came to be; the text says why."""


class Refused(LinkBroken):
    """The scheduler is there and will not have this frontend, or is none; to wait changes nothing."""


class SchedulerLink(Protocol):
    """One connection: the stream of Frontends.Connect, and calls beside it that end when it does.

    Calls raise LinkBroken when the connection is to blame, and else the StatusError that the scheduler answered with.
    """

    async def send(self, message: frontends_pb2.FromFrontend) -> None:
        """Over the stream. To be used by one task. Raises LinkBroken."""
        ...

    async def receive(self) -> frontends_pb2.ToFrontend:
        """The stream's next message. To be used by one task. Raises LinkBroken, also when it ends in good order."""
        ...

    async def unary(
        self, method: Method, request: Message, deadline_seconds: float | None = None, headers: Headers = ()
    ) -> Message:
        """The answer of another method of the scheduler; `headers` go beside those that say who the frontend is."""
        ...

    def stream(self, method: Method, requests: Message | AsyncIterator[Message]) -> AsyncGenerator[Message, None]:
        """The answers of a method that answers with a stream; close it (contextlib.aclosing)."""
        ...


Dial = Callable[[], AbstractAsyncContextManager[SchedulerLink]]
"""Connects to one scheduler; leaving the context ends the connection. Raises LinkBroken, here or at the first use."""
