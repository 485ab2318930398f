"""Several schedulers: whichever is in charge gets the worker, with what it holds."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from cas.memory import MemoryStore
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.agent import Agent
from rexec.worker.in_turn import in_turn
from rexec.worker.link import LINK_OPTIONS, Link, NotReached, dial_over
from rexec.worker.observer import Unobserved
from tests.worker.actions import Inputs, Worker, make_context
from tests.worker.scheduler import SECONDS, Scheduler, Stream


def test_no_scheduler_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        in_turn([])


@asynccontextmanager
async def absent() -> AsyncIterator[Link]:
    raise NotReached("10.0.0.1:8980: connection refused")
    yield


@asynccontextmanager
async def listening(scheduler: Scheduler, port: int = 0) -> AsyncIterator[int]:
    """A server of its own for the scheduler; when the block ends it is gone, and its streams with it."""

    async def attach(
        requests: AsyncIterator[worker_pb2.FromWorker], _context: Any
    ) -> AsyncIterator[worker_pb2.ToWorker]:
        stream = Stream()
        scheduler.streams.put_nowait(stream)

        async def read() -> None:
            async for message in requests:
                await stream.send(message)

        reading = asyncio.create_task(read())
        try:
            while (message := await stream.down.get()) is not None:
                yield message
        finally:
            reading.cancel()

    server = aio.server()
    handler = grpc.stream_stream_rpc_method_handler(
        attach,
        request_deserializer=worker_pb2.FromWorker.FromString,
        response_serializer=worker_pb2.ToWorker.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("rexec.worker.v1.Workers", {"Attach": handler}),)
    )
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


class Ended(Unobserved):
    """Tells when a lease has ended."""

    def __init__(self) -> None:
        self.happened = asyncio.Event()

    def lease_ended(self, failure: str) -> None:
        self.happened.set()


async def test_a_worker_outlives_its_schedulers_process_and_finds_the_next_at_another_port(
    tmp_path: Path, store: MemoryStore
) -> None:
    context = await make_context(tmp_path / "work", store, reconnect_min_seconds=0.001, reconnect_max_seconds=0.01)
    worker = Worker(context, Inputs(store), tmp_path / "work")
    gate = tmp_path / "gate"
    before, after = Scheduler(), Scheduler()
    with socket.socket() as taken:  # the port of the one that is to come
        taken.bind(("127.0.0.1", 0))
        second_port = taken.getsockname()[1]
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        first_port = await first.enter_async_context(listening(before))
        dials = []
        for port in (first_port, second_port):
            channel = await stack.enter_async_context(aio.insecure_channel(f"127.0.0.1:{port}", options=LINK_OPTIONS))
            dials.append(dial_over(channel))
        ended = Ended()
        agent = Agent(context, in_turn(dials), "session", ended)
        running = asyncio.create_task(agent.run())
        try:
            stream = await before.stream()
            await stream.hello()
            lease = await worker.lease("/bin/sh", "-c", f"until [ -e {gate} ]; do sleep 0.02; done; echo went on")
            stream.lease(lease)
            await stream.running(lease.lease_id)
            await first.aclose()
            gate.write_bytes(b"")  # it ends while there is no scheduler at all
            async with asyncio.timeout(SECONDS):
                await ended.happened.wait()
            await stack.enter_async_context(listening(after, second_port))
            again = await after.stream()
            assert [held.lease_id for held in (await again.hello()).held] == [lease.lease_id]
            finished = await again.finished(lease.lease_id)
            assert await worker.stdout(finished) == "went on\n"
            again.acknowledge(finished)
            await again.credit(3)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            context.workspace.close()


async def test_what_ran_under_one_scheduler_is_told_to_the_one_that_took_over(
    tmp_path: Path, store: MemoryStore
) -> None:
    """The first scheduler dies, nobody answers at an address in between, and the second knows the lease from a journal."""
    context = await make_context(tmp_path / "work", store, reconnect_min_seconds=0.001)
    first, second = Scheduler(), Scheduler()
    agent = Agent(context, in_turn([first.dial, absent, second.dial]), "session")
    worker = Worker(context, Inputs(store), tmp_path / "work")
    running = asyncio.create_task(agent.run())
    gate = tmp_path / "gate"
    try:
        stream = await first.stream()
        await stream.hello()
        ended = await worker.lease("/bin/echo", "ended")
        going_on = await worker.lease("/bin/sh", "-c", f"until [ -e {gate} ]; do sleep 0.02; done; echo went on")
        stream.lease(ended)
        result = await stream.finished(ended.lease_id)
        stream.lease(going_on)
        await stream.running(going_on.lease_id)
        stream.cut()  # before it could acknowledge anything

        other = await second.stream()
        hello = await other.hello(resumed=[worker_pb2.HeldLease(lease_id=going_on.lease_id, epoch=1)])
        assert {held.lease_id for held in hello.held} == {ended.lease_id, going_on.lease_id}
        assert await other.finished(ended.lease_id) == result
        other.acknowledge(result)
        gate.write_bytes(b"")
        late = await other.finished(going_on.lease_id)
        assert await worker.stdout(late) == "went on\n"
        other.cut()  # again unacknowledged, and back to the first, which has come up anew

        third = await first.stream()
        assert [held.lease_id for held in (await third.hello()).held] == [going_on.lease_id]
        assert await third.finished(going_on.lease_id) == late
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        context.workspace.close()
