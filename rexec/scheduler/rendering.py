"""google.longrunning.Operation as REAPI fills it, and what a client wants to have inlined."""

from __future__ import annotations

from google.longrunning import operations_pb2

from cas.digest import Digest
from cas.store import BlobStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.log_name import Output, log_name
from rexec.scheduler.scheduler import Inlining, OperationState
from rexec.scheduler.task import Stage


def operation_of(
    state: OperationState, response: re_pb2.ExecuteResponse | None = None
) -> operations_pb2.Operation:  # fmt: skip
    """The Operation of a state. `error` is never set: failures are in the ExecuteResponse (REAPI, Execution.Execute).

    `response` replaces that of the state, for a client that wanted something inlined.
    """
    operation = operations_pb2.Operation(name=state.name, done=state.done)
    metadata = re_pb2.ExecuteOperationMetadata(
        stage=re_pb2.ExecutionStage.Value.Name(state.stage),
        action_digest=state.action_digest.to_proto(),
        digest_function=state.action_digest.function.value,
        partial_execution_metadata=state.metadata,
    )
    if state.stage is Stage.EXECUTING:
        metadata.stdout_stream_name = log_name(state.name, Output.STDOUT)
        metadata.stderr_stream_name = log_name(state.name, Output.STDERR)
    operation.metadata.Pack(metadata)
    if state.done:
        answer = response if response is not None else state.response
        operation.response.Pack(answer if answer is not None else re_pb2.ExecuteResponse())
    return operation


async def inlined(
    response: re_pb2.ExecuteResponse, inlining: Inlining, store: BlobStore, function_of: Digest, max_bytes: int
) -> re_pb2.ExecuteResponse:
    """The response with what the client wants inside, as far as `max_bytes` go, and without what it does not want.

    Output is named by its digest in any case, so whatever cannot be inlined is left out. `function_of` is a digest of the
    function that the result's digests have.
    """
    if not response.HasField("result"):
        return response
    answer = re_pb2.ExecuteResponse()
    answer.CopyFrom(response)
    result = answer.result
    room = max_bytes
    wanted: list[tuple[Digest, re_pb2.OutputFile | str]] = []
    for name, asked in (("stdout", inlining.stdout), ("stderr", inlining.stderr)):
        raw_name = f"{name}_raw"
        raw = getattr(result, raw_name)
        if raw and result.HasField(f"{name}_digest") and not (asked and len(raw) <= room):
            setattr(result, raw_name, b"")
        elif raw:
            room -= len(raw)
        elif asked and result.HasField(f"{name}_digest"):
            wanted.append((Digest.from_proto(getattr(result, f"{name}_digest"), function_of.function), raw_name))
    for file in result.output_files:
        if file.path in inlining.files:
            wanted.append((Digest.from_proto(file.digest, function_of.function), file))
        file.contents = b""
    chosen = []
    for digest, target in wanted:
        if 0 < digest.size_bytes <= room:
            room -= digest.size_bytes
            chosen.append((digest, target))
    blobs = await store.read_many([digest for digest, _target in chosen]) if chosen else {}
    for digest, target in chosen:
        data = blobs.get(digest)
        if data is None:
            continue
        if isinstance(target, str):
            setattr(result, target, data)
        else:
            target.contents = data
    return answer
