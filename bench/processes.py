"""What `rexec serve --processes 2` costs and gives beside everything in one process.

    python -m bench.processes [--rounds N]

Both servers are up all the time and measured in turns, with the order changed from round to round, so that other load on the
machine weighs on both alike; shown are the medians, with the least of the CPU beside. CPU is that of all processes of the server
for each call; the core's part of it is what more frontends do not make smaller, so it bounds what a larger machine can do.

The clients are processes of the same machine and need about as much CPU as the server, so on few cores the rate of several
processes cannot be higher than that of one: the CPU of each call says what is to be gained. An Execute is that of a no-op
action, answered by simulated workers: attached to the core's own socket, as the local worker is, and by way of a frontend, as
those of other machines are.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from grpc import aio

from bench.load import Load
from bench.simulated_workers import simulated_workers
from cas.digest import Digest
from integration.process import cpu_seconds
from integration.server import Server, running_server
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.methods import methods_of
from rexec.local import socket_path

CLIENTS = 2
"""Processes that call."""
CHANNELS = 4
"""Connections of each."""
AT_ONCE = 8
"""Calls of each."""
CALLS = 300
"""Of each, for one figure."""
BLOBS = 300
ACTIONS = 300
CONCURRENCY = 10
WORKERS, SLOTS = 4, 10
LOADS = ("write 1 KiB", "read 1 KiB", "find 1, there", "find 300, there", "find 300, missing")
EXECUTES = ("Execute", "Execute, relayed")
LIMIT_SECONDS = 60.0
"""The longest that one figure may take."""
_CAS = methods_of(re_pb2, "ContentAddressableStorage")


@dataclass(slots=True)
class Figures:
    """One load on one server, a value for each round."""

    rates: list[float] = field(default_factory=list)
    """Calls a second."""
    costs: list[float] = field(default_factory=list)
    """CPU milliseconds of the server for each call."""
    shares: list[float] = field(default_factory=list)
    """Of these, in the core."""


class Clock:
    """CPU and wall time of a server since this object was made."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._started_at = time.monotonic()
        self._before = self._cpu()

    def _cpu(self) -> tuple[float, float]:
        """CPU seconds of all processes, and of the core."""
        children = self._server.process.children()
        used = {pid: cpu_seconds(pid) for pid in [self._server.process.pid, *children]}
        return sum(used.values()), sum(used[pid] for pid, command in children.items() if " part core " in command)

    def note(self, figures: Figures, calls: int, seconds: float | None = None) -> None:
        """Add what `calls` took; `seconds` is the time that they were under way, if not that of this object."""
        whole, core = (now - before for now, before in zip(self._cpu(), self._before, strict=True))
        figures.rates.append(calls / (seconds or time.monotonic() - self._started_at))
        figures.costs.append(whole / calls * 1e3)
        figures.shares.append(core / calls * 1e3)


def call(address: str, load: str, contents: Sequence[bytes]) -> float:
    """A client process: how long CALLS calls took, in seconds. What is to be there has been written."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_call(address, load, contents))


async def _call(address: str, load: str, contents: Sequence[bytes]) -> float:
    method, payloads = _requests(load, contents)
    # Connections of their own, which the kernel deals out to the processes.
    channels = [aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(CHANNELS)]
    left = iter(payloads)

    async def caller(channel: aio.Channel) -> None:
        sender: Any = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        for payload in left:
            await sender(payload)

    async with asyncio.timeout(LIMIT_SECONDS):
        await asyncio.gather(*[channel.channel_ready() for channel in channels])
        started_at = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(AT_ONCE):
                tasks.create_task(caller(channels[number % CHANNELS]))
    elapsed = time.monotonic() - started_at
    for channel in channels:
        await channel.close()
    return elapsed


def _requests(load: str, contents: Sequence[bytes]) -> tuple[str, list[bytes]]:
    """The method of a load, and what to send to it."""
    there = [Digest.of(data).to_proto() for data in contents]
    match load:
        case "write 1 KiB":
            return _CAS["BatchUpdateBlobs"].path, [written([os.urandom(1024)]) for _ in range(CALLS)]
        case "read 1 KiB":
            reads = [re_pb2.BatchReadBlobsRequest(digests=[digest]).SerializeToString() for digest in there]
            return _CAS["BatchReadBlobs"].path, [reads[number % BLOBS] for number in range(CALLS)]
        case "find 1, there":
            asked = there[:1]
        case "find 300, there":
            asked = there
        case _:
            asked = [Digest(os.urandom(32).hex(), 1).to_proto() for _ in range(BLOBS)]
    return _CAS["FindMissingBlobs"].path, [
        re_pb2.FindMissingBlobsRequest(blob_digests=asked).SerializeToString()
    ] * CALLS


def written(contents: Sequence[bytes]) -> bytes:
    """The request that writes blobs."""
    request = re_pb2.BatchUpdateBlobsRequest()
    for data in contents:
        request.requests.add(digest=Digest.of(data).to_proto(), data=data)
    return request.SerializeToString()


async def write(address: str, contents: Sequence[bytes]) -> None:
    """Have the blobs that are read and looked for."""
    async with aio.insecure_channel(address) as channel, asyncio.timeout(LIMIT_SECONDS):
        sender: Any = channel.unary_unary(
            _CAS["BatchUpdateBlobs"].path, request_serializer=bytes, response_deserializer=bytes
        )
        await sender(written(contents))


async def execute(server: Server, load: Load, workers_at: str, figures: Figures) -> None:
    """No-op actions in a closed loop."""
    with simulated_workers(workers_at, WORKERS, SLOTS) as workers:
        workers.grant()
        async with asyncio.timeout(LIMIT_SECONDS):
            await load.at_concurrency(CONCURRENCY, CONCURRENCY)
            clock = Clock(server)
            await load.at_concurrency(CONCURRENCY, ACTIONS)
            clock.note(figures, ACTIONS)


async def measure(servers: Sequence[Server], rounds: int) -> list[dict[str, Figures]]:
    """All loads on each server in turns. Raises AssertionError when an action does not run, TimeoutError when a call hangs."""
    found = [{load: Figures() for load in (*LOADS, *EXECUTES)} for _ in servers]
    contents = [os.urandom(1024) for _ in range(BLOBS)]
    actions = len(EXECUTES) * (CONCURRENCY + ACTIONS) * (rounds + 1)
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        clients = stack.enter_context(ProcessPoolExecutor(CLIENTS, mp_context=context))
        loads = []
        for server in servers:
            await write(server.address, contents)
            loads.append(await stack.enter_async_context(Load(server.address, actions)))
        for turn in range(rounds + 1):
            for place in (0, 1) if turn % 2 else (1, 0):
                server, into = servers[place], found[place]
                for load in LOADS:
                    clock = Clock(server)
                    calls = [
                        loop.run_in_executor(clients, call, server.address, load, contents) for _ in range(CLIENTS)
                    ]
                    clock.note(into[load], CLIENTS * CALLS, max(await asyncio.gather(*calls)))
                own_socket = f"unix:{socket_path(server.folder / 'state')}"
                for name, workers_at in zip(EXECUTES, (own_socket, server.address), strict=True):
                    await execute(server, loads[place], workers_at, into[name])
    for into in found:  # the first round warmed up
        for figures in into.values():
            for values in (figures.rates, figures.costs, figures.shares):
                del values[0]
    return found


def main(rounds: int) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder) / "one", 0) as one,
        running_server(Path(folder) / "two", 0, ("--processes", "2")) as two,
    ):
        alone, apart = asyncio.run(measure([one, two], rounds))
    print(f"{'':20}{'calls/s: one':>14}{'two':>8}{'ratio':>8}", end="")
    print(f"{'CPU ms: one':>14}{'(least)':>10}{'two':>8}{'(least)':>10}{'ratio':>8}{'in core':>10}")
    for load in alone:
        first, second = alone[load], apart[load]
        slow, fast = median(first.rates), median(second.rates)
        low, high = median(first.costs), median(second.costs)
        print(f"{load:20}{slow:14.0f}{fast:8.0f}{fast / slow:8.2f}", end="")
        print(f"{low:14.2f}{min(first.costs):10.2f}{high:8.2f}{min(second.costs):10.2f}", end="")
        print(f"{high / low:8.2f}{median(second.shares):10.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured, beside once to warm up")
    main(parser.parse_args().rounds)
