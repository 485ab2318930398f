"""What a worker agent adds to a C++ compile whose inputs, but for one, are in its cache: wall time and CPU beyond the command.

Run with `python -m bench.worker_compile [RUNS]`. One source includes 500 small headers, of which another one is changed before
each run. The same command runs by turns in a plain directory, where the changed header is written beforehand, and as a lease,
for which it is only put into the store: the agent fetches it, lays the input root out, starts the command, collects and
uploads. Store and scheduler are left out, as in `bench.worker`.

CPU of a lease is that of this process while it runs and of its children; of the bare command that of the children alone. What is
printed are medians with quartiles. What is added is the difference between the two of a turn, which swings with what else
the machine does; "around the command" is what is certain: the time of a lease in which its command did not run, and the CPU
of the agent. Wanted, on a quiet machine, are at most 15 ms of wall time and 10 ms of CPU. g++ has to be installed (Debian:
`apt-get install g++`).
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop

from bench.worker import FILES_IN_DIRECTORY, _nobody, put
from cas.memory import MemoryStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.action import LeasedAction
from rexec.worker.settings import WorkerSettings
from rexec.worker.start import open_agent

HEADERS = 500
COMMAND = ("/usr/bin/g++", "-std=c++17", "-Iinclude", "-c", "main.cc", "-o", "main.o")
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one run, in seconds."""

    wall_seconds: float
    own_seconds: float
    """CPU of this process."""
    child_seconds: float
    """CPU of the compiler, and of what else was a child."""
    command_seconds: float = 0.0
    """Wall time of the command as the agent saw it."""


class Sources:
    """The source and its headers by path, as of some run."""

    def __init__(self) -> None:
        paths = [f"include/{number // FILES_IN_DIRECTORY:02}/h{number:03}.h" for number in range(HEADERS)]
        self.files = {path: header(number, 0) for number, path in enumerate(paths)}
        included = "".join(f'#include "{path.removeprefix("include/")}"\n' for path in paths)
        called = " + ".join(f"f{number}(n)" for number in range(HEADERS))
        self.files["main.cc"] = f"{included}\nint all(int n) {{ return {called}; }}\n".encode()
        self._paths = paths

    def change(self, run: int) -> str:
        """Change another header; returns its path."""
        number = run * 7 % HEADERS
        path = self._paths[number]
        self.files[path] = header(number, run)
        return path


def header(number: int, run: int) -> bytes:
    """A small header, of which no two have the same bytes."""
    return f"#pragma once\n// as of run {run}\ninline int f{number}(int n) {{ return n + {run}; }}\n".encode()


async def root_of(store: MemoryStore, files: dict[str, bytes]) -> re_pb2.Digest:
    """The input root of these files."""
    content: dict[str, re_pb2.Directory] = {"": re_pb2.Directory()}
    for path in sorted(files):
        parent, _, name = path.rpartition("/")
        digest = await put(store, files[path])
        content.setdefault(parent, re_pb2.Directory()).files.add(name=name, digest=digest)
    include = re_pb2.Directory()
    for parent in sorted(parent for parent in content if parent):
        digest = await put(store, content[parent].SerializeToString(deterministic=True))
        include.directories.add(name=parent.removeprefix("include/"), digest=digest)
    digest = await put(store, include.SerializeToString(deterministic=True))
    content[""].directories.add(name="include", digest=digest)
    return await put(store, content[""].SerializeToString(deterministic=True))


def spent() -> tuple[float, float, float]:
    """Wall clock, CPU of this process and CPU of its children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time(), children.ru_utime + children.ru_stime


def since(before: tuple[float, float, float]) -> Cost:
    """What was spent."""
    return Cost(*[now - then for now, then in zip(spent(), before, strict=True)])


def bare(directory: Path) -> Cost:
    """The command alone."""
    before = spent()
    subprocess.run(COMMAND, cwd=directory, env=ENVIRONMENT, stdin=subprocess.DEVNULL, check=True)
    return since(before)


def told(what: str, seconds: Sequence[float]) -> str:
    """A line with the median and the quartiles."""
    low, middle, high = (1000 * cut for cut in statistics.quantiles(seconds, n=4))
    return f"{what:38} {middle:7.2f} ms  ({low:.2f} to {high:.2f})"


async def measure(runs: int, directory: Path) -> None:
    store = MemoryStore()
    sources = Sources()
    plain = directory / "plain"
    for path, data in sources.files.items():
        (plain / path).parent.mkdir(parents=True, exist_ok=True)
        (plain / path).write_bytes(data)
    settings = WorkerSettings(work_dir=str(directory / "work"), slots=1)
    async with open_agent(settings, _nobody, lambda _: store) as agent:
        context = agent._context

        async def leased(run: int) -> Cost:
            command = re_pb2.Command(arguments=COMMAND, output_paths=["main.o"])
            for name, value in ENVIRONMENT.items():
                command.environment_variables.add(name=name, value=value)
            lease = worker_pb2.Lease(
                lease_id=str(run),
                action=re_pb2.Action(input_root_digest=await root_of(store, sources.files)),
                command=command,
                digest_function=re_pb2.DigestFunction.SHA256,
            )
            lease.timeout.FromSeconds(60)
            before = spent()
            finished = await LeasedAction(context, lease, lambda *_: None).run()
            cost = since(before)
            took = finished.action_result.execution_metadata.virtual_execution_duration.ToNanoseconds() / 1e9
            cost = replace(cost, command_seconds=took)
            if finished.action_result.exit_code or len(finished.action_result.output_files) != 1:
                raise AssertionError(f"the compile ended otherwise than expected: {finished}")
            return cost

        alone: list[Cost] = []
        as_lease: list[Cost] = []
        for run in range(1, runs + 4):
            changed = sources.change(run)
            (plain / changed).unlink()
            (plain / changed).write_bytes(sources.files[changed])
            for what in ("bare", "leased") if run % 2 else ("leased", "bare"):
                if what == "bare":
                    alone.append(await asyncio.to_thread(bare, plain))
                else:
                    as_lease.append(await leased(run))
        # Of the first ones each input had to be fetched, and the compiler to be read from the disk.
        pairs = list(zip(alone[3:], as_lease[3:], strict=True))
    print(
        f"g++ -c of a source with {HEADERS} headers, one of them changed, {runs} runs each by turns; medians (quartiles)"
    )
    for what, seconds in (
        ("bare, wall", [one.wall_seconds for one, _ in pairs]),
        ("bare, CPU of the compiler", [one.child_seconds for one, _ in pairs]),
        ("leased, wall", [other.wall_seconds for _, other in pairs]),
        ("leased, CPU of the compiler", [other.child_seconds for _, other in pairs]),
        ("added, wall", [other.wall_seconds - one.wall_seconds for one, other in pairs]),
        ("added, CPU", [other.own_seconds + other.child_seconds - one.child_seconds for one, other in pairs]),
        ("around the command, wall", [other.wall_seconds - other.command_seconds for _, other in pairs]),
        ("around the command, CPU of the agent", [other.own_seconds for _, other in pairs]),
    ):
        print(told(what, seconds))
    shares = statistics.quantiles(
        [(two.wall_seconds - two.command_seconds) / one.wall_seconds for one, two in pairs], n=4
    )
    print(f"wall time around the command to that of the bare one: {shares[1]:.1%} ({shares[0]:.1%} to {shares[2]:.1%})")


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    os.umask(0o022)
    with tempfile.TemporaryDirectory() as directory:
        uvloop.run(measure(runs, Path(directory)))


if __name__ == "__main__":
    main()
