"""Workers that run nothing: each answers a lease at once with an empty result, over a connection of its own.

They live in one process beside the server's, which is driven through a pipe. What they say is what a real worker says of an
action that is over before it began: Hello, Credit, a Finished and a new Credit for each lease, a Heartbeat now and then. The
phases in between are left out.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Self, cast

import uvloop
from grpc import aio

from protos.methods import methods_of
from protos.rexec.worker.v1 import worker_pb2

if TYPE_CHECKING:  # types-grpcio makes this generic, the library does not
    Call = aio.StreamStreamCall[bytes, worker_pb2.ToWorker]

_ATTACH = methods_of(worker_pb2, "Workers")["Attach"]
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
_USAGE = worker_pb2.ResourceUsage(
    user_seconds=0.001234,
    system_seconds=0.000987,
    peak_memory_bytes=65 << 20,
    written_bytes=8192,
    voluntary_context_switches=3,
    involuntary_context_switches=1,
)
_RESOURCES = {"cpu": 8000, "memory": 16 << 30}
ANSWER_SECONDS = 60.0
"""How long the process may take for what it is asked."""


class Worker:
    """One stream."""

    def __init__(self, address: str, number: int, slots: int, leased_at: dict[str, float]) -> None:
        self._name = f"simulated-{number}"
        self._slots = slots
        self._leased_at = leased_at
        self._channel = aio.insecure_channel(address, options=_OWN_CONNECTION)
        self._received = 0
        # gRPC takes one message at a time, and heartbeats come when they like.
        self._writing = asyncio.Lock()
        self.heartbeat_seconds = 0.0

    async def attach(self) -> Self:
        """Open the stream and wait for the Welcome; no lease comes before `grant`."""
        attach: Callable[[], Call] = self._channel.stream_stream(
            _ATTACH.path, response_deserializer=worker_pb2.ToWorker.FromString
        )
        self._call = attach()
        hello = worker_pb2.Hello(worker_name=self._name, session_id=self._name, slots=self._slots, resources=_RESOURCES)
        await self._say(worker_pb2.FromWorker(hello=hello))
        welcome = await self._read()
        self.heartbeat_seconds = welcome.welcome.heartbeat_interval.ToTimedelta().total_seconds()
        return self

    async def grant(self) -> None:
        """Take as many leases as there are slots. Since a lease is over as it comes, that is true at any time."""
        await self._say(self._credit())

    def _credit(self) -> worker_pb2.FromWorker:
        return worker_pb2.FromWorker(credit=worker_pb2.Credit(leases=self._slots, leases_received=self._received))

    async def beat(self) -> None:
        """Say that it lives."""
        await self._say(worker_pb2.FromWorker(heartbeat=worker_pb2.Heartbeat(load=0.5, free_disk_bytes=1 << 40)))

    async def answer(self) -> None:
        """Answer leases until the stream ends, which is a failure."""
        while True:
            read = await self._read()
            answers = [self._finished(message.lease) for message in (read, *read.also) if message.HasField("lease")]
            if answers:
                answers.append(self._credit())
                answers[0].also.extend(answers[1:])  # as the agent does with what is ready
                await self._say(answers[0])

    def _finished(self, lease: worker_pb2.Lease) -> worker_pb2.FromWorker:
        self._leased_at[lease.action_digest.hash] = time.monotonic()
        self._received += 1
        message = worker_pb2.FromWorker()
        finished = message.finished
        finished.lease_id, finished.epoch = lease.lease_id, lease.epoch
        finished.status.SetInParent()
        metadata = finished.action_result.execution_metadata
        metadata.worker = self._name
        metadata.queued_timestamp.CopyFrom(lease.queued_timestamp)
        metadata.worker_start_timestamp.GetCurrentTime()
        for stamp in (
            metadata.input_fetch_start_timestamp,
            metadata.input_fetch_completed_timestamp,
            metadata.execution_start_timestamp,
            metadata.execution_completed_timestamp,
            metadata.output_upload_start_timestamp,
            metadata.output_upload_completed_timestamp,
            metadata.worker_completed_timestamp,
        ):
            stamp.CopyFrom(metadata.worker_start_timestamp)
        metadata.auxiliary_metadata.add().Pack(_USAGE)
        return message

    async def _say(self, message: worker_pb2.FromWorker) -> None:
        async with self._writing:
            await self._call.write(message.SerializeToString())

    async def _read(self) -> worker_pb2.ToWorker:
        message = await self._call.read()
        if message is aio.EOF:
            raise AssertionError(f"the server ended a worker's stream: {await self._call.details()}")
        return cast(worker_pb2.ToWorker, message)


class SimulatedWorkers:
    """The process of the workers, seen from outside. Every method raises AssertionError when it does not answer in time."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def grant(self) -> None:
        """Let leases come, as many as there are slots."""
        self._ask("grant")

    def take(self) -> dict[str, float]:
        """When each lease since the last time came, by the hash of its action; monotonic seconds."""
        return cast("dict[str, float]", self._ask("take"))

    def wait_until_attached(self) -> None:
        """All have been welcomed."""
        self._answer("attach")

    def _ask(self, what: str) -> object:
        self._pipe.send(what)
        return self._answer(what)

    def _answer(self, what: str) -> object:
        if not self._pipe.poll(ANSWER_SECONDS):
            raise AssertionError(f"simulated workers did not {what} within {ANSWER_SECONDS:g} s")
        try:
            return self._pipe.recv()
        except EOFError:
            raise AssertionError(f"the process of the simulated workers ended when asked to {what}") from None


@contextmanager
def simulated_workers(address: str, count: int, slots: int) -> Iterator[SimulatedWorkers]:
    """So many workers with so many slots each, attached to the server until the end of the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_live, args=(theirs, address, count, slots), daemon=True)
    process.start()
    theirs.close()
    workers = SimulatedWorkers(ours)
    try:
        workers.wait_until_attached()
        yield workers
    finally:
        ours.close()  # the process ends when its pipe does
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


def _live(pipe: Connection, address: str, count: int, slots: int) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_obey(pipe, address, count, slots))


async def _obey(pipe: Connection, address: str, count: int, slots: int) -> None:
    """Attach, and do what the pipe says until it is closed."""
    leased_at: dict[str, float] = {}
    workers = [Worker(address, number, slots, leased_at) for number in range(count)]
    for start in range(0, count, 50):  # as many at once as a pool that is scaled up
        await asyncio.gather(*[worker.attach() for worker in workers[start : start + 50]])
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(worker.answer()) for worker in workers]
        running += [tasks.create_task(_beat(worker, place / count)) for place, worker in enumerate(workers)]
        pipe.send(None)
        while (command := await asyncio.to_thread(_heard, pipe)) is not None:
            if command == "grant":
                await asyncio.gather(*[worker.grant() for worker in workers])
                pipe.send(None)
            else:
                pipe.send(leased_at)
                leased_at.clear()
        for task in running:
            task.cancel()


def _heard(pipe: Connection) -> str | None:
    """The next command, None when there will be no more."""
    try:
        return cast(str, pipe.recv())
    except EOFError:
        return None


async def _beat(worker: Worker, phase: float) -> None:
    """Heartbeats as often as the server wants them; the first after that share of their interval, so that those of all workers
    are spread evenly, as those of independent workers are."""
    await asyncio.sleep(phase * worker.heartbeat_seconds)
    while True:
        await worker.beat()
        await asyncio.sleep(worker.heartbeat_seconds)
