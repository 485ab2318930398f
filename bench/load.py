"""Sends Execute calls and takes the time of each, from the call to the last message of its stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from google.longrunning import operations_pb2
from grpc import aio

from cas.digest import EMPTY, Digest, DigestFunction
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.methods import methods_of

if TYPE_CHECKING:  # types-grpcio makes this generic, the library does not
    Call = aio.UnaryStreamCall[bytes, operations_pb2.Operation]

_EXECUTE = methods_of(re_pb2, "Execution")["Execute"]
_UPLOAD = methods_of(re_pb2, "ContentAddressableStorage")["BatchUpdateBlobs"]
_COMMANDS = 16
_BATCH = 5_000
_METADATA = (
    (
        "build.bazel.remote.execution.v2.requestmetadata-bin",
        re_pb2.RequestMetadata(
            tool_details=re_pb2.ToolDetails(tool_name="bench", tool_version="1"),
            tool_invocation_id="00000000-0000-4000-8000-000000000000",
            action_mnemonic="Noop",
            target_id="//bench:noop",
        ).SerializeToString(),
    ),
)


@dataclass(frozen=True, slots=True)
class Timing:
    """One action, in monotonic seconds."""

    action_hash: str
    sent_at: float
    completed_at: float


class Load:
    """A client with a supply of actions that are all different. An async context manager.

    Whatever ends in another way than exit code 0 of a run raises AssertionError.
    """

    def __init__(self, address: str, actions: int) -> None:
        self._address = address
        self._actions = actions
        self._next = 0
        self._announced = 0
        self._awaited = 0
        self._all_announced = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Upload all actions and commands."""
        self._channel = aio.insecure_channel(self._address)
        self._execute: Callable[..., Call] = self._channel.unary_stream(
            _EXECUTE.path, response_deserializer=operations_pb2.Operation.FromString
        )
        commands = [
            re_pb2.Command(
                arguments=["/bin/true", str(number)],
                output_paths=[f"out/{number}.o"],
                environment_variables=[re_pb2.Command.EnvironmentVariable(name="PATH", value="/usr/bin:/bin")],
            ).SerializeToString()
            for number in range(_COMMANDS)
        ]
        root = EMPTY[DigestFunction.SHA256].to_proto()
        digests = [Digest.of(command).to_proto() for command in commands]
        actions = [
            re_pb2.Action(
                command_digest=digests[number % _COMMANDS], input_root_digest=root, salt=number.to_bytes(8, "big")
            ).SerializeToString()
            for number in range(self._actions)
        ]
        for start in range(0, len(actions), _BATCH):
            await self._upload([*commands, *actions[start : start + _BATCH]])
        named = [Digest.of(action) for action in actions]
        self._requests = [
            (digest.hash, re_pb2.ExecuteRequest(action_digest=digest.to_proto()).SerializeToString())
            for digest in named
        ]  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def _upload(self, blobs: Sequence[bytes]) -> None:
        upload = self._channel.unary_unary(
            _UPLOAD.path,
            request_serializer=re_pb2.BatchUpdateBlobsRequest.SerializeToString,
            response_deserializer=re_pb2.BatchUpdateBlobsResponse.FromString,
        )
        request = re_pb2.BatchUpdateBlobsRequest()
        for blob in blobs:
            request.requests.add(digest=Digest.of(blob).to_proto(), data=blob)
        answer: re_pb2.BatchUpdateBlobsResponse = await upload(request)
        if any(one.status.code for one in answer.responses):
            raise AssertionError("an action was not taken by the store")

    async def at_concurrency(self, concurrency: int, actions: int) -> list[Timing]:
        """Run actions, as many at once as `concurrency` says, each client asking again as soon as it is answered."""
        left = iter(self._taken(actions))
        timings: list[Timing] = []

        async def client() -> None:
            for action_hash, request in left:
                timings.append(await self._run(action_hash, request))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(client())
        return timings

    async def at_rate(self, per_second: float, actions: int) -> list[Timing]:
        """Run actions that are asked for at even intervals, whether those before have been answered or not."""
        running: list[asyncio.Task[Timing]] = []
        started_at = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number, (action_hash, request) in enumerate(self._taken(actions)):
                await asyncio.sleep(max(0.0, started_at + number / per_second - time.monotonic()))
                running.append(tasks.create_task(self._run(action_hash, request)))
        return [task.result() for task in running]

    async def announced(self, actions: int) -> None:
        """Wait until so many calls have had a first answer: their operations wait in the server's queue."""
        self._awaited = actions
        if self._announced < actions:
            self._all_announced.clear()
            await self._all_announced.wait()

    def _announce(self) -> None:
        self._announced += 1
        if self._announced >= self._awaited:
            self._all_announced.set()

    def _taken(self, actions: int) -> list[tuple[str, bytes]]:
        start, self._next = self._next, self._next + actions
        taken = self._requests[start : self._next]
        if len(taken) < actions:
            raise AssertionError(f"{actions} more actions are wanted of the {self._actions} that were made")
        return taken

    async def _run(self, action_hash: str, request: bytes) -> Timing:
        sent_at = time.monotonic()
        call = self._execute(request, metadata=_METADATA)
        operation = operations_pb2.Operation()
        # read() instead of a loop over the call, which costs a generator for each.
        while isinstance(message := await call.read(), operations_pb2.Operation):
            if not operation.name:
                self._announce()
            operation = message
        completed_at = time.monotonic()
        response = re_pb2.ExecuteResponse()
        if not operation.done or not operation.response.Unpack(response):
            raise AssertionError(f"an operation did not complete: {await call.details()}")
        if response.status.code or response.result.exit_code or response.cached_result:
            raise AssertionError(f"an action did not run as it should: {response}")
        return Timing(action_hash, sent_at, completed_at)
