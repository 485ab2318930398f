import datetime

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as _remote_execution_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Owner(_message.Message):
    __slots__ = ("tenant", "user", "invocation")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    INVOCATION_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    user: str
    invocation: str
    def __init__(self, tenant: _Optional[str] = ..., user: _Optional[str] = ..., invocation: _Optional[str] = ...) -> None: ...

class Demand(_message.Message):
    __slots__ = ("slots", "cpu_millis", "memory_bytes")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CPU_MILLIS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    slots: int
    cpu_millis: int
    memory_bytes: int
    def __init__(self, slots: _Optional[int] = ..., cpu_millis: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("instance_name", "digest_function", "action_digest", "required", "owner", "demand", "action_class", "action_key", "affinity", "priority", "do_not_cache", "timeout", "run")
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FUNCTION_FIELD_NUMBER: _ClassVar[int]
    ACTION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    ACTION_CLASS_FIELD_NUMBER: _ClassVar[int]
    ACTION_KEY_FIELD_NUMBER: _ClassVar[int]
    AFFINITY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DO_NOT_CACHE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    instance_name: str
    digest_function: _remote_execution_pb2.DigestFunction.Value
    action_digest: _remote_execution_pb2.Digest
    required: _containers.RepeatedCompositeFieldContainer[_remote_execution_pb2.Platform.Property]
    owner: Owner
    demand: Demand
    action_class: str
    action_key: str
    affinity: _containers.RepeatedScalarFieldContainer[str]
    priority: int
    do_not_cache: bool
    timeout: _duration_pb2.Duration
    run: Run
    def __init__(self, instance_name: _Optional[str] = ..., digest_function: _Optional[_Union[_remote_execution_pb2.DigestFunction.Value, str]] = ..., action_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping[str, object]]] = ..., required: _Optional[_Iterable[_Union[_remote_execution_pb2.Platform.Property, _Mapping[str, object]]]] = ..., owner: _Optional[_Union[Owner, _Mapping[str, object]]] = ..., demand: _Optional[_Union[Demand, _Mapping[str, object]]] = ..., action_class: _Optional[str] = ..., action_key: _Optional[str] = ..., affinity: _Optional[_Iterable[str]] = ..., priority: _Optional[int] = ..., do_not_cache: _Optional[bool] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping[str, object]]] = ..., run: _Optional[_Union[Run, _Mapping[str, object]]] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("action", "command", "request_metadata", "queued_timestamp")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    REQUEST_METADATA_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    action: _remote_execution_pb2.Action
    command: _remote_execution_pb2.Command
    request_metadata: _remote_execution_pb2.RequestMetadata
    queued_timestamp: _timestamp_pb2.Timestamp
    def __init__(self, action: _Optional[_Union[_remote_execution_pb2.Action, _Mapping[str, object]]] = ..., command: _Optional[_Union[_remote_execution_pb2.Command, _Mapping[str, object]]] = ..., request_metadata: _Optional[_Union[_remote_execution_pb2.RequestMetadata, _Mapping[str, object]]] = ..., queued_timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ...) -> None: ...

class Inlining(_message.Message):
    __slots__ = ("stdout", "stderr", "files")
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    stdout: bool
    stderr: bool
    files: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, stdout: _Optional[bool] = ..., stderr: _Optional[bool] = ..., files: _Optional[_Iterable[str]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("error", "response")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    error: _status_pb2.Status
    response: _remote_execution_pb2.ExecuteResponse
    def __init__(self, error: _Optional[_Union[_status_pb2.Status, _Mapping[str, object]]] = ..., response: _Optional[_Union[_remote_execution_pb2.ExecuteResponse, _Mapping[str, object]]] = ...) -> None: ...

class OperationState(_message.Message):
    __slots__ = ("name", "instance_name", "digest_function", "action_digest", "stage", "response", "inlining", "reason", "metadata", "owner")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FUNCTION_FIELD_NUMBER: _ClassVar[int]
    ACTION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    INLINING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    name: str
    instance_name: str
    digest_function: _remote_execution_pb2.DigestFunction.Value
    action_digest: _remote_execution_pb2.Digest
    stage: _remote_execution_pb2.ExecutionStage.Value
    response: _remote_execution_pb2.ExecuteResponse
    inlining: Inlining
    reason: str
    metadata: _remote_execution_pb2.ExecutedActionMetadata
    owner: Owner
    def __init__(self, name: _Optional[str] = ..., instance_name: _Optional[str] = ..., digest_function: _Optional[_Union[_remote_execution_pb2.DigestFunction.Value, str]] = ..., action_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping[str, object]]] = ..., stage: _Optional[_Union[_remote_execution_pb2.ExecutionStage.Value, str]] = ..., response: _Optional[_Union[_remote_execution_pb2.ExecuteResponse, _Mapping[str, object]]] = ..., inlining: _Optional[_Union[Inlining, _Mapping[str, object]]] = ..., reason: _Optional[str] = ..., metadata: _Optional[_Union[_remote_execution_pb2.ExecutedActionMetadata, _Mapping[str, object]]] = ..., owner: _Optional[_Union[Owner, _Mapping[str, object]]] = ...) -> None: ...
