import datetime

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as _remote_execution_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from protos.rexec.scheduler.v1 import record_pb2 as _record_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LogStream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_STREAM_UNSPECIFIED: _ClassVar[LogStream]
    STDOUT: _ClassVar[LogStream]
    STDERR: _ClassVar[LogStream]
LOG_STREAM_UNSPECIFIED: LogStream
STDOUT: LogStream
STDERR: LogStream

class FromWorker(_message.Message):
    __slots__ = ("hello", "credit", "progress", "finished", "heartbeat", "draining", "log", "also")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    ALSO_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    credit: Credit
    progress: Progress
    finished: Finished
    heartbeat: Heartbeat
    draining: Draining
    log: LogPiece
    also: _containers.RepeatedCompositeFieldContainer[FromWorker]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping[str, object]]] = ..., credit: _Optional[_Union[Credit, _Mapping[str, object]]] = ..., progress: _Optional[_Union[Progress, _Mapping[str, object]]] = ..., finished: _Optional[_Union[Finished, _Mapping[str, object]]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping[str, object]]] = ..., draining: _Optional[_Union[Draining, _Mapping[str, object]]] = ..., log: _Optional[_Union[LogPiece, _Mapping[str, object]]] = ..., also: _Optional[_Iterable[_Union[FromWorker, _Mapping[str, object]]]] = ...) -> None: ...

class ToWorker(_message.Message):
    __slots__ = ("welcome", "lease", "revoke", "acknowledged", "drain", "read_log", "also")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REVOKE_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    READ_LOG_FIELD_NUMBER: _ClassVar[int]
    ALSO_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    lease: Lease
    revoke: Revoke
    acknowledged: Acknowledged
    drain: Drain
    read_log: ReadLog
    also: _containers.RepeatedCompositeFieldContainer[ToWorker]
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping[str, object]]] = ..., lease: _Optional[_Union[Lease, _Mapping[str, object]]] = ..., revoke: _Optional[_Union[Revoke, _Mapping[str, object]]] = ..., acknowledged: _Optional[_Union[Acknowledged, _Mapping[str, object]]] = ..., drain: _Optional[_Union[Drain, _Mapping[str, object]]] = ..., read_log: _Optional[_Union[ReadLog, _Mapping[str, object]]] = ..., also: _Optional[_Iterable[_Union[ToWorker, _Mapping[str, object]]]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("worker_name", "session_id", "slots", "properties", "resources", "software_version", "held", "instance_names")
    class ResourcesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    WORKER_NAME_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAMES_FIELD_NUMBER: _ClassVar[int]
    worker_name: str
    session_id: str
    slots: int
    properties: _containers.RepeatedCompositeFieldContainer[_remote_execution_pb2.Platform.Property]
    resources: _containers.ScalarMap[str, int]
    software_version: str
    held: _containers.RepeatedCompositeFieldContainer[HeldLease]
    instance_names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker_name: _Optional[str] = ..., session_id: _Optional[str] = ..., slots: _Optional[int] = ..., properties: _Optional[_Iterable[_Union[_remote_execution_pb2.Platform.Property, _Mapping[str, object]]]] = ..., resources: _Optional[_Mapping[str, int]] = ..., software_version: _Optional[str] = ..., held: _Optional[_Iterable[_Union[HeldLease, _Mapping[str, object]]]] = ..., instance_names: _Optional[_Iterable[str]] = ...) -> None: ...

class HeldLease(_message.Message):
    __slots__ = ("lease_id", "epoch")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    epoch: int
    def __init__(self, lease_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("leases", "leases_received")
    LEASES_FIELD_NUMBER: _ClassVar[int]
    LEASES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    leases: int
    leases_received: int
    def __init__(self, leases: _Optional[int] = ..., leases_received: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("lease_id", "epoch", "phase", "partial_metadata")
    class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PHASE_UNSPECIFIED: _ClassVar[Progress.Phase]
        FETCHING: _ClassVar[Progress.Phase]
        LAYING_OUT: _ClassVar[Progress.Phase]
        RUNNING: _ClassVar[Progress.Phase]
        COLLECTING: _ClassVar[Progress.Phase]
        UPLOADING: _ClassVar[Progress.Phase]
    PHASE_UNSPECIFIED: Progress.Phase
    FETCHING: Progress.Phase
    LAYING_OUT: Progress.Phase
    RUNNING: Progress.Phase
    COLLECTING: Progress.Phase
    UPLOADING: Progress.Phase
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_METADATA_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    epoch: int
    phase: Progress.Phase
    partial_metadata: _remote_execution_pb2.ExecutedActionMetadata
    def __init__(self, lease_id: _Optional[str] = ..., epoch: _Optional[int] = ..., phase: _Optional[_Union[Progress.Phase, str]] = ..., partial_metadata: _Optional[_Union[_remote_execution_pb2.ExecutedActionMetadata, _Mapping[str, object]]] = ...) -> None: ...

class ResourceUsage(_message.Message):
    __slots__ = ("user_seconds", "system_seconds", "peak_memory_bytes", "read_bytes", "written_bytes", "voluntary_context_switches", "involuntary_context_switches")
    USER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    VOLUNTARY_CONTEXT_SWITCHES_FIELD_NUMBER: _ClassVar[int]
    INVOLUNTARY_CONTEXT_SWITCHES_FIELD_NUMBER: _ClassVar[int]
    user_seconds: float
    system_seconds: float
    peak_memory_bytes: int
    read_bytes: int
    written_bytes: int
    voluntary_context_switches: int
    involuntary_context_switches: int
    def __init__(self, user_seconds: _Optional[float] = ..., system_seconds: _Optional[float] = ..., peak_memory_bytes: _Optional[int] = ..., read_bytes: _Optional[int] = ..., written_bytes: _Optional[int] = ..., voluntary_context_switches: _Optional[int] = ..., involuntary_context_switches: _Optional[int] = ...) -> None: ...

class UndeclaredReads(_message.Message):
    __slots__ = ("paths", "left_out")
    PATHS_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    paths: _containers.RepeatedScalarFieldContainer[str]
    left_out: int
    def __init__(self, paths: _Optional[_Iterable[str]] = ..., left_out: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("lease_id", "epoch", "action_result", "status", "message", "failure", "exceeded_memory_bytes")
    class Failure(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NONE: _ClassVar[Finished.Failure]
        INFRASTRUCTURE: _ClassVar[Finished.Failure]
        BACK_PRESSURE: _ClassVar[Finished.Failure]
        REVOKED: _ClassVar[Finished.Failure]
    NONE: Finished.Failure
    INFRASTRUCTURE: Finished.Failure
    BACK_PRESSURE: Finished.Failure
    REVOKED: Finished.Failure
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ACTION_RESULT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    EXCEEDED_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    epoch: int
    action_result: _remote_execution_pb2.ActionResult
    status: _status_pb2.Status
    message: str
    failure: Finished.Failure
    exceeded_memory_bytes: int
    def __init__(self, lease_id: _Optional[str] = ..., epoch: _Optional[int] = ..., action_result: _Optional[_Union[_remote_execution_pb2.ActionResult, _Mapping[str, object]]] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping[str, object]]] = ..., message: _Optional[str] = ..., failure: _Optional[_Union[Finished.Failure, str]] = ..., exceeded_memory_bytes: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("load", "cache_bytes", "free_disk_bytes", "available_memory_bytes", "pause_reason")
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAUSE_REASON_FIELD_NUMBER: _ClassVar[int]
    load: float
    cache_bytes: int
    free_disk_bytes: int
    available_memory_bytes: int
    pause_reason: str
    def __init__(self, load: _Optional[float] = ..., cache_bytes: _Optional[int] = ..., free_disk_bytes: _Optional[int] = ..., available_memory_bytes: _Optional[int] = ..., pause_reason: _Optional[str] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ("reason", "grace")
    REASON_FIELD_NUMBER: _ClassVar[int]
    GRACE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    grace: _duration_pb2.Duration
    def __init__(self, reason: _Optional[str] = ..., grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping[str, object]]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("worker_id", "heartbeat_interval", "grace", "resumed", "unknown")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    GRACE_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    heartbeat_interval: _duration_pb2.Duration
    grace: _duration_pb2.Duration
    resumed: _containers.RepeatedCompositeFieldContainer[HeldLease]
    unknown: _containers.RepeatedCompositeFieldContainer[HeldLease]
    def __init__(self, worker_id: _Optional[str] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping[str, object]]] = ..., grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping[str, object]]] = ..., resumed: _Optional[_Iterable[_Union[HeldLease, _Mapping[str, object]]]] = ..., unknown: _Optional[_Iterable[_Union[HeldLease, _Mapping[str, object]]]] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "epoch", "task_id", "instance_name", "digest_function", "action_digest", "action", "command", "timeout", "request_metadata", "queued_timestamp", "demand")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FUNCTION_FIELD_NUMBER: _ClassVar[int]
    ACTION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_METADATA_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    epoch: int
    task_id: str
    instance_name: str
    digest_function: _remote_execution_pb2.DigestFunction.Value
    action_digest: _remote_execution_pb2.Digest
    action: _remote_execution_pb2.Action
    command: _remote_execution_pb2.Command
    timeout: _duration_pb2.Duration
    request_metadata: _remote_execution_pb2.RequestMetadata
    queued_timestamp: _timestamp_pb2.Timestamp
    demand: _record_pb2.Demand
    def __init__(self, lease_id: _Optional[str] = ..., epoch: _Optional[int] = ..., task_id: _Optional[str] = ..., instance_name: _Optional[str] = ..., digest_function: _Optional[_Union[_remote_execution_pb2.DigestFunction.Value, str]] = ..., action_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping[str, object]]] = ..., action: _Optional[_Union[_remote_execution_pb2.Action, _Mapping[str, object]]] = ..., command: _Optional[_Union[_remote_execution_pb2.Command, _Mapping[str, object]]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping[str, object]]] = ..., request_metadata: _Optional[_Union[_remote_execution_pb2.RequestMetadata, _Mapping[str, object]]] = ..., queued_timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., demand: _Optional[_Union[_record_pb2.Demand, _Mapping[str, object]]] = ...) -> None: ...

class Revoke(_message.Message):
    __slots__ = ("lease_id", "epoch", "reason")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    epoch: int
    reason: str
    def __init__(self, lease_id: _Optional[str] = ..., epoch: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Acknowledged(_message.Message):
    __slots__ = ("lease_id", "epoch")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    epoch: int
    def __init__(self, lease_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("grace", "reason", "hand_back")
    GRACE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HAND_BACK_FIELD_NUMBER: _ClassVar[int]
    grace: _duration_pb2.Duration
    reason: str
    hand_back: _containers.RepeatedCompositeFieldContainer[HeldLease]
    def __init__(self, grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping[str, object]]] = ..., reason: _Optional[str] = ..., hand_back: _Optional[_Iterable[_Union[HeldLease, _Mapping[str, object]]]] = ...) -> None: ...

class ReadLog(_message.Message):
    __slots__ = ("lease_id", "epoch", "stream", "reader", "offset", "until")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    READER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    epoch: int
    stream: LogStream
    reader: int
    offset: int
    until: int
    def __init__(self, lease_id: _Optional[str] = ..., epoch: _Optional[int] = ..., stream: _Optional[_Union[LogStream, str]] = ..., reader: _Optional[int] = ..., offset: _Optional[int] = ..., until: _Optional[int] = ...) -> None: ...

class LogPiece(_message.Message):
    __slots__ = ("lease_id", "epoch", "stream", "reader", "offset", "data")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    READER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    epoch: int
    stream: LogStream
    reader: int
    offset: int
    data: bytes
    def __init__(self, lease_id: _Optional[str] = ..., epoch: _Optional[int] = ..., stream: _Optional[_Union[LogStream, str]] = ..., reader: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...
