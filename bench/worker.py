"""What the worker agent itself adds to an action: CPU of this process for each no-op action, and for 500 inputs.

Run with `python -m bench.worker [ACTIONS]`. Store and scheduler are left out (a store in memory, no stream), so the figure is
the agent's own: fetch, lay out, start, collect, upload. CPU of the commands is not counted.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import uvloop

from cas.digest import Digest
from cas.memory import MemoryStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.action import LeasedAction
from rexec.worker.link import Link, LinkBroken
from rexec.worker.settings import WorkerSettings
from rexec.worker.start import open_agent


async def root_of(store: MemoryStore, files: int) -> re_pb2.Digest:
    directory = re_pb2.Directory()
    for number in range(files):
        data = f"header {number}\n".encode() * 100
        digest = Digest.of(data)
        await store.write_many([(digest, data)])
        directory.files.add(name=f"{number:05}.h", digest=digest.to_proto())
    encoded = directory.SerializeToString(deterministic=True)
    await store.write_many([(Digest.of(encoded), encoded)])
    return Digest.of(encoded).to_proto()


def _nobody() -> AbstractAsyncContextManager[Link]:
    raise LinkBroken("there is no scheduler here")


async def measure(actions: int, files: int, slots: int) -> None:
    store = MemoryStore()
    root = await root_of(store, files)
    with tempfile.TemporaryDirectory() as directory:
        settings = WorkerSettings(work_dir=str(Path(directory) / "work"), slots=slots)

        async with open_agent(settings, _nobody, lambda _: store) as agent:
            context = agent._context

            async def one(number: int) -> None:
                lease = worker_pb2.Lease(
                    lease_id=str(number),
                    action=re_pb2.Action(input_root_digest=root),
                    command=re_pb2.Command(arguments=["/bin/true"]),
                    digest_function=re_pb2.DigestFunction.SHA256,
                )
                lease.timeout.FromSeconds(60)
                finished = await LeasedAction(context, lease, lambda *_: None).run()
                assert finished.action_result.exit_code == 0
                assert finished.failure == worker_pb2.Finished.NONE

            await one(-1)
            wall, cpu = time.perf_counter(), time.process_time()
            running: set[asyncio.Task[None]] = set()
            for number in range(actions):
                if len(running) >= slots + 1:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                running.add(asyncio.create_task(one(number)))
            await asyncio.gather(*running)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"{files:5} inputs, {slots} slots: {cpu / actions * 1000:6.2f} ms CPU and {wall / actions * 1000:6.2f} ms wall "
        f"per action, {actions / wall:6.0f} actions/s"
    )


def main() -> None:
    actions = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    for files, count in ((0, actions), (500, max(1, actions // 6))):
        uvloop.run(measure(count, files, 2))


if __name__ == "__main__":
    main()
