"""A scheduler without ports, as a process that a test kills, stops and replaces.

    python -m tests.scheduler.journal_process JOURNAL LEASE_SECONDS [PREFIX]

It waits until it leads and says so: "leads GENERATION". With a PREFIX it then takes on one action after the other, and says
"released NAME" for each whose name it would have told a client; some of them are run to their end by a worker inside, and it
says "completed NAME" for those whose end a client would have seen. Without one it prints what is there, as "operation NAME
STAGE", then "all", and goes on leading. It ends with 3, saying "lost" and why, when another process leads.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from itertools import count
from pathlib import Path

from cas.digest import Digest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler import events as e
from rexec.scheduler.broker import Broker
from rexec.scheduler.leadership import lead
from rexec.scheduler.outbox import Outbox
from rexec.scheduler.platform import Offer
from rexec.scheduler.scheduler import Inlining, Run
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.settling import Settled
from rexec.scheduler.task import Candidate, Failure, Stage
from rexec.scheduler.wire import outcome_of

RUN = Run(re_pb2.Action(), re_pb2.Command(arguments=["true"]), re_pb2.RequestMetadata(), 1_700_000_000.0)
CLIENTS = 20


class Believing:
    """A settler that takes every report for true."""

    async def settle(self, candidate: Candidate, report: worker_pb2.Finished, worker_name: str) -> Settled:
        return Settled(Failure.NONE, outcome_of(re_pb2.ExecuteResponse(message="done")))


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - the test reads it


async def submit(broker: Broker, prefix: str, numbers: count[int]) -> None:
    for number in numbers:
        candidate = Candidate("", Digest.of(f"{prefix} {number}".encode()), payload=RUN)
        name = await broker.submit(candidate, Inlining(), f"operations/{prefix}-{number}")
        say("released", name)
        if number % 2:
            continue  # waits: nobody comes back to it, so it takes no slot
        async with aclosing(broker.watch(name, 30.0)) as states:
            async for state in states:
                if state.done:
                    say("completed", name)


async def work(broker: Broker) -> None:
    outbox = Outbox()
    broker.attach(e.WorkerAttached("session", "worker", CLIENTS, Offer()), outbox)
    broker.hear(e.Credit("session", CLIENTS))
    async for message in outbox.messages():
        if message.HasField("lease"):
            broker.report("session", worker_pb2.Finished(lease_id=message.lease.lease_id, epoch=message.lease.epoch))
        elif message.HasField("acknowledged"):
            broker.hear(e.Credit("session", CLIENTS))


async def main(path: Path, lease_seconds: float, prefix: str) -> int:
    settings = SchedulerSettings(leadership_seconds=lease_seconds)
    async with (
        lead(path, holder=prefix or "reader", lease_seconds=lease_seconds) as journal,
        Broker(settings, Believing(), journal=journal) as broker,
    ):
        say("leads", journal.generation)
        assert broker.lost is not None
        if not prefix:
            for state in await broker.page("", frozenset(Stage), "", 1_000_000):
                say("operation", state.name, state.stage.name)
            say("all")
        tasks = []
        if prefix:
            numbers = count()
            tasks = [asyncio.create_task(work(broker))]
            tasks += [asyncio.create_task(submit(broker, prefix, numbers)) for _ in range(CLIENTS)]
        reason = await broker.lost
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        say("lost", reason)
    return 3


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")))
