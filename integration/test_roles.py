"""A scheduler, two frontends and a worker as processes of their own: what one frontend began the other one knows, and any of
them may die."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2, operations_proto_pb2
from google.protobuf.message import Message
from grpc import aio

from cas.digest import Digest
from cas.remote import CHANNEL_OPTIONS, RemoteStore
from integration.installation import Installation, Member, Role
from integration.server import free_port
from integration.waiting import wait_until
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2
from protos.methods import Method, methods_of
from protos.rexec.scheduler.v1 import status_pb2

EXECUTION = methods_of(re_pb2, "Execution")
OPERATIONS = methods_of(operations_proto_pb2, "Operations")
STATUS = methods_of(status_pb2, "Status")
READ = methods_of(bytestream_pb2, "ByteStream")["Read"]
SECONDS = 60


class Roles:
    """The processes, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scheduler = f"127.0.0.1:{free_port()}"
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self.installation = Installation(self.addresses[0], folder)
        self.scheduler = self.installation.add(
            "scheduler", Role.SCHEDULER, "scheduler", "--listen", scheduler, "--state-dir", str(folder / "state")
        )
        self.frontends = [
            self.installation.add(
                f"frontend-{number}",
                Role.FRONTEND,
                "frontend",
                "--listen",
                address,
                "--scheduler",
                f"grpc://{scheduler}",
            )
            for number, address in enumerate(self.addresses)
        ]
        self.installation.add_workers(1, slots=2)
        self.installation.wait_until_ready()


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    started = Roles(tmp_path_factory.mktemp("roles"))
    try:
        yield started
    finally:
        started.installation.close()


class Client:
    """A client of one frontend."""

    def __init__(self, channel: aio.Channel) -> None:
        self._channel = channel
        self.store = RemoteStore(channel)

    async def ask(self, method: Method, request: Message) -> Any:
        call: Any = self._channel.unary_unary(
            method.path, method.request_type.SerializeToString, method.response_type.FromString
        )
        return await call(request, timeout=SECONDS)

    def stream(self, method: Method, request: Message) -> Any:
        call: Any = self._channel.unary_stream(
            method.path, method.request_type.SerializeToString, method.response_type.FromString
        )
        return call(request, timeout=SECONDS)

    async def action(self, script: str) -> Digest:
        """Upload an action that runs a shell script with the output file `out`."""
        command = re_pb2.Command(arguments=["/bin/sh", "-c", script], output_paths=["out"])
        action = re_pb2.Action(
            command_digest=Digest.of(command.SerializeToString()).to_proto(),
            input_root_digest=Digest.of(b"").to_proto(),
        )
        blobs = [message.SerializeToString() for message in (command, action)]
        assert await self.store.write_many([(Digest.of(blob), blob) for blob in blobs]) == {}
        return Digest.of(blobs[1])

    def execute(self, action: Digest) -> Any:
        return self.stream(EXECUTION["Execute"], re_pb2.ExecuteRequest(action_digest=action.to_proto()))

    def wait(self, name: str) -> Any:
        return self.stream(EXECUTION["WaitExecution"], re_pb2.WaitExecutionRequest(name=name))


@asynccontextmanager
async def clients(roles: Roles) -> AsyncIterator[list[Client]]:
    """One of each frontend."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            Client(await stack.enter_async_context(aio.insecure_channel(address, options=CHANNEL_OPTIONS)))
            for address in roles.addresses
        ]


def gated(roles: Roles, name: str) -> tuple[str, Path]:
    """A script that prints, waits for a file and ends, and that file."""
    gate = roles.folder / f"{name}.gate"
    return f"echo {name} waits; while [ ! -e {gate} ]; do sleep 0.05; done; echo {name} > out", gate


async def executing(operations: Any) -> operations_pb2.Operation:
    """The first Operation that says that the action runs."""
    async for operation in operations:
        metadata = re_pb2.ExecuteOperationMetadata()
        assert operation.metadata.Unpack(metadata)
        if metadata.stage == re_pb2.ExecutionStage.EXECUTING:
            found: operations_pb2.Operation = operation
            return found
    raise AssertionError("the stream ended before the action ran")


async def ended(operations: Any) -> re_pb2.ExecuteResponse:
    """How the action ended."""
    last = operations_pb2.Operation()
    async for operation in operations:
        last = operation
    response = re_pb2.ExecuteResponse()
    assert last.response.Unpack(response)
    return response


async def test_what_one_frontend_began_the_other_one_shows_and_waits_for(roles: Roles) -> None:
    script, gate = gated(roles, "shown")
    async with clients(roles) as (first, second):
        stream = first.execute(await first.action(script))
        name = (await executing(stream)).name
        waiting = asyncio.ensure_future(ended(second.wait(name)))
        assert (
            await second.ask(OPERATIONS["GetOperation"], operations_pb2.GetOperationRequest(name=name))
        ).name == name
        page = await second.ask(
            OPERATIONS["ListOperations"], operations_pb2.ListOperationsRequest(filter="stage=EXECUTING")
        )
        assert [operation.name for operation in page.operations] == [name]
        overview = await second.ask(STATUS["GetOverview"], status_pb2.GetOverviewRequest())
        assert sum(count.workers for count in overview.workers) == 1
        gate.touch()
        here, there = await ended(stream), await waiting
        assert here == there
        digest = Digest.from_proto(here.result.output_files[0].digest)
        assert await second.store.read_many([digest]) == {digest: b"shown\n"}


async def test_what_one_frontend_began_the_other_one_cancels(roles: Roles) -> None:
    script, _gate = gated(roles, "cancelled")
    async with clients(roles) as (first, second):
        stream = first.execute(await first.action(script))
        name = (await executing(stream)).name
        await second.ask(OPERATIONS["CancelOperation"], operations_pb2.CancelOperationRequest(name=name))
        assert (await ended(stream)).status.code == grpc.StatusCode.CANCELLED.value[0]


async def test_what_an_action_prints_is_read_through_either_frontend(roles: Roles) -> None:
    script, gate = gated(roles, "printed")
    async with clients(roles) as (first, second):
        stream = first.execute(await first.action(script))
        metadata = re_pb2.ExecuteOperationMetadata()
        (await executing(stream)).metadata.Unpack(metadata)
        reading = second.stream(READ, bytestream_pb2.ReadRequest(resource_name=metadata.stdout_stream_name))
        printed = b""
        while not printed:
            printed = (await reading.read()).data
        assert printed == b"printed waits\n"
        gate.touch()
        assert (await ended(stream)).result.exit_code == 0


async def test_a_client_does_not_notice_that_the_scheduler_is_killed(roles: Roles) -> None:
    script, gate = gated(roles, "survived")
    async with clients(roles) as (first, second):
        stream = first.execute(await first.action(script))
        name = (await executing(stream)).name
        await asyncio.to_thread(roles.scheduler.kill_and_start)
        assert (
            await second.ask(OPERATIONS["GetOperation"], operations_pb2.GetOperationRequest(name=name))
        ).name == name
        gate.touch()
        response = await ended(stream)
    assert (response.status.code, response.result.exit_code) == (0, 0)


async def test_a_client_whose_frontend_is_killed_goes_on_at_the_other(roles: Roles) -> None:
    script, gate = gated(roles, "moved")
    async with clients(roles) as (first, second):
        stream = first.execute(await first.action(script))
        name = (await executing(stream)).name
        killing = asyncio.create_task(asyncio.to_thread(roles.frontends[0].kill_and_start))
        with pytest.raises(aio.AioRpcError) as caught:
            await ended(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        waiting = asyncio.ensure_future(ended(second.wait(name)))
        await killing
        gate.touch()
        assert (await waiting).result.exit_code == 0


def readiness(member: Member) -> tuple[int, str]:
    """Status and text of /readyz."""
    try:
        with urllib.request.urlopen(f"http://{member._metrics}/readyz", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode()


def test_a_frontend_is_ready_while_it_has_a_scheduler_and_says_so_when_it_has_none(roles: Roles) -> None:
    frontend = roles.frontends[1]
    assert readiness(frontend)[0] == 200
    roles.scheduler.process.kill()
    wait_until(lambda: readiness(frontend)[0] == 503, "the frontend to notice", 20)
    assert "not connected to a scheduler" in readiness(frontend)[1]
    roles.scheduler.kill_and_start()
    wait_until(lambda: readiness(frontend)[0] == 200, "the frontend to be ready again", 20)
