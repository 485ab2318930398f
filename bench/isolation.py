"""What an isolation adds to an action: nothing, Landlock, Landlock with audit and bubblewrap in turns, in one run.

Run with `python -m bench.isolation [ROUNDS]`. Store and scheduler are left out, as in `bench.worker`. Wall time is that of one
action after the other; CPU is the agent's and that of the commands together. The figures are medians of the rounds, and each
round's turns follow upon another, so that a noisy machine is noisy for all. What this machine cannot do is named and left out.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack

import msgspec
import uvloop

from bench.worker import _nobody, put
from cas.memory import MemoryStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.action import ActionContext, LeasedAction
from rexec.worker.isolation import CannotIsolate
from rexec.worker.landlock_settings import LandlockSettings
from rexec.worker.settings import IsolationKind, WorkerSettings
from rexec.worker.start import open_agent

SOURCE = b"#include <iostream>\n#include <map>\nint main() { std::map<int, int> m; std::cout << m.size(); }\n"
COMMANDS = {
    "no-op": (["/bin/true"], 40),
    "C++ compile": (["/usr/bin/g++", "-c", "-o", "main.o", "main.cc"], 2),
}
"""The arguments, and how often in each turn."""


def settings_of(directory: str) -> dict[str, WorkerSettings]:
    plain = WorkerSettings(work_dir=f"{directory}/none", slots=1)
    kinds = {kind.value: msgspec.structs.replace(plain, isolation=kind) for kind in IsolationKind}
    audit = msgspec.structs.replace(kinds["landlock"], landlock=LandlockSettings(audit=True))
    return {
        name: msgspec.structs.replace(settings, work_dir=f"{directory}/{number}")
        for number, (name, settings) in enumerate({**kinds, "landlock, audit": audit}.items())
    }


def cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


async def turn(context: ActionContext, root: re_pb2.Digest, arguments: list[str], times: int) -> tuple[float, float]:
    """Wall and CPU ms of one action."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(times):
        lease = worker_pb2.Lease(
            lease_id="lease",
            action=re_pb2.Action(input_root_digest=root),
            command=re_pb2.Command(arguments=arguments),
            digest_function=re_pb2.DigestFunction.SHA256,
        )
        lease.timeout.FromSeconds(60)
        finished = await LeasedAction(context, lease, lambda *_: None).run()
        assert finished.status.code == 0, finished
        assert finished.action_result.exit_code == 0, finished
    return (time.perf_counter() - wall) / times * 1000, (cpu_seconds() - cpu) / times * 1000


async def measure(rounds: int) -> None:
    store = MemoryStore()
    directory = re_pb2.Directory()
    directory.files.add(name="main.cc", digest=await put(store, SOURCE))
    root = await put(store, directory.SerializeToString(deterministic=True))
    with tempfile.TemporaryDirectory() as place:
        async with AsyncExitStack() as stack:
            contexts: dict[str, ActionContext] = {}
            for name, settings in settings_of(place).items():
                try:
                    agent = await stack.enter_async_context(open_agent(settings, _nobody, lambda _: store))
                except CannotIsolate as reason:
                    print(f"{name}: {reason}")
                else:
                    contexts[name] = agent._context
            for what, (arguments, times) in COMMANDS.items():
                taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contexts}
                for _ in range(rounds + 1):
                    for name, context in contexts.items():
                        taken[name].append(await turn(context, root, arguments, times))
                none = [statistics.median(column) for column in zip(*taken["none"][1:], strict=True)]
                for name, figures in taken.items():
                    wall, cpu = (statistics.median(column) for column in zip(*figures[1:], strict=True))
                    print(
                        f"{what:12} {name:16}: {wall:7.2f} ms wall (+{wall - none[0]:6.2f}, x{wall / none[0]:.2f}), "
                        f"{cpu:7.2f} ms CPU (+{cpu - none[1]:6.2f}, x{cpu / none[1]:.2f})"
                    )


def main() -> None:
    uvloop.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 10))


if __name__ == "__main__":
    main()
