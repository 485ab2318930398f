"""`rexec ps` and `rexec workers`: operations and workers as lines of text."""

from __future__ import annotations

from collections.abc import Iterable

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import status_pb2
from rexec.status_text import columns, duration, size

NAME_CHARACTERS = 8
"""Of an operation's own part, where there is little room: enough to tell a few thousand apart."""

_Stage = re_pb2.ExecutionStage.Value


def operation_lines(operations: Iterable[status_pb2.FoundOperation], width: int | None) -> list[str]:
    """A table with one line for each operation. With a `width` names are short and lines are cut."""
    titles = ("OPERATION", "STAGE", "AGE", "USER", "INVOCATION", "ACTION", "AHEAD", "WHERE OR WHY")
    return columns(titles, (_operation(operation, width is not None) for operation in operations), width)


def _operation(operation: status_pb2.FoundOperation, short: bool) -> tuple[str, ...]:
    name, invocation = operation.name, operation.owner.invocation
    if short:
        name = name.rpartition("operations/")[2][:NAME_CHARACTERS]
        invocation = invocation[:NAME_CHARACTERS]
    return (
        name,
        _Stage.Name(operation.stage).lower() if operation.stage in _Stage.values() else str(operation.stage),
        duration(operation.age_seconds),
        operation.owner.user or operation.owner.tenant or "-",
        invocation or "-",
        operation.summary or f"{operation.action_digest.hash[:12]}/{operation.action_digest.size_bytes}",
        str(operation.ahead) if operation.HasField("ahead") else "",
        where(operation),
    )


def where(operation: status_pb2.FoundOperation) -> str:
    """Which worker runs it and for how long, or why it waits, or how it ended."""
    if operation.result:
        return operation.result
    if operation.reason:
        return operation.reason
    if not operation.worker:
        return ""
    if not operation.HasField("running_seconds"):
        return f"on {operation.worker}"
    expected = f" of about {duration(operation.expected_seconds)}" if operation.expected_seconds else ""
    return f"on {operation.worker} for {duration(operation.running_seconds)}{expected}"


def worker_lines(workers: Iterable[status_pb2.FoundWorker], width: int | None) -> list[str]:
    """A table with one line for each worker. With a `width` the digests of its programs are left out and lines are cut."""
    titles = (
        "WORKER",
        "STATE",
        "SLOTS",
        "LOAD",
        "CACHE",
        "FREE DISK",
        "FREE MEMORY",
        "UP",
        "VERSION",
        "OFFERS",
        "RUNS",
    )
    return columns(titles, (_worker(worker, width is not None) for worker in workers), width)


def _worker(worker: status_pb2.FoundWorker, short: bool) -> tuple[str, ...]:
    said = worker.vitals
    vitals = ("-", "-", "-", "-")
    if worker.HasField("vitals"):
        vitals = (
            f"{said.load:.1f}",
            size(said.cache_bytes),
            size(said.free_disk_bytes),
            size(said.available_memory_bytes),
        )
    runs = ", ".join(f"{task.summary or task.operation} ({duration(task.running_seconds)})" for task in worker.running)
    more = f" and {worker.running_left_out} more" if worker.running_left_out else ""
    state = (
        status_pb2.WorkerState.Name(worker.state).lower() if worker.state in status_pb2.WorkerState.values() else "?"
    )
    return (
        worker.name,
        state,
        f"{worker.busy_slots}/{worker.slots}",
        *vitals,
        duration(worker.attached_seconds),
        worker.software_version or "-",
        " ".join(
            f"{offered.name}={offered.value}"
            for offered in worker.properties
            if not (short and offered.name.endswith("-digest"))
        )
        or "-",
        (f"({worker.reason}) " if worker.reason else "") + runs + more,
    )
