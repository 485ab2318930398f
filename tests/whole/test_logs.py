"""What an action prints, read while it runs: from the process through worker and server to a client, and `rexec logs`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2, operations_proto_pb2
from grpc import aio

from cas.connection_settings import ConnectionSettings
from cas.digest import Digest
from cas.errors import Code
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.build.bazel.remote.logstream.v1 import remote_logstream_pb2
from protos.google.bytestream import bytestream_pb2
from protos.methods import GeneratedModule, methods_of
from rexec.logs_command import NoLogs, Wanted, show_logs
from tests.gate import Gate
from tests.whole.client import EXECUTE, Client, whole_server

GUARD_SECONDS = 60


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with whole_server(tmp_path) as client:
        yield client


@pytest.fixture
def gate(tmp_path: Path) -> Any:
    with Gate(tmp_path / "gate") as gate:
        yield gate


class Execution:
    """An Execute whose stream is read in the background."""

    def __init__(self, client: Client, action: Digest) -> None:
        call: Any = client.channel.unary_stream(
            EXECUTE,
            request_serializer=re_pb2.ExecuteRequest.SerializeToString,
            response_deserializer=operations_pb2.Operation.FromString,
        )
        self._call = call(re_pb2.ExecuteRequest(action_digest=action.to_proto()))
        self.name = ""

    async def running(self) -> re_pb2.ExecuteOperationMetadata:
        """The metadata once the action is in stage EXECUTING."""
        while True:
            operation = await self._next()
            metadata = re_pb2.ExecuteOperationMetadata()
            assert operation.metadata.Unpack(metadata)
            assert not operation.done
            if metadata.stage == re_pb2.ExecutionStage.EXECUTING:
                return metadata

    async def response(self) -> re_pb2.ExecuteResponse:
        while not (operation := await self._next()).done:
            pass
        response = re_pb2.ExecuteResponse()
        assert operation.response.Unpack(response)
        return response

    async def _next(self) -> operations_pb2.Operation:
        async with asyncio.timeout(GUARD_SECONDS):
            operation: operations_pb2.Operation = await self._call.read()
        self.name = operation.name
        return operation


class Log:
    """A ByteStream.Read."""

    def __init__(self, client: Client, name: str, offset: int = 0, limit: int = 0) -> None:
        method = methods_of(bytestream_pb2, "ByteStream")["Read"]
        call: Any = client.channel.unary_stream(
            method.path,
            request_serializer=method.request_type.SerializeToString,
            response_deserializer=method.response_type.FromString,
        )
        self.call = call(bytestream_pb2.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit))

    async def exactly(self, size_bytes: int) -> bytes:
        data = b""
        async with asyncio.timeout(GUARD_SECONDS):
            while len(data) < size_bytes:
                data += (await self.call.read()).data
        return data

    async def rest(self) -> bytes:
        data = bytearray()
        async with asyncio.timeout(GUARD_SECONDS):
            while (piece := await self.call.read()) is not aio.EOF:
                data += piece.data
        return bytes(data)


async def unary(client: Client, source: GeneratedModule, service: str, name: str, request: Any) -> Any:
    method = methods_of(source, service)[name]
    call: Any = client.channel.unary_unary(
        method.path,
        request_serializer=method.request_type.SerializeToString,
        response_deserializer=method.response_type.FromString,
    )
    return await call(request, timeout=GUARD_SECONDS)


async def test_each_line_is_read_before_the_action_may_print_the_next(client: Client, gate: Gate) -> None:
    execution = Execution(client, await client.action(f"for i in 1 2 3; do echo $i; echo e$i >&2; {gate.wait}; done"))
    metadata = await execution.running()
    stdout, stderr = Log(client, metadata.stdout_stream_name), Log(client, metadata.stderr_stream_name)
    for number in b"123":
        # The action waits at its gate, so these bytes cannot come from its result.
        assert await stdout.exactly(2) == b"%c\n" % number
        assert await stderr.exactly(3) == b"e%c\n" % number
        gate.open()
    assert await stdout.rest() == b""
    assert await stderr.rest() == b""
    assert await stdout.call.code() is grpc.StatusCode.OK
    response = await execution.response()
    assert Digest.from_proto(response.result.stdout_digest) == Digest.of(b"1\n2\n3\n")
    assert await Log(client, metadata.stdout_stream_name).rest() == b"1\n2\n3\n"
    assert await Log(client, metadata.stdout_stream_name, offset=2, limit=1).rest() == b"2"


async def test_a_late_reader_and_one_at_an_offset_get_what_was_printed_before(client: Client, gate: Gate) -> None:
    script = f"head -c 300000 /dev/zero; echo end; {gate.wait}; echo more"
    execution = Execution(client, await client.action(script))
    name = (await execution.running()).stdout_stream_name
    first = Log(client, name)
    assert (await first.exactly(300_004)).endswith(b"\0end\n")
    assert await Log(client, name).exactly(300_004) == b"\0" * 300_000 + b"end\n"
    late = Log(client, name, offset=300_000)
    assert await late.exactly(4) == b"end\n"
    gate.open()
    assert await late.rest() == b"more\n"
    assert (await execution.response()).result.exit_code == 0


async def test_a_reader_that_vanishes_disturbs_nobody(client: Client, gate: Gate) -> None:
    execution = Execution(client, await client.action(f"echo one; {gate.wait}; echo two"))
    name = (await execution.running()).stdout_stream_name
    leaving, staying = Log(client, name), Log(client, name)
    assert await leaving.exactly(4) == await staying.exactly(4) == b"one\n"
    leaving.call.cancel()
    gate.open()
    assert await staying.rest() == b"two\n"
    assert (await execution.response()).result.exit_code == 0


async def test_a_reader_who_does_not_read_holds_up_neither_the_action_nor_its_result(client: Client) -> None:
    size_bytes = 100_000_000
    execution = Execution(client, await client.action(f"head -c {size_bytes} /dev/zero"))
    log = Log(client, (await execution.running()).stdout_stream_name)
    response = await execution.response()  # while nobody takes what the log holds
    assert response.result.stdout_digest.size_bytes == size_bytes
    assert len(await log.rest()) == size_bytes


async def test_a_cancelled_action_ends_its_log(client: Client, gate: Gate) -> None:
    execution = Execution(client, await client.action(f"echo begun; {gate.wait}"))
    log = Log(client, (await execution.running()).stdout_stream_name)
    assert await log.exactly(6) == b"begun\n"
    request = operations_pb2.CancelOperationRequest(name=execution.name)
    await unary(client, operations_proto_pb2, "Operations", "CancelOperation", request)
    assert await log.rest() == b""
    assert (await execution.response()).status.code == Code.CANCELLED


@pytest.mark.parametrize(
    ("name", "offset", "limit", "code"),
    [
        ("logstreams/unknown.stdout", 0, 0, grpc.StatusCode.NOT_FOUND),
        ("main/logstreams/unknown.stderr", 0, 0, grpc.StatusCode.NOT_FOUND),
        ("logstreams/unknown", 0, 0, grpc.StatusCode.NOT_FOUND),
        ("elsewhere/logstreams/unknown.stdout", 0, 0, grpc.StatusCode.INVALID_ARGUMENT),
        ("logstreams/unknown.stdout/token", 0, 0, grpc.StatusCode.INVALID_ARGUMENT),
        ("logstreams/unknown.stdout", -1, 0, grpc.StatusCode.OUT_OF_RANGE),
        ("logstreams/unknown.stdout", 0, -1, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_what_is_no_log_is_refused(
    client: Client, name: str, offset: int, limit: int, code: grpc.StatusCode
) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await Log(client, name, offset, limit).rest()
    assert caught.value.code() is code


async def test_logs_of_clients_are_refused_as_not_implemented(client: Client) -> None:
    request = remote_logstream_pb2.CreateLogStreamRequest(parent="main")
    with pytest.raises(aio.AioRpcError) as caught:
        await unary(client, remote_logstream_pb2, "LogStreamService", "CreateLogStream", request)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


class Shown:
    """What `rexec logs` has written so far."""

    def __init__(self) -> None:
        self.written = {"stdout": b"", "stderr": b""}
        self._changed = asyncio.Condition()
        self._notifying: set[asyncio.Task[None]] = set()

    def write(self, output: str, data: bytes) -> None:
        self.written[output] += data
        task = asyncio.create_task(self._notify())
        self._notifying.add(task)
        task.add_done_callback(self._notifying.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, **written: bytes) -> None:
        async with asyncio.timeout(GUARD_SECONDS), self._changed:
            await self._changed.wait_for(lambda: self.written == {"stdout": b"", "stderr": b""} | written)


@asynccontextmanager
async def showing(client: Client, operation: str, **options: Any) -> AsyncIterator[tuple[Shown, asyncio.Task[bool]]]:
    shown = Shown()
    wanted = Wanted(operation, **options)
    task = asyncio.create_task(show_logs(client.server, ConnectionSettings(), wanted, shown.write))
    try:
        yield shown, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_rexec_logs_follows_both_outputs_to_the_end(client: Client, gate: Gate) -> None:
    execution = Execution(client, await client.action(f"echo out; echo err >&2; {gate.wait}; echo more"))
    await execution.running()
    async with showing(client, execution.name, follow=True) as (shown, task):
        await shown.until(stdout=b"out\n", stderr=b"err\n")
        assert not task.done()
        gate.open()
        assert await task
    assert shown.written == {"stdout": b"out\nmore\n", "stderr": b"err\n"}


async def test_rexec_logs_shows_what_there_is_and_stops(client: Client, gate: Gate) -> None:
    action = await client.action(f"echo out; {gate.wait}")
    execution = Execution(client, action)
    log = Log(client, (await execution.running()).stdout_stream_name)
    await log.exactly(4)
    async with showing(client, f"{action.hash}/{action.size_bytes}", quiet_seconds=3.0) as (shown, task):
        assert not await task  # the action has not ended
    assert shown.written["stdout"] == b"out\n"
    gate.open()


async def test_rexec_logs_waits_for_an_action_that_waits(client: Client, gate: Gate) -> None:
    holding = [Execution(client, await client.action(f"{gate.wait}; exit {number}")) for number in range(2)]
    for execution in holding:
        await execution.running()
    waiting = Execution(client, await client.action("echo at last"))
    await waiting._next()
    async with showing(client, waiting.name, follow=True) as (shown, task):
        for _ in holding:
            gate.open()
        assert await task
    assert shown.written["stdout"] == b"at last\n"


async def test_rexec_logs_shows_the_stored_output_of_an_action_by_its_digest(client: Client) -> None:
    action = await client.action("echo out; echo err >&2; exit 3")
    await client.execute(action)
    async with showing(client, f"{action.hash}/{action.size_bytes}", outputs=("stderr",)) as (shown, task):
        assert await task
    assert shown.written == {"stdout": b"", "stderr": b"err\n"}


@pytest.mark.parametrize("operation", ["operations/unknown", "", "0" * 64 + "/5", "0" * 33 + "/5"])
async def test_rexec_logs_says_that_there_is_nothing_to_show(client: Client, operation: str) -> None:
    async with showing(client, operation) as (_shown, task):
        with pytest.raises(NoLogs):
            await task
