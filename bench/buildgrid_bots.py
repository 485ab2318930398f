"""Bots that run nothing, for BuildGrid: what `simulated_workers` are to rexec, over the Remote Workers API (v1test2).

    PYTHON-OF-BUILDGRID buildgrid_bots.py ADDRESS BOTS SLOTS

A program of its own, run by the interpreter of a BuildGrid installation, whose package brings the messages. It needs nothing
of ours. Commands come as lines on standard input, answers go as lines to standard output: "attached" once when all bots have
their session, then for each line "take" a JSON object of when each lease came (monotonic seconds) by the hash of its action.
It ends when standard input does.

A bot opens its session with all its slots, completes the leases that an answer holds, and asks again at once. BuildGrid lets a
bot without leases wait in its call until there are some.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from hashlib import sha256
from importlib import import_module
from typing import Any

from grpc import aio

# By name, because our type checker does not see the other installation.
bots_pb2: Any = import_module("buildgrid._protos.google.devtools.remoteworkers.v1test2.bots_pb2")
bots_grpc: Any = import_module("buildgrid._protos.google.devtools.remoteworkers.v1test2.bots_pb2_grpc")
worker_pb2: Any = import_module("buildgrid._protos.google.devtools.remoteworkers.v1test2.worker_pb2")
re_pb2: Any = import_module("buildgrid._protos.build.bazel.remote.execution.v2.remote_execution_pb2")

POLL_SECONDS = 20.0
"""How long a bot lets its call wait for leases."""


class Bot:
    """One session."""

    def __init__(self, address: str, number: int, slots: int, leased_at: dict[str, float]) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._bots = bots_grpc.BotsStub(aio.insecure_channel(address, options=options))
        properties = [
            worker_pb2.Device.Property(key="OSFamily", value="linux"),
            worker_pb2.Device.Property(key="ISA", value="x86-64"),
        ]
        worker = worker_pb2.Worker(
            devices=[worker_pb2.Device(handle="machine", properties=properties)],
            configs=[worker_pb2.Worker.Config(key="capacity", value=str(slots))],
        )
        self._session = bots_pb2.BotSession(bot_id=f"simulated-{number}", status=bots_pb2.OK, worker=worker)
        self._leased_at = leased_at

    async def attach(self) -> None:
        """Open the session. The call's deadline is how long BuildGrid looks for a first lease."""
        request = bots_pb2.CreateBotSessionRequest(parent="", bot_session=self._session)
        self._session = await self._bots.CreateBotSession(request, timeout=3)

    async def work(self) -> None:
        """Answer leases for ever."""
        while True:
            for lease in self._session.leases:
                if lease.state in (bots_pb2.PENDING, bots_pb2.ACTIVE):
                    self._complete(lease)
            request = bots_pb2.UpdateBotSessionRequest(name=self._session.name, bot_session=self._session)
            try:
                self._session = await self._bots.UpdateBotSession(request, timeout=POLL_SECONDS)
            except aio.AioRpcError as error:
                # The session is asked for again as it was: the wait is over without a lease, or its database refused two
                # transactions at once.
                if error.code().name != "DEADLINE_EXCEEDED":
                    print(
                        f"UpdateBotSession: {error.code().name} {str(error.details())[:200]}",
                        file=sys.stderr,
                        flush=True,
                    )
                    await asyncio.sleep(0.05)

    def _complete(self, lease: Any) -> None:
        now = time.monotonic()
        # It is the action itself that BuildGrid sends.
        self._leased_at.setdefault(sha256(lease.payload.value).hexdigest(), now)
        lease.state = bots_pb2.COMPLETED
        lease.status.SetInParent()
        lease.result.Pack(re_pb2.ActionResult(exit_code=0))


async def main(address: str, count: int, slots: int) -> None:
    """Attach all bots, then obey standard input."""
    leased_at: dict[str, float] = {}
    bots = [Bot(address, number, slots, leased_at) for number in range(count)]
    await asyncio.gather(*[bot.attach() for bot in bots])
    working = [asyncio.create_task(bot.work()) for bot in bots]
    say("attached")
    while line := await asyncio.to_thread(sys.stdin.readline):
        for task in working:
            if task.done():
                task.result()
        if line.strip() == "take":
            say(json.dumps(leased_at))
            leased_at.clear()
    for task in working:
        task.cancel()


def say(line: str) -> None:
    """One line to whoever started this."""
    print(line, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
