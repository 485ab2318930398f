from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as _remote_execution_pb2
from protos.rexec.scheduler.v1 import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DrainWorkersRequest(_message.Message):
    __slots__ = ("instances", "names", "properties", "all", "grace_seconds", "reason")
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    instances: _status_pb2.Instances
    names: _containers.RepeatedScalarFieldContainer[str]
    properties: _containers.RepeatedCompositeFieldContainer[_remote_execution_pb2.Platform.Property]
    all: bool
    grace_seconds: float
    reason: str
    def __init__(self, instances: _Optional[_Union[_status_pb2.Instances, _Mapping[str, object]]] = ..., names: _Optional[_Iterable[str]] = ..., properties: _Optional[_Iterable[_Union[_remote_execution_pb2.Platform.Property, _Mapping[str, object]]]] = ..., all: _Optional[bool] = ..., grace_seconds: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class DrainWorkersResponse(_message.Message):
    __slots__ = ("workers", "workers_left_out", "unknown")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[DrainedWorker]
    workers_left_out: int
    unknown: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, workers: _Optional[_Iterable[_Union[DrainedWorker, _Mapping[str, object]]]] = ..., workers_left_out: _Optional[int] = ..., unknown: _Optional[_Iterable[str]] = ...) -> None: ...

class DrainedWorker(_message.Message):
    __slots__ = ("name", "worker_id", "kept", "handed_back", "away")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    HANDED_BACK_FIELD_NUMBER: _ClassVar[int]
    AWAY_FIELD_NUMBER: _ClassVar[int]
    name: str
    worker_id: str
    kept: int
    handed_back: int
    away: bool
    def __init__(self, name: _Optional[str] = ..., worker_id: _Optional[str] = ..., kept: _Optional[int] = ..., handed_back: _Optional[int] = ..., away: _Optional[bool] = ...) -> None: ...
