"""One action through the protocol, as a client has it run: uploaded, executed, its outputs fetched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.longrunning import operations_pb2

from cas.digest import Digest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.methods import methods_of

SECONDS = 60
_CAS = methods_of(re_pb2, "ContentAddressableStorage")
_EXECUTION = methods_of(re_pb2, "Execution")


@dataclass(frozen=True, slots=True)
class Ran:
    """How an action ended."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    outputs: dict[str, bytes]
    worker: str


def run_action(
    address: str,
    arguments: Sequence[str],
    inputs: Mapping[str, bytes] | None = None,
    outputs: Sequence[str] = (),
    platform: Mapping[str, str] | None = None,
) -> Ran:
    """Run it on the server at host:port, with inputs beside each other, all executable, never from the cache.

    Raises AssertionError with what the server says if it does not run it.
    """
    command = re_pb2.Command(arguments=arguments, output_paths=outputs)
    root = re_pb2.Directory()
    blobs = []
    for name, content in sorted((inputs or {}).items()):
        root.files.add(name=name, digest=Digest.of(content).to_proto(), is_executable=True)
        blobs.append(content)
    action = re_pb2.Action(
        command_digest=_digest(command).to_proto(), input_root_digest=_digest(root).to_proto(), do_not_cache=True
    )
    for name, value in sorted((platform or {}).items()):
        action.platform.properties.add(name=name, value=value)
    blobs += [message.SerializeToString() for message in (command, root, action)]
    with grpc.insecure_channel(address) as channel:
        for blob in blobs:
            update = re_pb2.BatchUpdateBlobsRequest()
            update.requests.add(digest=Digest.of(blob).to_proto(), data=blob)
            stored = _call(channel, "BatchUpdateBlobs", update)
            if stored.responses[0].status.code:
                raise AssertionError(f"an input was not stored: {stored.responses[0].status.message}")
        response = _execute(channel, _digest(action))
        result = response.result
        if response.status.code:
            raise AssertionError(f"the action was not run: {response.status.message}")
        wanted = {file.path: Digest.from_proto(file.digest) for file in result.output_files}
        contents = {path: _read(channel, digest) for path, digest in wanted.items()}
        stdout = result.stdout_raw or _read_message(channel, result.stdout_digest)
        stderr = result.stderr_raw or _read_message(channel, result.stderr_digest)
    return Ran(result.exit_code, stdout, stderr, contents, result.execution_metadata.worker)


def _digest(message: Any) -> Digest:
    return Digest.of(message.SerializeToString())


def _call(channel: grpc.Channel, name: str, request: Any) -> Any:
    method = _CAS[name]
    return channel.unary_unary(method.path, method.request_type.SerializeToString, method.response_type.FromString)(
        request, timeout=SECONDS
    )


def _execute(channel: grpc.Channel, action: Digest) -> re_pb2.ExecuteResponse:
    execute = _EXECUTION["Execute"]
    call: Any = channel.unary_stream(
        execute.path, execute.request_type.SerializeToString, operations_pb2.Operation.FromString
    )
    last = operations_pb2.Operation()
    for operation in call(re_pb2.ExecuteRequest(action_digest=action.to_proto()), timeout=SECONDS):
        last = operation
    response = re_pb2.ExecuteResponse()
    if not last.response.Unpack(response):
        raise AssertionError(f"the stream ended before the action: {last}")
    return response


def _read(channel: grpc.Channel, digest: Digest) -> bytes:
    request = re_pb2.BatchReadBlobsRequest(digests=[digest.to_proto()])
    (response,) = _call(channel, "BatchReadBlobs", request).responses
    if response.status.code:
        raise AssertionError(f"an output cannot be read: {response.status.message}")
    content: bytes = response.data
    return content


def _read_message(channel: grpc.Channel, digest: re_pb2.Digest) -> bytes:
    return _read(channel, Digest.from_proto(digest)) if digest.size_bytes else b""
