"""The names of logs: `[{instance}/]logstreams/{operation id}.stdout`, and the same with `.stderr`.

The form is that of LogStream.name (build.bazel.remote.logstream.v1): a parent, "logstreams", one segment. The parent is the
instance, and the segment says whose output it is, so that nothing has to be kept for a name. One more segment would make it
the name that a log is written by (LogStream.write_resource_name); reading that is INVALID_ARGUMENT there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cas.errors import MalformedRequest, NotFound

_KEYWORD: Final = "logstreams"

MAX_NAME_CHARACTERS: Final = 4_096


class Output(StrEnum):
    """What a command prints to."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class LogName:
    """A name that has been checked; whether the operation exists is another question."""

    instance_name: str
    operation_name: str
    output: Output


def log_name(operation_name: str, output: Output) -> str:
    """What the output of an operation of this server is read by."""
    parent, _, operation_id = operation_name.rpartition("operations/")
    return f"{parent}{_KEYWORD}/{operation_id}.{output}"


def is_log_name(resource_name: str) -> bool:
    """Whether a resource of ByteStream is a log, for reading or for writing; an instance may be called "logstreams" too."""
    if f"{_KEYWORD}/" not in resource_name or len(resource_name) > MAX_NAME_CHARACTERS:
        return False
    return _KEYWORD in resource_name.split("/")[-3:-1]


def parse_log_name(resource_name: str) -> LogName:
    """The log that is to be read. Raises MalformedRequest for the name of a write, NotFound if there cannot be such a log."""
    parent, _, log_id = resource_name.rpartition("/")
    instance_name, _, keyword = parent.rpartition("/")
    if keyword != _KEYWORD:
        raise MalformedRequest(f"{resource_name[:300]!r} is for writing; a log is read by [INSTANCE/]{_KEYWORD}/ID")
    operation_id, _, output = log_id.rpartition(".")
    if not operation_id or output not in Output.__members__.values():
        raise NotFound(f"no log {resource_name[:300]!r}")
    prefix = f"{instance_name}/" if instance_name else ""
    return LogName(instance_name, f"{prefix}operations/{operation_id}", Output(output))
