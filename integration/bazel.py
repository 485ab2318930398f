"""Drives Bazel as a user would: builds, tests, and commands that something happens to half-way.

One `Bazel` owns one output base and with it one Bazel server (a JVM), which stays between commands and ends with
`shutdown`; should the test run die first, the server ends by itself after `_IDLE_SECONDS`.
"""

import copy
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self

from integration.outcome import Outcome
from integration.process import end_by_pid, is_alive, tail
from integration.waiting import wait_until

INSTALL_COMMAND = "make clients"
COMMAND_DEADLINE_SECONDS = 300.0

_IDLE_SECONDS = 120
_HEAP = "768m"
_CLIENTS = Path(__file__).parent.parent / ".clients"
_NETTY = _CLIENTS / "netty" / "io" / "netty" / "netty-all" / "4.1.48.Final" / "netty-all-4.1.48.Final.jar"


@dataclass(frozen=True, slots=True)
class Edition:
    """A Bazel that can be driven."""

    program: Path
    startup_flags: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    """Given to each build, test and run command."""
    needs: tuple[Path, ...] = ()
    """Files without which it does not do what its name here says."""

    def expect_installed(self) -> None:
        """Raises AssertionError with the command that installs it."""
        for path in (self.program, *self.needs):
            if not path.exists():
                raise AssertionError(f"{path} is not installed: run `{INSTALL_COMMAND}`")


# What --sandbox_debug of /etc/bazel/bazelrc would leave behind is noise here.
DEBIAN = Edition(Path("/usr/bin/bazel"), flags=("--nosandbox_debug",))
"""Bazel 4.2.3. It speaks no TLS, because Debian's build leaves ALPN out of the library netty."""

DEBIAN_WITH_TLS = Edition(
    DEBIAN.program, (f"--host_jvm_args=-Xbootclasspath/a:{_NETTY}",), DEBIAN.flags, needs=(_NETTY,)
)
"""The same with the netty that Bazel's authors would have used: classes found there count before those in Bazel."""

BAZEL_2_1 = Edition(
    _CLIENTS / "bazel-2.1" / "node_modules" / "@bazel" / "bazel-linux_x64" / "bazel-2.1.0-linux-x86_64",
    # Debian's /etc/bazel/bazelrc has options that this one does not know.
    ("--nosystem_rc",),
)
"""Speaks TLS, but has no option for a client certificate and sends GetCapabilities without --remote_header."""

# Progress bars and colours are noise here.
_COMMON_FLAGS = (
    "--color=no",
    "--curses=no",
    "--show_progress_rate_limit=60",
)


def execution_flags(address: str, scheme: str = "grpc") -> tuple[str, ...]:
    """Everything runs on the server at `address` (host:port) and nothing falls back to this machine."""
    return (
        f"--remote_executor={scheme}://{address}",
        "--spawn_strategy=remote",
        "--genrule_strategy=remote",
        "--strategy=CppCompile=remote",
        "--remote_local_fallback=false",
        "--remote_timeout=60",
        # More than two slots at once, so that the server has a queue to work on.
        "--jobs=8",
    )


def cache_flags(address: str, scheme: str = "grpc") -> tuple[str, ...]:
    """Everything runs on this machine; results are looked up and stored at the server at `address`."""
    return (f"--remote_cache={scheme}://{address}", "--remote_timeout=60", *local_flags())


def local_flags() -> tuple[str, ...]:
    """Bazel by itself on the two cores that a remote build with two slots has."""
    return ("--spawn_strategy=local", "--genrule_strategy=local", "--jobs=2")


class Invocation:
    """A Bazel command under way."""

    def __init__(self, command: Sequence[str], workspace: Path, environment: dict[str, str], log_stem: Path) -> None:
        self.command = tuple(command)
        self._stdout = log_stem.with_suffix(".stdout")
        self._stderr = log_stem.with_suffix(".stderr")
        self._begin = time.monotonic()
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._popen = subprocess.Popen(
                self.command, cwd=workspace, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )

    def expect_running(self) -> None:
        """Raises AssertionError when the command has ended already: too early for what a test wants to do to it."""
        if self._popen.poll() is not None:
            raise AssertionError(
                f"{' '.join(self.command)} ended with {self._popen.returncode} before its time; stderr ends with:\n"
                f"{tail(self._stderr.read_text(errors='replace'))}"
            )

    def wait(self, deadline_seconds: float = COMMAND_DEADLINE_SECONDS) -> Outcome:
        """The outcome. Raises AssertionError with the output so far when the deadline passes first."""
        try:
            self._popen.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            # The first SIGINT asks the Bazel server to cancel the command, which keeps it usable.
            self._popen.send_signal(signal.SIGINT)
            try:
                self._popen.wait(20)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
            raise AssertionError(
                f"{' '.join(self.command)} was still running after {deadline_seconds:g} s; stderr ends with:\n"
                f"{tail(self._stderr.read_text(errors='replace'))}"
            ) from None
        return Outcome(
            self.command,
            self._popen.returncode,
            self._stdout.read_text(errors="replace"),
            self._stderr.read_text(errors="replace"),
            time.monotonic() - self._begin,
        )


class Bazel:
    """Bazel in one workspace, with an output base and a home directory of its own below `folder`."""

    def __init__(self, workspace: Path, folder: Path, flags: Sequence[str] = (), edition: Edition = DEBIAN) -> None:
        """`flags` are given to each build, test and run command, before those of the single command.

        Raises AssertionError with the command to install it when that Bazel is not there.
        """
        edition.expect_installed()
        self._edition = edition
        self.workspace = workspace
        self.flags = tuple(flags)
        self._folder = folder
        self._output_base = folder / "base"
        self._environment = _environment(folder / "home")
        self._numbers = count(1)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "home").mkdir(exist_ok=True)

    def using(self, flags: Sequence[str]) -> Self:
        """The same Bazel (output base, server, analysis) with other flags."""
        other = copy.copy(self)
        other.flags = tuple(flags)
        return other

    @property
    def bin(self) -> Path:
        """Where outputs appear: the bazel-bin link of the workspace."""
        return self.workspace / "bazel-bin"

    @property
    def test_logs(self) -> Path:
        return self.workspace / "bazel-testlogs"

    def build(self, *targets: str, flags: Sequence[str] = ()) -> Outcome:
        return self.start("build", *targets, flags=flags).wait()

    def test(self, *targets: str, flags: Sequence[str] = ()) -> Outcome:
        return self.start("test", *targets, flags=flags).wait()

    def run(self, target: str, flags: Sequence[str] = ()) -> Outcome:
        return self.start("run", target, flags=flags).wait()

    def start(self, verb: str, *targets: str, flags: Sequence[str] = ()) -> Invocation:
        """Begin a command and return at once, for tests that do something in the middle of it."""
        return self._invoke(verb, *self._edition.flags, *_COMMON_FLAGS, *self.flags, *flags, "--", *targets)

    def clean(self) -> None:
        """Forget every output and local action result; what was loaded and analysed is forgotten too."""
        self._invoke("clean", "--color=no", "--curses=no").wait().expect()

    def shutdown(self) -> None:
        """End the Bazel server; by its pid should it not obey."""
        pid = self.server_pid()
        if pid is None:
            return
        try:
            self._invoke("shutdown").wait(30)
            wait_until(lambda: not is_alive(pid), f"the end of Bazel's server, process {pid}", 30)
        finally:
            if self.server_pid() == pid:
                end_by_pid({pid})
            # Bazel takes away the write permission of its output directories, also from pytest's clean-up.
            subprocess.run(["chmod", "-R", "u+w", str(self._folder)], check=False, capture_output=True)

    def server_pid(self) -> int | None:
        """The pid of the Bazel server of this output base, if one runs."""
        try:
            pid = int((self._output_base / "server" / "server.pid.txt").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        # The file outlives a server that was killed, and pids are used again.
        return pid if os.fsencode(self._output_base) in command else None

    def _invoke(self, verb: str, *arguments: str) -> Invocation:
        startup = (
            *self._edition.startup_flags,
            f"--output_user_root={self._folder / 'root'}",
            f"--output_base={self._output_base}",
            f"--host_jvm_args=-Xmx{_HEAP}",
            f"--max_idle_secs={_IDLE_SECONDS}",
        )
        stem = self._folder / f"command-{next(self._numbers):03d}-{verb}"
        return Invocation(
            (str(self._edition.program), *startup, verb, *arguments), self.workspace, self._environment, stem
        )


@contextmanager
def running_bazel(
    workspace: Path, folder: Path, flags: Sequence[str] = (), edition: Edition = DEBIAN
) -> Iterator[Bazel]:
    """A Bazel whose server is gone at the end of the block."""
    bazel = Bazel(workspace, folder, flags, edition)
    try:
        yield bazel
    finally:
        bazel.shutdown()


def _environment(home: Path) -> dict[str, str]:
    """The same on every machine, because PATH reaches the actions and so their digests."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "USER": "builder", "LANG": "C.UTF-8"}
    # The machine's default Java may be newer than this Bazel can start on.
    for java in sorted(Path("/usr/lib/jvm").glob("java-17-openjdk-*")):
        environment["JAVA_HOME"] = str(java)
    return environment
