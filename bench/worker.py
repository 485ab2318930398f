"""What the worker agent itself adds to an action: CPU of this process for each no-op action, without inputs and with many.

Run with `python -m bench.worker [ACTIONS]`. Store and scheduler are left out (a store in memory, no stream), so the figure is
the agent's own: fetch, lay out, start, collect, upload. CPU of the commands is not counted. Inputs are in directories of 20
files (the last rows: all in one) and all in the cache, but for the one that is another with each action; rows "each anew" lay out
every input root in an empty directory. The first row of a size is the first action, which fetches everything.

What is wanted, on a quiet machine: with 500 inputs, one changed, at most 10 ms of CPU (`bench.worker_compile` shows it with a
compiler); with 20,000, one changed, at most 30 ms; each anew at most 40 us an input, deleting the last root included.

The first rows are what an agent takes when nothing happens, with no action and with one in each of 8 slots, which are watched for
what they take: CPU of one core, and its resident memory, this program and gRPC included. For actions on one core, run it under
`taskset -c 0`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from cas.digest import Digest
from cas.memory import MemoryStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.action import LeasedAction
from rexec.worker.link import Link, LinkBroken
from rexec.worker.settings import WorkerSettings
from rexec.worker.start import open_agent

FILES_IN_DIRECTORY = 20


async def put(store: MemoryStore, data: bytes) -> re_pb2.Digest:
    digest = Digest.of(data)
    await store.write_many([(digest, data)])
    return digest.to_proto()


async def directories_of(store: MemoryStore, files: int, in_directory: int) -> list[re_pb2.DirectoryNode]:
    """Directories with so many different files together."""
    nodes = []
    for first in range(0, files, in_directory):
        directory = re_pb2.Directory()
        for number in range(first, min(files, first + in_directory)):
            digest = await put(store, f"header {number}\n".encode() * 100)
            directory.files.add(name=f"{number:05}.h", digest=digest)
        digest = await put(store, directory.SerializeToString(deterministic=True))
        nodes.append(re_pb2.DirectoryNode(name=f"{first:05}", digest=digest))
    return nodes


async def root_of(store: MemoryStore, unchanged: list[re_pb2.DirectoryNode], number: int) -> re_pb2.Digest:
    """The input root of action `number`: all the directories, and one file that only it has."""
    source = re_pb2.Directory()
    source.files.add(name="main.c", digest=await put(store, f"int main_{number};".encode()))
    digest = await put(store, source.SerializeToString(deterministic=True))
    root = re_pb2.Directory(directories=[*unchanged, re_pb2.DirectoryNode(name="src", digest=digest)])
    return await put(store, root.SerializeToString(deterministic=True))


def _nobody() -> AbstractAsyncContextManager[Link]:
    raise LinkBroken("there is no scheduler here")


async def measure(
    actions: int, files: int, slots: int, reuse: bool = True, in_directory: int = FILES_IN_DIRECTORY
) -> None:
    store = MemoryStore()
    unchanged = await directories_of(store, files, in_directory)
    roots = [await root_of(store, unchanged, number if files else 0) for number in range(actions + slots + 2)]
    with tempfile.TemporaryDirectory() as directory:
        settings = WorkerSettings(work_dir=str(Path(directory) / "work"), slots=slots, reuse_input_roots=reuse)

        async with open_agent(settings, _nobody, lambda _: store) as agent:
            context = agent._context

            async def one(number: int) -> None:
                lease = worker_pb2.Lease(
                    lease_id=str(number),
                    action=re_pb2.Action(input_root_digest=roots[number]),
                    command=re_pb2.Command(arguments=["/bin/true"]),
                    digest_function=re_pb2.DigestFunction.SHA256,
                )
                lease.timeout.FromSeconds(60)
                finished = await LeasedAction(context, lease, lambda *_: None).run()
                assert finished.action_result.exit_code == 0
                assert finished.failure == worker_pb2.Finished.NONE

            async def several(numbers: range, what: str) -> None:
                wall, cpu = time.perf_counter(), time.process_time()
                running: set[asyncio.Task[None]] = set()
                for number in numbers:
                    if len(running) >= slots + 1:
                        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                        for task in done:
                            task.result()
                    running.add(asyncio.create_task(one(number)))
                await asyncio.gather(*running)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                print(
                    f"{files:5} inputs, {slots} slots, {what:14}: {cpu / len(numbers) * 1000:7.2f} ms CPU and "
                    f"{wall / len(numbers) * 1000:7.2f} ms wall per action, {len(numbers) / wall:5.0f} actions/s"
                    + (f", {cpu / len(numbers) / files * 1e6:5.1f} us CPU per input" if files else "")
                )

            await several(range(1), "first")
            warm = range(1, slots + 2)
            await asyncio.gather(*map(one, warm))  # a room for each place
            await several(range(warm.stop, warm.stop + actions), "one changed" if reuse else "each anew")


class Silence:
    """A scheduler that says welcome and no more."""

    def __init__(self) -> None:
        welcome = worker_pb2.Welcome(worker_id="w")
        welcome.heartbeat_interval.FromSeconds(5)
        self._first = [worker_pb2.ToWorker(welcome=welcome)]

    async def send(self, message: worker_pb2.FromWorker) -> None:
        pass

    async def finish(self) -> None:
        pass

    async def receive(self) -> worker_pb2.ToWorker:
        if not self._first:
            await asyncio.Event().wait()
        return self._first.pop()


@asynccontextmanager
async def _silence() -> AsyncIterator[Link]:
    yield Silence()


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def rest(slots: int, actions: int, seconds: float) -> None:
    """An agent while nothing begins and nothing ends."""
    store = MemoryStore()
    root = await put(store, b"")
    with tempfile.TemporaryDirectory() as directory:
        settings = WorkerSettings(work_dir=str(Path(directory) / "work"), slots=slots)
        async with open_agent(settings, _silence, lambda _: store) as agent:
            running: list[asyncio.Task[Any]] = [asyncio.create_task(agent.run())]
            for number in range(actions):
                command = re_pb2.Command(arguments=["/bin/sh", "-c", "sleep 1000; true"])
                lease = worker_pb2.Lease(
                    lease_id=str(number), command=command, digest_function=re_pb2.DigestFunction.SHA256
                )
                lease.action.input_root_digest.CopyFrom(root)
                lease.timeout.FromSeconds(1000)
                action = LeasedAction(agent._context, lease, lambda *_: None)
                running.append(asyncio.create_task(action.run()))
            await asyncio.sleep(1)
            cpu = time.process_time()
            await asyncio.sleep(seconds)
            cpu = time.process_time() - cpu
            resident = resident_bytes()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    print(
        f"{actions} actions in {slots} slots that go on: {cpu / seconds * 100:.2f} % of a core, {resident >> 20} MiB resident"
    )


def main() -> None:
    actions = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    for held in (0, 8):
        uvloop.run(rest(8, held, 10.0))
    uvloop.run(measure(actions, 0, 2))
    for files, count in ((500, max(1, actions // 6)), (20_000, max(1, actions // 60))):
        for reuse in (True, False):
            uvloop.run(measure(count, files, 2, reuse))
    uvloop.run(measure(max(1, actions // 60), 20_000, 2, in_directory=20_000))


if __name__ == "__main__":
    main()
