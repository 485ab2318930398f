"""The stream over a real gRPC channel: whatever ends it, the agent sees LinkBroken and nothing else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.link import LinkBroken, NotReached, Refused, dial_over


@asynccontextmanager
async def served(attach: Any) -> AsyncIterator[aio.Channel]:
    """A channel to a server whose Workers.Attach is `attach`."""
    server = aio.server()
    handler = grpc.stream_stream_rpc_method_handler(
        attach,
        request_deserializer=worker_pb2.FromWorker.FromString,
        response_serializer=worker_pb2.ToWorker.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("rexec.worker.v1.Workers", {"Attach": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(30):
            yield channel
    finally:
        await server.stop(0)


async def welcome_and_end(requests: AsyncIterator[worker_pb2.FromWorker], context: Any) -> Any:
    async for message in requests:
        yield worker_pb2.ToWorker(welcome=worker_pb2.Welcome(worker_id=message.hello.worker_name))
        return


async def refuse(requests: AsyncIterator[worker_pb2.FromWorker], context: Any) -> Any:
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
    yield worker_pb2.ToWorker()


async def test_messages_pass_and_the_end_of_the_stream_breaks_the_link_both_ways() -> None:
    async with served(welcome_and_end) as channel, dial_over(channel)() as link:
        await link.send(worker_pb2.FromWorker(hello=worker_pb2.Hello(worker_name="x")))
        assert (await link.receive()).welcome.worker_id == "x"
        with pytest.raises(LinkBroken, match="ended"):
            await link.receive()
        with pytest.raises(LinkBroken):
            await link.send(worker_pb2.FromWorker())


async def test_a_refusal_says_why() -> None:
    async with served(refuse) as channel, dial_over(channel)() as link:
        with pytest.raises(Refused, match="PERMISSION_DENIED: not you"):
            await link.receive()


@pytest.mark.parametrize("target", ["127.0.0.1:{port}", "unix:{path}"])
async def test_a_server_that_is_not_there_is_told_with_its_address_and_the_systems_reason(
    target: str, tmp_path: Path
) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        address = target.format(port=taken.getsockname()[1], path=tmp_path / "absent.sock")
        async with aio.insecure_channel(address) as channel, asyncio.timeout(30):
            expected = f"^{address.removeprefix('unix:')}: (connection refused|no such file or directory)$"
            async with dial_over(channel)() as link:
                with pytest.raises(NotReached, match=expected):
                    await link.receive()
