"""Actions in namespaces of their own, made by bwrap(1): users, processes, mounts, IPC, host name, and network unless asked for.

The first process is bwrap itself, which waits for the command. Its child is the first process of the process namespace: with it
the kernel ends everything in there, daemons included, and it dies with bwrap, as bwrap does with the agent. An action sees
neither the agent nor other actions, so it can signal none of them.

bwrap starts with an empty environment and is told the command's as options: variables like LD_PRELOAD would else be obeyed by
bwrap, outside of the sandbox.

What differs from a plain process: PWD is set to the working directory; a command that dies of signal n is told of in the same
words, but so is one that exits with 128 + n, because bwrap passes on no more, and so SIGKILL and SIGTERM are no proof that
somebody outside has ended it; and the arguments and three times the variables may be no more than 9,000.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Final

import structlog

from cas.errors import FailedPrecondition, MalformedRequest
from rexec.worker.bubblewrap_settings import BubblewrapSettings, RootKind
from rexec.worker.chroot import place_in
from rexec.worker.command import Invocation, invocation
from rexec.worker.etc_copy import ETC, LIVE, TooMuch, copy_etc
from rexec.worker.inputs import working_directory
from rexec.worker.isolation import ISOLATION_PROPERTY, CannotIsolate, Confinable, Confined, Start
from rexec.worker.mounts import TMP, has_outputs_in_tmp, inputs_root, machine_mounts, machine_root, mount_points
from rexec.worker.paths import inside
from rexec.worker.settings import IsolationKind
from rexec.worker.verdict import WorkerFault
from rexec.worker.wishes import ANY_VALUE, GROUP_PROPERTY, NETWORK_PROPERTY, ROOT_PROPERTY, USER_PROPERTY, Wishes

_log = structlog.get_logger()

_MAX_ARGUMENTS: Final = 9_000
"""What bwrap takes, its own options included."""

_TRIAL_SECONDS: Final = 30.0

_NEED_NAMESPACES: Final = (
    "bubblewrap needs user namespaces: allow them with `sysctl user.max_user_namespaces=15000` (and "
    "kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0 where these exist); a container also "
    "needs a seccomp profile that allows unshare and mount, and an unmasked /proc (Kubernetes: procMount: Unmasked). "
    'Or choose isolation = "landlock" or "none"'
)


class Bubblewrap:
    """The isolation `bubblewrap` of one agent."""

    def __init__(
        self, settings: BubblewrapSettings, hidden: Sequence[str], program: str = "bwrap", etc_copy: str = ""
    ) -> None:
        """`hidden` are directories of the agent: no action sees more of them than what is its own. `program` is looked up in
        the agent's PATH. `etc_copy` is where `prepare` puts a copy of what is seen of /etc; empty: nowhere."""
        self._settings = settings
        self._hidden = [os.path.realpath(path) for path in hidden]
        self._etc_copy = etc_copy and os.path.realpath(etc_copy)
        self._machine = machine_mounts([*settings.system_paths, *settings.readable], self._hidden)
        self._machine_with_network = self._machine
        self._program = shutil.which(program) or program
        self._can_disable_namespaces = False

    @property
    def offered(self) -> Mapping[str, Sequence[str]]:
        return {
            ISOLATION_PROPERTY: [IsolationKind.BUBBLEWRAP.value],
            ROOT_PROPERTY: [kind.value for kind in RootKind],
            NETWORK_PROPERTY: ["off", "on"] if self._settings.allow_network else ["off"],
            USER_PROPERTY: [ANY_VALUE],
            GROUP_PROPERTY: [ANY_VALUE],
        }

    def require(self) -> None:
        """Start a command that does nothing."""
        if not os.path.isfile(self._program) or not os.access(self._program, os.X_OK):
            raise CannotIsolate(
                f'isolation = "bubblewrap" needs the program {self._program}, which is not there: install bubblewrap '
                "(Debian: apt-get install bubblewrap)"
            )
        for path in self._settings.readable:
            if not os.path.exists(path):
                raise CannotIsolate(f"{path} is not there; see readable in [worker.bubblewrap]")
        known = self._try(["--help"])
        self._can_disable_namespaces = "--disable-userns" in known.stdout
        options = self._namespaces(0, 0, network=False)
        tried = self._try([*options, "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--", "true"])
        if tried.returncode:
            said = tried.stderr.strip()[-500:] or f"it ended with {tried.returncode}"
            raise CannotIsolate(f"{self._program} cannot isolate on this machine: {said}. {_NEED_NAMESPACES}")

    def prepare(self) -> None:
        settings = self._settings
        in_etc = [path for path in settings.system_paths if path.startswith(f"{ETC}/")]
        if not self._etc_copy or not in_etc or ETC in (*settings.system_paths, *settings.readable):
            return
        more = [path for path in settings.readable if path.startswith(f"{ETC}/")]
        try:
            copy_etc(in_etc, more, self._etc_copy)
        except (OSError, TooMuch) as reason:
            _log.warning("actions start slower: what they see of /etc cannot be copied", reason=str(reason))
            return
        others = [*(path for path in settings.system_paths if path not in in_etc), *settings.readable]
        self._machine = machine_mounts(others, self._hidden, self._etc_copy)
        live = [path for path in LIVE if path in in_etc and os.path.isfile(self._etc_copy + path.removeprefix(ETC))]
        self._machine_with_network = machine_mounts([*others, *live], self._hidden, self._etc_copy)

    def confine(self, action: Confinable) -> AbstractContextManager[Confined]:
        wishes = Wishes.of(action.platform, self._settings.root, allow_network=self._settings.allow_network)
        return self._confined(action, wishes)

    @contextmanager
    def _confined(self, action: Confinable, wishes: Wishes) -> Iterator[Confined]:
        root, tmp = os.path.realpath(action.room.root), os.path.realpath(action.room.tmp)
        with ExitStack() as stack:
            if wishes.root is RootKind.INPUTS:
                started = _invocation_inside(action, root)
                if has_outputs_in_tmp(action.command, root):
                    tmp = f"{root}{TMP}"
                stack.enter_context(mount_points(root, kept=tmp))
                mounts = inputs_root(action.inputs, root, tmp)
                user, group = wishes.user or 0, wishes.group or 0
            else:
                directory = working_directory(action.command, root)
                started = invocation(action.command, directory, action.environment, TMP)
                machine = self._machine_with_network if wishes.network else self._machine
                mounts = machine_root(machine, root, tmp)
                user = os.geteuid() if wishes.user is None else wishes.user
                group = os.getegid() if wishes.group is None else wishes.group
            told, asked = _unnamed_file(stack), _unnamed_file(stack)
            options = [
                *self._namespaces(user, group, network=wishes.network),
                *("--json-status-fd", str(told)),
                *mounts,
                *("--chdir", started.directory),
                *(part for name, value in started.environment.items() for part in ("--setenv", name, value)),
            ]
            # Whoever is on the machine may read the arguments of any process, but no variables of another user's.
            with open(asked, "wb", closefd=False) as file:
                file.write(b"".join(os.fsencode(option) + b"\0" for option in options))
            os.lseek(asked, 0, os.SEEK_SET)
            arguments = [self._program, "--args", str(asked), "--", *_command_of(started)]
            if len(arguments) + len(options) > _MAX_ARGUMENTS:
                raise FailedPrecondition(
                    f"the command has {len(started.arguments)} arguments and {len(started.environment)} variables, more than "
                    f"bubblewrap takes ({_MAX_ARGUMENTS} together); a response file has no such limit"
                )
            yield Confined(
                Invocation(self._program, arguments, {}, "/"),
                pass_fds=(told, asked),
                is_watched=True,
                inner_leader=partial(_first_inside, told),
                spawn=self._spawn,
                judge=partial(_judge, told, started.arguments[0]),
            )

    def _namespaces(self, user: int, group: int, *, network: bool) -> list[str]:
        return [
            *("--unshare-user", "--uid", str(user), "--gid", str(group)),
            *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", "localhost", "--unshare-cgroup-try"),
            *(() if network else ("--unshare-net",)),
            # bwrap started by root would leave the command all capabilities that the namespace gives.
            *("--cap-drop", "ALL"),
            # In a namespace of its own making the command would have capabilities again.
            *(("--disable-userns",) if self._can_disable_namespaces else ()),
            # In the session of bwrap a command would end bwrap too with `kill 0`.
            "--new-session",
            "--die-with-parent",
        ]

    def _spawn(self, start: Start) -> subprocess.Popen[bytes]:
        try:
            return start()
        except OSError as failure:
            if failure.errno in (errno.E2BIG, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
                raise
            raise WorkerFault(f"cannot start {self._program}: {failure.strerror}") from failure

    def _try(self, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self._program, *options],
                env={"PATH": "/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                errors="replace",
                timeout=_TRIAL_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as failure:
            raise CannotIsolate(f"{self._program} cannot be tried out: {failure}") from failure


def _unnamed_file(stack: ExitStack) -> int:
    fd = os.memfd_create("bwrap")
    stack.callback(os.close, fd)
    return fd


def _invocation_inside(action: Confinable, root: str) -> Invocation:
    """The command with `root` as the file system's root: its programs are those of the input root."""
    directory = f"/{inside('', action.command.working_directory)}"
    place = partial(place_in, root)
    if not os.path.isdir(place(directory)):
        raise MalformedRequest(f"working directory {directory[:200]!r} is not in the input root")
    return invocation(action.command, directory, action.environment, TMP, place)


def _command_of(started: Invocation) -> Sequence[str]:
    """bwrap looks the program up as execvp(3) does: the same, unless there is no PATH."""
    first, *others = started.arguments
    return [first if "/" in first or "PATH" in started.environment else started.program, *others]


def _first_inside(told: int) -> int:
    """The first process of the namespace, by its number outside; 0 if there is none yet."""
    found = re.search(rb'"child-pid": *([0-9]+)', os.pread(told, 1 << 16, 0))
    return int(found[1]) if found else 0


def _judge(told: int, name: str, _exit_code: int, stderr: bytes) -> None:
    """bwrap notes an exit code only if the command was started; whatever else it exits with is its own.

    Raises FailedPrecondition if the command could not be executed, WorkerFault if its world could not be made.
    """
    if b'"exit-code"' in os.pread(told, 1 << 16, 0):
        return
    said = stderr.decode(errors="replace").strip()
    unstartable = re.search(r"^bwrap: execvp .*: ([^:\n]+)$", said, re.MULTILINE)
    if unstartable:
        raise FailedPrecondition(f"cannot start {name[:200]!r}: {unstartable[1]}")
    raise WorkerFault(f"bubblewrap could not run the command: {said[-500:] or 'it was killed'}")
