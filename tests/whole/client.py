"""A client of the whole server: uploads an action, runs it, reads what came out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.message import Message
from grpc import aio

from cas.digest import Digest
from cas.remote import CHANNEL_OPTIONS, RemoteStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.config import parse
from rexec.server import running
from rexec.worker.link import dial_over
from rexec.worker.settings import WorkerSettings
from rexec.worker.start import open_agent

EXECUTE = "/build.bazel.remote.execution.v2.Execution/Execute"


@dataclass(frozen=True, slots=True)
class Client:
    channel: aio.Channel
    store: RemoteStore
    server: str
    """Its address, grpc://HOST:PORT."""

    async def upload(self, *blobs: bytes | Message) -> list[Digest]:
        """Upload blobs and messages; their digests in the same order."""
        contents = [blob if isinstance(blob, bytes) else blob.SerializeToString() for blob in blobs]
        digests = [Digest.of(data) for data in contents]
        assert await self.store.write_many(list(zip(digests, contents, strict=True))) == {}
        return digests

    async def action(
        self, script: str, outputs: Sequence[str] = (), inputs: Mapping[str, bytes] | None = None, **options: Any
    ) -> Digest:
        """Upload an action that runs a shell script over the input files; its digest."""
        files = inputs or {}
        root = re_pb2.Directory(
            files=[
                re_pb2.FileNode(name=name, digest=digest.to_proto())
                for name, digest in sorted(zip(files, await self.upload(*files.values()), strict=True))
            ]
        )
        command = re_pb2.Command(arguments=["/bin/sh", "-c", script], output_paths=outputs)
        root_digest, command_digest = await self.upload(root, command)
        action = re_pb2.Action(
            command_digest=command_digest.to_proto(), input_root_digest=root_digest.to_proto(), **options
        )
        return (await self.upload(action))[0]

    async def operations(self, action: Digest, **options: Any) -> list[operations_pb2.Operation]:
        """Everything that Execute says of the action. Raises AioRpcError."""
        call: Any = self.channel.unary_stream(
            EXECUTE,
            request_serializer=re_pb2.ExecuteRequest.SerializeToString,
            response_deserializer=operations_pb2.Operation.FromString,
        )
        request = re_pb2.ExecuteRequest(action_digest=action.to_proto(), **options)
        return [operation async for operation in call(request, timeout=60)]

    async def execute(self, action: Digest, **options: Any) -> re_pb2.ExecuteResponse:
        """How the action ended."""
        last = (await self.operations(action, **options))[-1]
        assert last.done
        response = re_pb2.ExecuteResponse()
        assert last.response.Unpack(response)
        return response

    async def output(self, response: re_pb2.ExecuteResponse, path: str) -> bytes:
        """The content of an output file."""
        (file,) = (file for file in response.result.output_files if file.path == path)
        digest = Digest.from_proto(file.digest)
        return (await self.store.read_many([digest]))[digest]


@asynccontextmanager
async def whole_server(folder: Path, slots: int = 2) -> AsyncIterator[Client]:
    """A server with a worker in this process, and a client of it."""
    config = parse(f'state_dir = "{folder / "state"}"\n[server]\nlisten = ["127.0.0.1:0"]')
    async with (
        running(config) as server,
        aio.insecure_channel(f"unix:{server.socket}", options=CHANNEL_OPTIONS) as link,
        aio.insecure_channel(server.addresses[0], options=CHANNEL_OPTIONS) as channel,
        open_agent(
            WorkerSettings(slots=slots, work_dir=str(folder / "work"), cache_max_bytes=64 << 20),
            dial_over(link),
            lambda instance_name: RemoteStore(link, instance_name),
        ) as agent,
        agent_running(agent),
    ):
        yield Client(channel, RemoteStore(channel), f"grpc://{server.addresses[0]}")


@asynccontextmanager
async def agent_running(agent: Any) -> AsyncIterator[None]:
    import asyncio

    running_agent = asyncio.create_task(agent.run())
    try:
        yield
    finally:
        agent.drain("the test ends", 0.0)
        await running_agent
