"""What a Command may say, decided from the message alone (REAPI, Command)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence

from cas.errors import MalformedRequest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.packing import COUNTED, demand_of
from rexec.scheduler.platform import Requirement
from rexec.scheduler.task import Demand

MAX_PATH_BYTES = 4096
"""PATH_MAX of Linux."""
MAX_OUTPUTS = 100_000
"""Output paths of one command; Bazel's actions have fewer than 100, most of them one."""
MAX_PROPERTIES = 256
"""Real clients send fewer than ten."""
MAX_PROPERTY_CHARACTERS = 4096
"""A name and a value together; a container image with its digest has about 150."""

ORDINARY = Demand()
"""What an action uses up that says nothing."""


def check_command(command: re_pb2.Command) -> tuple[str, ...]:
    """The components of the working directory, without dots. Raises MalformedRequest, naming what is wrong.

    `..` is legal in all paths as long as it stays in the input root: BuildStream sends it.
    """
    if not command.arguments or not command.arguments[0]:
        raise MalformedRequest("the command has no arguments, so there is nothing to run")
    if any("\0" in argument for argument in command.arguments):
        raise MalformedRequest("an argument of the command holds a NUL character")
    for variable in command.environment_variables:
        if not variable.name or "=" in variable.name or "\0" in variable.name or "\0" in variable.value:
            raise MalformedRequest(f"environment variable {variable.name[:200]!r} cannot be set")
    working_directory = _inside("working_directory", "", command.working_directory)
    outputs = outputs_of(command)
    if len(outputs) > MAX_OUTPUTS:
        raise MalformedRequest(f"the command has {len(outputs)} output paths, expected at most {MAX_OUTPUTS}")
    for path in outputs:
        # Most paths have no dots to follow, and to find that out takes a tenth of the time.
        if not path or len(path) > MAX_PATH_BYTES // 4 or path[0] == "/" or ".." in path or "\0" in path:
            _inside("output path", working_directory, path)
    return tuple(working_directory.split("/")) if working_directory else ()


def outputs_of(command: re_pb2.Command) -> Sequence[str]:
    """output_paths, or what they replace: then the other two are ignored (REAPI, Command.output_paths)."""
    return command.output_paths or [*command.output_files, *command.output_directories]


def _inside(what: str, below: str, path: str) -> str:
    """`path` seen from the input root, normalised; "" is the root itself. Raises MalformedRequest if it escapes."""
    if path.startswith("/"):
        raise MalformedRequest(f"{what} {path[:200]!r} is absolute, expected a path inside the input root")
    if "\0" in path or len(path.encode()) > MAX_PATH_BYTES:
        raise MalformedRequest(f"{what} {path[:200]!r} is no path: it holds a NUL or more than {MAX_PATH_BYTES} bytes")
    normal = posixpath.normpath(posixpath.join(below, path)) if below or path else "."
    if normal == ".." or normal.startswith("../"):
        raise MalformedRequest(f"{what} {path[:200]!r} leaves the input root")
    return "" if normal == "." else normal


def platform_of(
    instance_name: str, action: re_pb2.Action, command: re_pb2.Command, ignored: Iterable[str] = ()
) -> tuple[Requirement, Demand]:
    """The platform that the action asks for: Action.platform if it names any property, else Command.platform.

    The properties cpu, memory and slots are figures: what the action uses up of its worker, whatever the worker offers under
    these names (rexec/scheduler/packing.py). Raises MalformedRequest for properties that make no sense.
    """
    properties = action.platform.properties or command.platform.properties
    if len(properties) > MAX_PROPERTIES:
        raise MalformedRequest(f"{len(properties)} platform properties, expected at most {MAX_PROPERTIES}")
    unimportant = frozenset(ignored)
    figures: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for property_ in properties:
        name, value = property_.name, property_.value
        if not name or len(name) + len(value) > MAX_PROPERTY_CHARACTERS:
            raise MalformedRequest(f"platform property {name[:200]!r} has no name or is too long")
        if name in unimportant:
            continue
        if name not in COUNTED:
            pairs.append((name, value))
        elif figures.setdefault(name, value) != value:
            raise MalformedRequest(f"platform property {name} is both {figures[name][:100]!r} and {value[:100]!r}")
    return Requirement(instance_name, frozenset(pairs)), demand_of(figures) if figures else ORDINARY


def timeout_of(action: re_pb2.Action, default_seconds: float, max_seconds: float) -> float:
    """How long the command may run, in seconds (REAPI, Action.timeout). No timeout and a timeout of 0 mean the default."""
    seconds = action.timeout.seconds + action.timeout.nanos / 1e9
    if seconds == 0:
        return default_seconds
    if seconds < 0:
        raise MalformedRequest(f"the action's timeout is {seconds:g} s, expected more than 0")
    if seconds > max_seconds:
        raise MalformedRequest(f"the action's timeout is {seconds:g} s, the most allowed is {max_seconds:g} s")
    return seconds
