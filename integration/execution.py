"""A client of the Execution service for shell scripts without inputs, call by call: for tests that do something in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.longrunning import operations_pb2

from cas.digest import Digest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.methods import methods_of

CALL_SECONDS = 90.0

_EXECUTION = methods_of(re_pb2, "Execution")
_CAS = methods_of(re_pb2, "ContentAddressableStorage")


def begin(channel: grpc.Channel, script: str, output_paths: Sequence[str] = ()) -> tuple[str, Any]:
    """Execute a shell script: the operation's name, and the call, which gives its operations."""
    command = re_pb2.Command(arguments=["/bin/sh", "-c", script], output_paths=output_paths)
    root = re_pb2.Directory()
    action = re_pb2.Action(command_digest=_digest(command).to_proto(), input_root_digest=_digest(root).to_proto())
    request = re_pb2.BatchUpdateBlobsRequest()
    for message in (command, root, action):
        request.requests.add(digest=_digest(message).to_proto(), data=message.SerializeToString())
    update = _CAS["BatchUpdateBlobs"]
    channel.unary_unary(update.path, update.request_type.SerializeToString, update.response_type.FromString)(
        request, timeout=CALL_SECONDS
    )
    call: Any = channel.unary_stream(
        _EXECUTION["Execute"].path, re_pb2.ExecuteRequest.SerializeToString, operations_pb2.Operation.FromString
    )(re_pb2.ExecuteRequest(action_digest=_digest(action).to_proto()), timeout=CALL_SECONDS)
    return next(call).name, call


def waits(channel: grpc.Channel, name: str) -> Any:
    """WaitExecution: the call, which gives the operation's states."""
    return channel.unary_stream(
        _EXECUTION["WaitExecution"].path,
        re_pb2.WaitExecutionRequest.SerializeToString,
        operations_pb2.Operation.FromString,
    )(re_pb2.WaitExecutionRequest(name=name), timeout=CALL_SECONDS)


def awaited(channel: grpc.Channel, name: str) -> re_pb2.ExecuteResponse:
    """What WaitExecution says in the end. Raises grpc.RpcError."""
    last = list(waits(channel, name))[-1]
    response = re_pb2.ExecuteResponse()
    assert last.done
    assert last.response.Unpack(response)
    return response


def blob(channel: grpc.Channel, digest: re_pb2.Digest) -> bytes:
    """A small blob of the store. Raises AssertionError when it is not there."""
    read = _CAS["BatchReadBlobs"]
    response = channel.unary_unary(
        read.path, re_pb2.BatchReadBlobsRequest.SerializeToString, re_pb2.BatchReadBlobsResponse.FromString
    )(re_pb2.BatchReadBlobsRequest(digests=[digest]), timeout=CALL_SECONDS)
    (answer,) = response.responses
    assert answer.status.code == 0, answer.status
    return answer.data


def _digest(message: Any) -> Digest:
    return Digest.of(message.SerializeToString())
