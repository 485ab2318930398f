"""What the journal costs: actions through the scheduler of this process, with and without one, and how soon it is read again.

    python -m bench.journal [--actions N]

No gRPC and no stores: clients submit and watch, workers take leases and report at once, all in this process. So the difference
of two rows is what the journal adds to an action: encoding, the thread that writes, and SQLite. CPU is that of the whole
process, user and system, of all threads.

The exit code is 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import uvloop

from cas.digest import Digest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler import events as e
from rexec.scheduler.broker import Broker
from rexec.scheduler.journal import Journal
from rexec.scheduler.outbox import Outbox
from rexec.scheduler.platform import Offer, Requirement
from rexec.scheduler.rows import Batch
from rexec.scheduler.scheduler import Inlining, Run
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.settling import Settled
from rexec.scheduler.task import Candidate, Failure, Owner
from rexec.scheduler.wire import outcome_of

CPU_MS_GOAL = 0.15
START_SECONDS_GOAL = 2.0
SLOTS = 1_000
QUEUED, COMPLETED = 10_000, 20_000
PLATFORM = frozenset({("OSFamily", "linux"), ("ISA", "x86-64")})

COMMAND = re_pb2.Command(
    arguments=["/usr/bin/gcc", *(f"-Iinclude/of/some/length/{n}" for n in range(40)), "-c", "a.cc"],
    output_paths=["a.o", "a.d"],
)
"""Of the size of a C++ compilation."""

RESPONSE = re_pb2.ExecuteResponse(
    result=re_pb2.ActionResult(
        output_files=[
            re_pb2.OutputFile(path=path, digest=Digest.of(path.encode()).to_proto()) for path in ("a.o", "a.d")
        ],
        execution_metadata=re_pb2.ExecutedActionMetadata(worker="worker"),
    )
)


class Timed(Journal):
    """A journal that notes what its commits take."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        super().__init__(path, database)
        self.seconds: list[float] = []
        self.rows: list[int] = []

    @classmethod
    def of(cls, path: Path) -> Timed:
        """Taken over."""
        timed = cls.open(path)
        assert timed.take_over(timed.tenure(), "bench", "", locked=True)
        return timed

    def write(self, batch: Batch) -> None:
        began = time.perf_counter()
        super().write(batch)
        self.seconds.append(time.perf_counter() - began)
        self.rows.append(len(batch))


class Believing:
    """A settler that takes every report for true."""

    async def settle(self, candidate: Candidate, report: worker_pb2.Finished, worker_name: str) -> Settled:
        return Settled(Failure.NONE, outcome_of(RESPONSE))


def candidate(number: int) -> Candidate:
    run = Run(re_pb2.Action(), COMMAND, re_pb2.RequestMetadata(tool_invocation_id="build"), time.time())
    return Candidate(
        "main",
        Digest.of(b"action %d" % number),
        Requirement("main", PLATFORM),
        owner=Owner("team", "user", "build"),
        action_class="c++",
        payload=run,
    )


async def work(broker: Broker) -> None:
    """One worker with room for everything, until it is cancelled."""
    outbox = Outbox()
    broker.attach(e.WorkerAttached("session", "worker", SLOTS, Offer(PLATFORM)), outbox)
    broker.hear(e.Credit("session", SLOTS))
    async for message in outbox.messages():
        if message.HasField("lease"):
            broker.report("session", worker_pb2.Finished(lease_id=message.lease.lease_id, epoch=message.lease.epoch))
        elif message.HasField("acknowledged"):
            broker.hear(e.Credit("session", SLOTS))


async def execute(broker: Broker, numbers: list[int]) -> None:
    while numbers:
        name = await broker.submit(candidate(numbers.pop()), Inlining())
        async with aclosing(broker.watch(name, 30.0)) as states:
            async for _state in states:
                pass


async def cpu_ms(journal: Journal | None, actions: int, clients: int) -> tuple[float, float]:
    """CPU for each action, and actions each second."""
    settings = SchedulerSettings(max_retained_operations=5_000)
    async with Broker(settings, Believing(), journal=journal) as broker, asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(work(broker))
        await execute(broker, list(range(-200, 0)))
        gc.collect()
        numbers = list(range(actions))
        cpu, wall = time.process_time(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(execute(broker, numbers))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        worker.cancel()
    return cpu / actions * 1000, actions / wall


async def restarted(path: Path) -> tuple[float, int]:
    """CPU seconds of a start with much in the journal, and how many operations there are then."""
    settings = SchedulerSettings()
    journal = Timed.of(path)
    async with Broker(settings, Believing(), journal=journal) as broker, asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(work(broker))
        numbers = list(range(COMPLETED))
        async with asyncio.TaskGroup() as group:
            for _ in range(500):
                group.create_task(execute(broker, numbers))
        worker.cancel()
        await asyncio.wait([worker])
        broker.leaves("session", "the bench goes on", None)
        for number in range(QUEUED):
            await broker.submit(candidate(COMPLETED + number), Inlining())
    journal.close()
    journal = Timed.of(path)
    gc.collect()
    began = time.process_time()
    async with Broker(settings, Believing(), journal=journal) as broker:
        seconds = time.process_time() - began
        operations = broker.snapshot().operations
    journal.close()
    return seconds, operations


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actions", type=int, default=10_000)
    actions = parser.parse_args().actions
    missed = False
    print(
        "clients | without: ms/action | with: ms/action | journal: ms/action | actions/s | rows a commit | p50, p99 ms"
    )
    with tempfile.TemporaryDirectory() as folder:
        for clients in (1, 10, 100, 1_000):
            without, _ = await cpu_ms(None, actions, clients)
            journal = Timed.of(Path(folder) / f"{clients}.sqlite3")
            with_one, rate = await cpu_ms(journal, actions, clients)
            journal.close()
            cuts = statistics.quantiles(journal.seconds, n=100)
            rows = sum(journal.rows) / len(journal.rows)
            missed |= clients > 1 and with_one - without > CPU_MS_GOAL
            print(
                f"{clients:7} | {without:18.3f} | {with_one:15.3f} | {with_one - without:18.3f} | {rate:9.0f} |"
                f" {rows:13.1f} | {cuts[49] * 1000:.2f}, {cuts[98] * 1000:.2f}"
            )
        seconds, operations = await restarted(Path(folder) / "restart.sqlite3")
        print(f"start with {operations} operations in the journal: {seconds:.2f} s of CPU")
        missed |= seconds > START_SECONDS_GOAL
    return int(missed)


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
