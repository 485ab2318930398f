"""gRPC health and reflection, as probes and tools ask for them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc import aio

from cas.context import RequestContext
from cas.errors import MalformedRequest, NotFound, QueueFull, Unavailable
from protos.grpc.health.v1 import health_pb2
from protos.grpc.reflection.v1 import reflection_pb2 as v1
from protos.grpc.reflection.v1alpha import reflection_pb2 as v1alpha
from rexec.config import parse
from rexec.health import MAX_WATCH_BYTES, Health
from rexec.reflection import MAX_REQUEST_BYTES
from rexec.server import running

Status = health_pb2.HealthCheckResponse
REAPI = "build.bazel.remote.execution.v2"


def asked(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def test_every_service_serves_until_the_server_drains() -> None:
    health = Health(["a.B", "c.D"])
    for name in ("", "a.B", "c.D"):
        assert (await health.Check(asked(name), RequestContext())).status == Status.SERVING
    health.drain()
    listed = (await health.List(health_pb2.HealthListRequest(), RequestContext())).statuses
    assert {name: answer.status for name, answer in listed.items()} == dict.fromkeys(
        ("", "a.B", "c.D"), Status.NOT_SERVING
    )
    with pytest.raises(NotFound, match=r"'x\.Y'"):
        await health.Check(asked("x.Y"), RequestContext())


async def test_who_watches_is_told_of_each_change_once() -> None:
    health = Health(["a.B"])
    known, unknown = health.Watch(asked("a.B"), RequestContext()), health.Watch(asked("x"), RequestContext())
    assert (await anext(known)).status == Status.SERVING
    assert (await anext(unknown)).status == Status.SERVICE_UNKNOWN
    following = asyncio.ensure_future(anext(known))
    health.drain()
    health.drain()
    async with asyncio.timeout(10):
        assert (await following).status == Status.NOT_SERVING
        health.close()
        for stream in (known, unknown):
            with pytest.raises(Unavailable):
                await anext(stream)


async def test_one_who_starts_to_watch_at_the_end_still_hears_the_status() -> None:
    health = Health([])
    health.close()
    stream = health.Watch(asked(), RequestContext())
    assert (await anext(stream)).status == Status.NOT_SERVING
    with pytest.raises(Unavailable):
        await anext(stream)


async def test_watchers_are_bounded_and_make_room_when_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rexec.health.MAX_WATCHERS", 2)
    health = Health([])
    first, second = (health.Watch(asked(), RequestContext()) for _ in range(2))
    await anext(first)
    await anext(second)
    with pytest.raises(QueueFull):
        await anext(health.Watch(asked(), RequestContext()))
    await first.aclose()
    assert (await anext(health.Watch(asked(), RequestContext()))).status == Status.SERVING


async def test_a_request_that_would_fill_the_memory_is_not_watched() -> None:
    health = Health([])
    with pytest.raises(MalformedRequest, match="expected at most"):
        await anext(health.Watch(asked("x" * MAX_WATCH_BYTES), RequestContext()))


async def test_a_watch_does_not_hold_up_the_end_of_the_server(tmp_path: Path) -> None:
    text = f'state_dir = "{tmp_path}"\nslots = 0\n[server]\nlisten = ["127.0.0.1:0"]\nstop_seconds = 1000'
    async with asyncio.timeout(20):
        async with running(parse(text)) as server:
            channel = aio.insecure_channel(server.addresses[0])
            watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
            answers: Any = watch(b"")
            assert Status.FromString(await answers.read()).status == Status.SERVING
        assert Status.FromString(await answers.read()).status == Status.NOT_SERVING
        assert await answers.code() is grpc.StatusCode.UNAVAILABLE
        await channel.close()


class Tool:
    """A client of reflection in either version."""

    def __init__(self, channel: aio.Channel, messages: Any) -> None:
        self._messages = messages
        call: Any = channel.stream_stream(f"/{messages.DESCRIPTOR.package}.ServerReflection/ServerReflectionInfo")
        self._stream: Any = call()

    async def ask(self, **request: Any) -> Any:
        await self._stream.write(self._messages.ServerReflectionRequest(**request).SerializeToString())
        data = await self._stream.read()
        assert data is not aio.EOF, await self._stream.code()
        return self._messages.ServerReflectionResponse.FromString(data)

    async def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = await self._stream.code()
        return code


@pytest.mark.parametrize("messages", [v1, v1alpha])
async def test_a_tool_learns_all_that_it_needs_to_make_a_call(tmp_path: Path, messages: Any) -> None:
    text = f'state_dir = "{tmp_path}"\nslots = 0\n[server]\nlisten = ["127.0.0.1:0"]'
    async with running(parse(text)) as server, aio.insecure_channel(server.addresses[0]) as channel:
        tool = Tool(channel, messages)
        listed = await tool.ask(host="h", list_services="*")
        assert listed.valid_host == "h"
        assert listed.original_request.list_services == "*"
        names = [service.name for service in listed.list_services_response.service]
        assert names == sorted(service.full_name for service in server.services)
        for name in names:
            # A pool of its own takes a file only after those that it imports.
            answer = await tool.ask(file_containing_symbol=name)
            files = [
                FileDescriptorProto.FromString(data) for data in answer.file_descriptor_response.file_descriptor_proto
            ]
            pool = DescriptorPool()
            pending = {file.name: file for file in files}
            while pending:
                ready = [file for file in pending.values() if not set(file.dependency) & set(pending)]
                assert ready, f"{name}: imports in a circle"
                for file in ready:
                    pool.Add(pending.pop(file.name))
            assert pool.FindServiceByName(name).methods


@pytest.mark.parametrize(
    "symbol",
    [
        f"{REAPI}.Execution.Execute",
        f"{REAPI}.Digest",
        f"{REAPI}.Digest.size_bytes",
        f"{REAPI}.DigestFunction.Value",
        f"{REAPI}.Platform.Property",
        "google.rpc.Status",
    ],
)
async def test_a_symbol_of_any_kind_is_found(tool: Tool, symbol: str) -> None:
    answer = await tool.ask(file_containing_symbol=symbol)
    file = FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
    assert symbol.startswith(f"{file.package}.")
    again = await tool.ask(file_by_filename=file.name)
    assert list(again.file_descriptor_response.file_descriptor_proto) == list(
        answer.file_descriptor_response.file_descriptor_proto
    )


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"file_containing_symbol": "no.such.Thing"}, 5),
        ({"file_containing_symbol": ""}, 5),
        ({"file_containing_symbol": "\x00"}, 5),
        ({"file_by_filename": "../../etc/passwd"}, 5),
        ({"file_by_filename": "google/protobuf/unittest.proto"}, 5),
        ({"file_containing_extension": v1.ExtensionRequest(containing_type=f"{REAPI}.Digest", extension_number=7)}, 5),
        ({"all_extension_numbers_of_type": "no.such.Thing"}, 5),
        ({}, 3),
    ],
)
async def test_what_is_not_there_is_an_answer_and_the_stream_goes_on(
    tool: Tool, request_: dict[str, Any], code: int
) -> None:
    assert (await tool.ask(**request_)).error_response.error_code == code
    assert (await tool.ask(list_services="")).list_services_response.service


async def test_no_message_has_extensions(tool: Tool) -> None:
    answer = await tool.ask(all_extension_numbers_of_type=f"{REAPI}.Digest")
    assert answer.all_extension_numbers_response.base_type_name == f"{REAPI}.Digest"
    assert not answer.all_extension_numbers_response.extension_number


async def test_a_question_that_is_too_long_ends_the_stream(tool: Tool) -> None:
    with pytest.raises(aio.AioRpcError):
        await tool.ask(file_containing_symbol="x" * (MAX_REQUEST_BYTES + 1))
    assert await tool.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def tool(tmp_path: Path) -> Any:
    text = f'state_dir = "{tmp_path}"\nslots = 0\n[server]\nlisten = ["127.0.0.1:0"]'
    async with running(parse(text)) as server, aio.insecure_channel(server.addresses[0]) as channel:
        yield Tool(channel, v1)
