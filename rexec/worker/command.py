"""From a Command message to what execve(2) takes: the program, its arguments, its environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cas.errors import FailedPrecondition, MalformedRequest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.worker.settings import DEFAULT_PATH


@dataclass(frozen=True, slots=True)
class Invocation:
    """A program ready to be started."""

    program: str
    """An absolute path."""
    arguments: Sequence[str]
    """argv, the first as the Command has it."""
    environment: Mapping[str, str]
    directory: str
    """The working directory, an absolute path."""


def _as_it_is(path: str) -> str:
    return path


def invocation(
    command: re_pb2.Command,
    directory: str,
    defaults: Mapping[str, str],
    tmp: str,
    place: Callable[[str], str] = _as_it_is,
) -> Invocation:
    """What `command` starts in `directory`.

    The environment is `defaults` and TMPDIR, overridden by the Command; nothing else. argv[0] is absolute, relative to the
    working directory if it has a slash, and else looked up in the PATH of that environment (REAPI, Command.arguments).

    All paths are those that the command sees; `place` tells where such a path is on this machine, if that is not the same.

    Raises MalformedRequest for what no system can start, FailedPrecondition if the program is not found here.
    """
    if not command.arguments or not command.arguments[0]:
        raise MalformedRequest("the command has no arguments, not even a program to run")
    for argument in command.arguments:
        if "\0" in argument:
            raise MalformedRequest(f"argument {argument[:200]!r} holds a NUL character")
    environment = {**defaults, "TMPDIR": tmp}
    for variable in command.environment_variables:
        if not variable.name or "=" in variable.name or "\0" in variable.name or "\0" in variable.value:
            raise MalformedRequest(
                f"environment variable {variable.name[:200]!r} has a name or value that none can have"
            )
        environment[variable.name] = variable.value
    program = _find(command.arguments[0], directory, environment.get("PATH", DEFAULT_PATH), place)
    return Invocation(program, list(command.arguments), environment, directory)


def _find(name: str, directory: str, path: str, place: Callable[[str], str]) -> str:
    if "/" in name:
        program = os.path.join(directory, name)
        _require_runnable(place(program), name)
        return program
    for entry in path.split(":"):
        # An empty entry is the working directory (POSIX, environment variable PATH).
        candidate = os.path.join(directory, entry, name)
        here = place(candidate)
        if os.path.isfile(here) and os.access(here, os.X_OK):
            return candidate
    raise FailedPrecondition(f"no program {name[:200]!r} in PATH {path[:1000]!r}")


def _require_runnable(program: str, name: str) -> None:
    try:
        found = os.path.isfile(program)
    except ValueError:
        found = False
    if not found:
        raise FailedPrecondition(f"no program {name[:200]!r}: there is no such file")
    if not os.access(program, os.X_OK):
        raise FailedPrecondition(f"program {name[:200]!r} is not executable")
