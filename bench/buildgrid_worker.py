"""The nearest there is to BuildGrid's worker: leases over the Remote Workers API (v1test2), each run by buildbox-run.

    PYTHON-OF-BUILDGRID buildgrid_worker.py ADDRESS SLOTS RUNNER [RUNNER-OPTION...]

A program of its own, run by the interpreter of a BuildGrid installation, whose package brings the messages; it needs nothing of
ours. What BuildGrid's users run is buildbox-worker, in C++, which no package holds; what it does for a lease is what this does:
write the Action to a file, start the runner, read the ActionResult from a file, and tell the server. "attached" is written to
standard output when the session is open. It runs until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from grpc import aio

# By name, because our type checker does not see the other installation.
bots_pb2: Any = import_module("buildgrid._protos.google.devtools.remoteworkers.v1test2.bots_pb2")
bots_grpc: Any = import_module("buildgrid._protos.google.devtools.remoteworkers.v1test2.bots_pb2_grpc")
worker_pb2: Any = import_module("buildgrid._protos.google.devtools.remoteworkers.v1test2.worker_pb2")
re_pb2: Any = import_module("buildgrid._protos.build.bazel.remote.execution.v2.remote_execution_pb2")

POLL_SECONDS = 20.0
"""How long the call waits for a lease while nothing runs."""

ANSWER_SECONDS = 0.02
"""How long a call may still take when there is a result to be told with the next one: it may be about to bring a lease."""


class Worker:
    """One session with several slots."""

    def __init__(self, address: str, slots: int, runner: list[str], folder: Path) -> None:
        self._bots = bots_grpc.BotsStub(aio.insecure_channel(address))
        self._runner = runner
        self._folder = folder
        self._running: dict[str, asyncio.Task[Any]] = {}
        properties = [
            worker_pb2.Device.Property(key="OSFamily", value="linux"),
            worker_pb2.Device.Property(key="ISA", value="x86-64"),
        ]
        machine = worker_pb2.Worker(
            devices=[worker_pb2.Device(handle="machine", properties=properties)],
            configs=[worker_pb2.Worker.Config(key="capacity", value=str(slots))],
        )
        self._session = bots_pb2.BotSession(bot_id="worker", status=bots_pb2.OK, worker=machine)

    async def attach(self) -> None:
        request = bots_pb2.CreateBotSessionRequest(parent="", bot_session=self._session)
        self._session = await self._bots.CreateBotSession(request, timeout=3)

    async def work(self) -> None:
        """Answer leases for ever."""
        while True:
            for lease in self._session.leases:
                self._see_to(lease)
            request = bots_pb2.UpdateBotSessionRequest(name=self._session.name, bot_session=self._session)
            call = asyncio.ensure_future(self._bots.UpdateBotSession(request, timeout=POLL_SECONDS))
            # A result is told at once, and does not wait until the call gives up looking for another lease.
            await asyncio.wait([call, *self._running.values()], return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                await asyncio.wait([call], timeout=ANSWER_SECONDS)
            if not call.done():
                call.cancel()
                continue
            try:
                self._session = await call
            except aio.AioRpcError as error:
                if error.code().name != "DEADLINE_EXCEEDED":
                    print(f"{error.code().name} {str(error.details())[:200]}", file=sys.stderr, flush=True)
                    await asyncio.sleep(ANSWER_SECONDS)

    def _see_to(self, lease: Any) -> None:
        """Begin with a lease, or write its result into it. A new one may come as ACTIVE."""
        if lease.state not in (bots_pb2.PENDING, bots_pb2.ACTIVE):
            return
        lease.state = bots_pb2.ACTIVE
        if lease.id not in self._running:
            self._running[lease.id] = asyncio.create_task(self._run(lease.id, lease.payload.value))
        elif self._running[lease.id].done():
            lease.state = bots_pb2.COMPLETED
            lease.status.SetInParent()
            lease.result.Pack(self._running.pop(lease.id).result())

    async def _run(self, name: str, action: bytes) -> Any:
        """What the runner made of the action: it is the Action itself that BuildGrid sends."""
        given, made = self._folder / f"{name}.action", self._folder / f"{name}.result"
        given.write_bytes(action)
        process = await asyncio.create_subprocess_exec(
            *self._runner, f"--action={given}", f"--action-result={made}", stdout=asyncio.subprocess.DEVNULL
        )
        code = await process.wait()
        if code or not made.exists():
            raise RuntimeError(f"the runner ended with {code}")
        result = re_pb2.ActionResult.FromString(made.read_bytes())
        given.unlink()
        made.unlink()
        return result


async def main(address: str, slots: int, runner: list[str]) -> None:
    """Attach, say so, and work."""
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(address, slots, runner, Path(folder))
        await worker.attach()
        print("attached", flush=True)
        await worker.work()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
