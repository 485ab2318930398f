"""What keeps an action apart from the machine and from other actions: the seam, and the isolation that is none.

An isolation turns the command of an action into what is started in its place (`confine`), says what of it concerns clients
(`offered`, platform properties), and finds out before any action is taken whether this machine can do it (`require`). Each is
in a file of its own:

    none         here: a plain process in the input root
    landlock     rights given up by the thread that starts it, without privileges or other programs
    bubblewrap   namespaces of its own, through bwrap(1)

Which one a setting stands for is in `isolations`. How a command is waited for, timed and killed stays with the runner,
whatever the isolation.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

from google.protobuf.message import Message

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.worker.command import Invocation, invocation
from rexec.worker.inputs import Inputs, working_directory
from rexec.worker.settings import IsolationKind
from rexec.worker.workspace import Room

ISOLATION_PROPERTY: Final = "Isolation"
"""Platform property with the name of the isolation: an action that asks for one runs on workers that have it."""

Start = Callable[[], "subprocess.Popen[bytes]"]


class CannotIsolate(Exception):
    """This machine cannot do what is configured; the text says why and what helps."""


@dataclass(frozen=True, slots=True)
class Confinable:
    """An action whose inputs are laid out."""

    command: re_pb2.Command
    platform: Mapping[str, Sequence[str]]
    """What the action asks for, by name."""
    room: Room
    inputs: Inputs
    environment: Mapping[str, str]
    """The declared default, without TMPDIR."""


@dataclass(frozen=True, slots=True)
class Confined:
    """What the runner starts."""

    invocation: Invocation
    pass_fds: tuple[int, ...] = ()
    """Descriptors that the first process gets beside its streams."""
    is_watched: bool = False
    """Whether the first process only waits for the command, which is a descendant. Then the first process is spared when the
    command is asked to end."""
    inner_leader: Callable[[], int] = lambda: 0
    """If the first process is not in the session of the command: the number of the process that leads that one, 0 while there is
    none. It is a child of the first process, or after its end of the agent."""
    spawn: Callable[[Start], subprocess.Popen[bytes]] = lambda start: start()
    """Calls its argument, in whatever state of this thread, or of another, the process should inherit. Called while the lock
    between fork and exec is held; raises what the argument raises."""
    remark: Callable[[], str] = lambda: ""
    """What the user should be told beside the result; "" if nothing. Asked for after the isolation was left."""
    findings: Callable[[], Sequence[Message]] = lambda: ()
    """The same for programs: ExecutedActionMetadata.auxiliary_metadata."""
    judge: Callable[[int, bytes], None] = lambda _exit_code, _stderr: None
    """Told of the exit code and of the end of the standard error of a command that ended by itself. Raises what the exit code
    means if it is not the command's own: a StatusError if the action is to blame, WorkerFault if not."""


class Isolation(Protocol):
    """One for each agent; shared by its actions."""

    @property
    def offered(self) -> Mapping[str, Sequence[str]]:
        """Platform properties that it makes true, the one named `Isolation` among them."""
        ...

    def require(self) -> None:
        """Try it out. Blocks. Raises CannotIsolate."""
        ...

    def prepare(self) -> None:
        """Get ready, now that the work directory is this agent's. Blocks; never needed, but actions start faster."""
        ...

    def confine(self, action: Confinable) -> AbstractContextManager[Confined]:
        """What runs the command of `action`. Left when no process of it is alive, before outputs are collected.

        Entering raises MalformedRequest or FailedPrecondition if the command cannot be run, or asks for what cannot be.
        """
        ...


class NoIsolation:
    """A plain process: it sees and may change what the agent's user may."""

    @property
    def offered(self) -> Mapping[str, Sequence[str]]:
        return {ISOLATION_PROPERTY: [IsolationKind.NONE.value]}

    def require(self) -> None:
        """Every machine can do nothing."""

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def confine(self, action: Confinable) -> AbstractContextManager[Confined]:
        return nullcontext(Confined(plain_invocation(action)))


def plain_invocation(action: Confinable) -> Invocation:
    """The command as it is started in its input root, with the machine's programs. Raises as `Isolation.confine`."""
    directory = working_directory(action.command, action.room.root)
    return invocation(action.command, directory, action.environment, action.room.tmp)


def platform_of(action: re_pb2.Action, command: re_pb2.Command) -> dict[str, list[str]]:
    """What an action asks for: its own platform if it names anything, else the Command's (REAPI, Action.platform)."""
    asked: dict[str, list[str]] = {}
    for entry in (action.platform if action.platform.properties else command.platform).properties:
        asked.setdefault(entry.name, []).append(entry.value)
    return asked
