"""The interface between the services that clients talk to and the rules.

The services need nothing else of the scheduler, and all that passes are values, so that a frontend may run in another
process than the queue.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final, Protocol

import msgspec

from cas.digest import Digest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.log_name import Output
from rexec.scheduler.task import Candidate, Owner, Stage


class Run(msgspec.Struct, frozen=True):
    """What a worker needs beside the inputs; the payload of a `Candidate`. The messages are shared: never change them."""

    action: re_pb2.Action
    command: re_pb2.Command
    request_metadata: re_pb2.RequestMetadata
    """Of the client that asked first."""
    queued_at: float
    """Wall time in seconds since 1970."""


class Inlining(msgspec.Struct, frozen=True):
    """What a client wants to have inside the ExecuteResponse (REAPI ExecuteRequest.inline_...)."""

    stdout: bool = False
    stderr: bool = False
    files: frozenset[str] = frozenset()


class OperationState(msgspec.Struct, frozen=True):
    """One operation at one moment."""

    name: str
    instance_name: str
    action_digest: Digest
    stage: Stage
    response: re_pb2.ExecuteResponse | None = None
    """Set once the stage is COMPLETED. Shared: never change it."""
    inlining: Inlining = Inlining()
    reason: str = ""
    """Why it waits, for a person; empty once it runs."""
    metadata: re_pb2.ExecutedActionMetadata | None = None
    """What is known of the run so far."""
    owner: Owner = Owner()
    """Whose work it is."""

    @property
    def done(self) -> bool:
        """Whether nothing will change any more."""
        return self.stage is Stage.COMPLETED


class LogRest(msgspec.Struct, frozen=True):
    """The end of a live log: what follows `offset` is in the result, if there is one."""

    offset: int
    state: OperationState


PAGE_BYTES: Final = 3 << 20
"""Responses that need not be more in one page: what a client is sent at once stays below gRPC's default limit of 4 MiB."""


def operation_name(instance_name: str, operation_id: str) -> str:
    """The name of an operation of an instance: its prefix, "operations/" and the id."""
    return f"{instance_name}/operations/{operation_id}" if instance_name else f"operations/{operation_id}"


class Scheduler(Protocol):
    """What a service may ask for. A name that is not known raises OperationNotFound."""

    async def submit(self, candidate: Candidate, inlining: Inlining, name: str = "") -> str:
        """Run an action, or join the run of an equal one. Returns the new operation's name.

        The candidate's payload is a `Run`. Who gives a `name`, in the form that `operation_name` makes, may ask again: an
        operation that exists is left as it is. Raises NoWorkerFits and QueueFull.
        """
        ...

    async def record(
        self, candidate: Candidate, inlining: Inlining, response: re_pb2.ExecuteResponse, name: str = ""
    ) -> str:
        """Make an operation that is complete already. Returns its name, which may be given as for `submit`."""
        ...

    def watch(self, name: str, keepalive_seconds: float) -> AsyncGenerator[OperationState, None]:
        """The state now, at every change, and after `keepalive_seconds` without one; ends after the completed state.

        The operation counts as waited for until the iterator is closed: close it (contextlib.aclosing). Raises Unavailable
        when the scheduler stops.
        """
        ...

    def log(self, name: str, output: Output, offset: int) -> AsyncGenerator[bytes | LogRest, None]:
        """What the action prints, from `offset`, while it runs; a LogRest comes last.

        After the keepalive interval without a byte it gives empty ones: proxies cut calls on which nothing is sent.
        Nobody counts as waiting for the operation because of it. Close the iterator. Raises ResourceExhausted if too many
        logs are read, Unavailable when the scheduler stops.
        """
        ...

    async def state(self, name: str) -> OperationState:
        """The state now."""
        ...

    async def page(
        self, instance_name: str, stages: frozenset[Stage], after: str, limit: int
    ) -> Sequence[OperationState]:
        """At most `limit` operations of an instance in one of `stages`, in the order of their names, from the first one
        past `after`. Fewer although there are more only if their responses have more than PAGE_BYTES together."""
        ...

    async def cancel(self, name: str) -> None:
        """Complete the operation as cancelled, unless it is complete; nobody else's is touched."""
        ...

    async def forget(self, name: str) -> None:
        """Drop a completed operation; a live one is left alone."""
        ...
