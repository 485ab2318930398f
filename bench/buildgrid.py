"""BuildGrid as a process with a PostgreSQL of its own, to be measured beside `rexec serve`.

BuildGrid is not a dependency: who has it names the folder of its installation, a virtual environment of its own with Python 3.13
or later, because it wants another Python and other versions of gRPC and protobuf than we do.

The configuration written here is that of the reference file which the package ships (`server/app/settings/reference.yml`) in what
concerns scheduling: PostgreSQL, five priority-and-age assigners at intervals of a second, which become a hundredth of that
while there is work. Left out: authorisation, metering and monitoring, which cost it time and which are off here too. Raised: its
threads and its connections to the database, because an Execute call and a bot that waits take a thread each.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.process import Process, cpu_seconds, descendants_of, end_by_pid
from integration.server import answers_capabilities, free_port
from integration.waiting import wait_until

INSTALL_COMMAND = (
    "python3.13 -m venv DIR && DIR/bin/pip install buildgrid==0.9.1 (Python 3.13 or later), and --buildgrid DIR"
)
POSTGRES_INSTALL_COMMAND = "apt-get install postgresql"
THREADS = 250
"""Of BuildGrid. Execute calls and bots that wait hold one each: so many clients and workers at once, and not more."""
READY_SECONDS = 60.0

_POSTGRES_FOLDERS = Path("/usr/lib/postgresql")
_CONFIGURATION = """\
server:
  - !channel
    address: "{address}"
    insecure-mode: true
authorization:
  method: none
thread-pool-size: {threads}
connections:
  - !sql-connection &sql
    connection-string: postgresql+psycopg://bgd@{database}/bgd
    pool-size: 40
    max-overflow: 40
storages:
  - !disk-storage &cas
    path: {folder}/cas
caches:
  - !lru-action-cache &cache
    storage: *cas
    max-cached-refs: 100000
    allow-updates: true
schedulers:
  - !sql-scheduler &scheduler
    sql: *sql
    storage: *cas
    action-cache: *cache
    property-set: !dynamic-property-set
      match-property-keys: [OSFamily, ISA]
    bot-session-keepalive-timeout: 120
    assigners:
      - !priority-age-assigner
        count: 5
        interval: 1.0
        priority-assignment-percentage: 95
instances:
  - name: ''
    services:
      - !action-cache
        cache: *cache
      - !execution
        scheduler: *scheduler
        operation-stream-keepalive-timeout: 120
      - !cas
        storage: *cas
      - !bytestream
        storage: *cas
"""


class BuildGrid:
    """A running BuildGrid."""

    def __init__(self, address: str, python: Path, server: Process, database: Process) -> None:
        self.address = address
        self.python = python
        """The interpreter of its installation, for what needs its message types."""
        self._server = server
        self._database = database

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system time so far: of BuildGrid, and of PostgreSQL with its children."""
        backends = descendants_of(self._database.pid)
        return cpu_seconds(self._server.pid), sum(map(cpu_seconds, {self._database.pid, *backends}))


def expect_installed(installation: Path) -> None:
    """Raises AssertionError with the command that installs what is missing."""
    if not (installation / "bin" / "bgd").exists():
        raise AssertionError(f"no bin/bgd in {installation}; to install BuildGrid: {INSTALL_COMMAND}")
    if not any(_POSTGRES_FOLDERS.glob("*/bin/initdb")):
        raise AssertionError(f"no PostgreSQL below {_POSTGRES_FOLDERS}; to install it: {POSTGRES_INSTALL_COMMAND}")


@contextmanager
def running_buildgrid(installation: Path) -> Iterator[BuildGrid]:
    """BuildGrid and its database on free loopback ports, gone at the end of the block.

    Raises AssertionError with the command that installs what is missing, or with the log of what did not get ready.
    """
    expect_installed(installation)
    # Not in a folder of the caller's: that of a database which refuses to be root's has to be reachable for another user.
    folder = Path(tempfile.mkdtemp(prefix="rexec-bench-buildgrid-"))
    started: list[Process] = []
    try:
        folder.chmod(0o755)
        port = free_port()
        database = _database(folder, port)
        started.append(database)
        address = f"127.0.0.1:{free_port()}"
        _run(installation / "bin" / "bgd", "migrate", "apply", f"postgresql+psycopg://bgd@127.0.0.1:{port}/bgd")
        configuration = folder / "buildgrid.yml"
        configuration.write_text(
            _CONFIGURATION.format(address=address, threads=THREADS, database=f"127.0.0.1:{port}", folder=folder)
        )
        server = Process(
            (str(installation / "bin" / "bgd"), "server", "start", str(configuration)), folder / "buildgrid.log"
        )
        started.append(server)

        def ready() -> bool:
            server.expect_running()
            return answers_capabilities(address)

        wait_until(ready, f"BuildGrid on {address} to answer", READY_SECONDS)
        yield BuildGrid(address, installation / "bin" / "python", server, database)
    finally:
        for process in reversed(started):
            below = descendants_of(process.pid)
            process.kill()
            end_by_pid(below)
        shutil.rmtree(folder, ignore_errors=True)


def _database(folder: Path, port: int) -> Process:
    """A PostgreSQL with the settings that it comes with, and an empty database `bgd` of the user `bgd`."""
    programs = max(_POSTGRES_FOLDERS.glob("*/bin"), key=lambda path: float(path.parent.name))
    user = _other_user()
    data = folder / "database"
    data.mkdir()
    if user is not None:
        os.chown(data, pwd.getpwnam(user).pw_uid, -1)
    _run(programs / "initdb", "-D", str(data), "-U", "bgd", "--auth=trust", "--encoding=UTF8", user=user)
    process = Process(
        (str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", "",
         "-c", "max_connections=200"),
        folder / "database.log",
        user=user,
    )  # fmt: skip
    connection = ("-h", "127.0.0.1", "-p", str(port), "-U", "bgd")
    try:

        def ready() -> bool:
            process.expect_running()
            command = (str(programs / "pg_isready"), "-q", *connection)
            return subprocess.run(command, check=False, timeout=30).returncode == 0

        wait_until(ready, "PostgreSQL to take connections", READY_SECONDS)
        _run(programs / "createdb", *connection, "bgd", user=user)
    except BaseException:
        process.kill()
        raise
    return process


def _other_user() -> str | None:
    """Who runs PostgreSQL in place of root, whom it refuses."""
    return "postgres" if os.geteuid() == 0 else None


def _run(program: Path, *arguments: str, user: str | None = None) -> None:
    done = subprocess.run(
        (str(program), *arguments), check=False, capture_output=True, text=True, timeout=120, user=user, cwd="/"
    )
    if done.returncode:
        raise AssertionError(f"{program} ended with {done.returncode}: {done.stderr[-2000:]}")


class Bots:
    """The process of the simulated bots, seen from outside."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self._popen = popen

    def wait_until_attached(self) -> None:
        """All have their session. Raises AssertionError when they end before."""
        self._line("attached")

    def take(self) -> dict[str, float]:
        """When each lease since the last time came, by the hash of its action; monotonic seconds."""
        assert self._popen.stdin is not None
        self._popen.stdin.write("take\n")
        self._popen.stdin.flush()
        return {name: float(when) for name, when in json.loads(self._line("take")).items()}

    def _line(self, what: str) -> str:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise AssertionError(f"the process of the simulated bots ended when asked to {what}")
        return line


@contextmanager
def simulated_bots(buildgrid: BuildGrid, count: int, slots: int) -> Iterator[Bots]:
    """So many bots with so many slots each, until the end of the block.

    They run in BuildGrid's own interpreter, because its message types live there.  -I keeps this folder, which has
    a module of the name of its package, off its path.
    """
    script = Path(__file__).parent / "buildgrid_bots.py"
    popen = subprocess.Popen(
        (str(buildgrid.python), "-I", str(script), buildgrid.address, str(count), str(slots)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        bots = Bots(popen)
        bots.wait_until_attached()
        yield bots
    finally:
        popen.kill()
        popen.communicate()
