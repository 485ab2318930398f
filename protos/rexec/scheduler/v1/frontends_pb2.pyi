import datetime

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as _remote_execution_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.rpc import status_pb2 as _status_pb2
from protos.rexec.scheduler.v1 import record_pb2 as _record_pb2
from protos.rexec.worker.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FromFrontend(_message.Message):
    __slots__ = ("hello", "requests")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    hello: FrontendHello
    requests: _containers.RepeatedCompositeFieldContainer[FrontendRequest]
    def __init__(self, hello: _Optional[_Union[FrontendHello, _Mapping[str, object]]] = ..., requests: _Optional[_Iterable[_Union[FrontendRequest, _Mapping[str, object]]]] = ...) -> None: ...

class ToFrontend(_message.Message):
    __slots__ = ("welcome", "answers")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    welcome: FrontendWelcome
    answers: _containers.RepeatedCompositeFieldContainer[FrontendAnswer]
    def __init__(self, welcome: _Optional[_Union[FrontendWelcome, _Mapping[str, object]]] = ..., answers: _Optional[_Iterable[_Union[FrontendAnswer, _Mapping[str, object]]]] = ...) -> None: ...

class FrontendHello(_message.Message):
    __slots__ = ("frontend_name", "session_id", "software_version")
    FRONTEND_NAME_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    frontend_name: str
    session_id: str
    software_version: str
    def __init__(self, frontend_name: _Optional[str] = ..., session_id: _Optional[str] = ..., software_version: _Optional[str] = ...) -> None: ...

class FrontendWelcome(_message.Message):
    __slots__ = ("scheduler_name", "generation", "heartbeat_interval")
    SCHEDULER_NAME_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    scheduler_name: str
    generation: int
    heartbeat_interval: _duration_pb2.Duration
    def __init__(self, scheduler_name: _Optional[str] = ..., generation: _Optional[int] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping[str, object]]] = ...) -> None: ...

class FrontendRequest(_message.Message):
    __slots__ = ("id", "submit", "record", "watch", "unwatch", "state", "page", "cancel", "forget")
    class Submit(_message.Message):
        __slots__ = ("name", "candidate", "inlining")
        NAME_FIELD_NUMBER: _ClassVar[int]
        CANDIDATE_FIELD_NUMBER: _ClassVar[int]
        INLINING_FIELD_NUMBER: _ClassVar[int]
        name: str
        candidate: _record_pb2.Candidate
        inlining: _record_pb2.Inlining
        def __init__(self, name: _Optional[str] = ..., candidate: _Optional[_Union[_record_pb2.Candidate, _Mapping[str, object]]] = ..., inlining: _Optional[_Union[_record_pb2.Inlining, _Mapping[str, object]]] = ...) -> None: ...
    class Record(_message.Message):
        __slots__ = ("name", "candidate", "inlining", "response")
        NAME_FIELD_NUMBER: _ClassVar[int]
        CANDIDATE_FIELD_NUMBER: _ClassVar[int]
        INLINING_FIELD_NUMBER: _ClassVar[int]
        RESPONSE_FIELD_NUMBER: _ClassVar[int]
        name: str
        candidate: _record_pb2.Candidate
        inlining: _record_pb2.Inlining
        response: _remote_execution_pb2.ExecuteResponse
        def __init__(self, name: _Optional[str] = ..., candidate: _Optional[_Union[_record_pb2.Candidate, _Mapping[str, object]]] = ..., inlining: _Optional[_Union[_record_pb2.Inlining, _Mapping[str, object]]] = ..., response: _Optional[_Union[_remote_execution_pb2.ExecuteResponse, _Mapping[str, object]]] = ...) -> None: ...
    class Watch(_message.Message):
        __slots__ = ("name",)
        NAME_FIELD_NUMBER: _ClassVar[int]
        name: str
        def __init__(self, name: _Optional[str] = ...) -> None: ...
    class Unwatch(_message.Message):
        __slots__ = ("id",)
        ID_FIELD_NUMBER: _ClassVar[int]
        id: int
        def __init__(self, id: _Optional[int] = ...) -> None: ...
    class NamedOperation(_message.Message):
        __slots__ = ("name",)
        NAME_FIELD_NUMBER: _ClassVar[int]
        name: str
        def __init__(self, name: _Optional[str] = ...) -> None: ...
    class Page(_message.Message):
        __slots__ = ("instance_name", "stages", "after", "limit")
        INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
        STAGES_FIELD_NUMBER: _ClassVar[int]
        AFTER_FIELD_NUMBER: _ClassVar[int]
        LIMIT_FIELD_NUMBER: _ClassVar[int]
        instance_name: str
        stages: _containers.RepeatedScalarFieldContainer[_remote_execution_pb2.ExecutionStage.Value]
        after: str
        limit: int
        def __init__(self, instance_name: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[_remote_execution_pb2.ExecutionStage.Value, str]]] = ..., after: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    WATCH_FIELD_NUMBER: _ClassVar[int]
    UNWATCH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    id: int
    submit: FrontendRequest.Submit
    record: FrontendRequest.Record
    watch: FrontendRequest.Watch
    unwatch: FrontendRequest.Unwatch
    state: FrontendRequest.NamedOperation
    page: FrontendRequest.Page
    cancel: FrontendRequest.NamedOperation
    forget: FrontendRequest.NamedOperation
    def __init__(self, id: _Optional[int] = ..., submit: _Optional[_Union[FrontendRequest.Submit, _Mapping[str, object]]] = ..., record: _Optional[_Union[FrontendRequest.Record, _Mapping[str, object]]] = ..., watch: _Optional[_Union[FrontendRequest.Watch, _Mapping[str, object]]] = ..., unwatch: _Optional[_Union[FrontendRequest.Unwatch, _Mapping[str, object]]] = ..., state: _Optional[_Union[FrontendRequest.NamedOperation, _Mapping[str, object]]] = ..., page: _Optional[_Union[FrontendRequest.Page, _Mapping[str, object]]] = ..., cancel: _Optional[_Union[FrontendRequest.NamedOperation, _Mapping[str, object]]] = ..., forget: _Optional[_Union[FrontendRequest.NamedOperation, _Mapping[str, object]]] = ...) -> None: ...

class FrontendAnswer(_message.Message):
    __slots__ = ("id", "failure", "state", "page", "done")
    class Page(_message.Message):
        __slots__ = ("states", "cut")
        STATES_FIELD_NUMBER: _ClassVar[int]
        CUT_FIELD_NUMBER: _ClassVar[int]
        states: _containers.RepeatedCompositeFieldContainer[_record_pb2.OperationState]
        cut: bool
        def __init__(self, states: _Optional[_Iterable[_Union[_record_pb2.OperationState, _Mapping[str, object]]]] = ..., cut: _Optional[bool] = ...) -> None: ...
    class Done(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    id: int
    failure: _status_pb2.Status
    state: _record_pb2.OperationState
    page: FrontendAnswer.Page
    done: FrontendAnswer.Done
    def __init__(self, id: _Optional[int] = ..., failure: _Optional[_Union[_status_pb2.Status, _Mapping[str, object]]] = ..., state: _Optional[_Union[_record_pb2.OperationState, _Mapping[str, object]]] = ..., page: _Optional[_Union[FrontendAnswer.Page, _Mapping[str, object]]] = ..., done: _Optional[_Union[FrontendAnswer.Done, _Mapping[str, object]]] = ...) -> None: ...

class ReadLogRequest(_message.Message):
    __slots__ = ("operation_name", "stream", "offset")
    OPERATION_NAME_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    operation_name: str
    stream: _worker_pb2.LogStream
    offset: int
    def __init__(self, operation_name: _Optional[str] = ..., stream: _Optional[_Union[_worker_pb2.LogStream, str]] = ..., offset: _Optional[int] = ...) -> None: ...

class ReadLogResponse(_message.Message):
    __slots__ = ("data", "starts_over", "rest")
    class Rest(_message.Message):
        __slots__ = ("offset", "state")
        OFFSET_FIELD_NUMBER: _ClassVar[int]
        STATE_FIELD_NUMBER: _ClassVar[int]
        offset: int
        state: _record_pb2.OperationState
        def __init__(self, offset: _Optional[int] = ..., state: _Optional[_Union[_record_pb2.OperationState, _Mapping[str, object]]] = ...) -> None: ...
    DATA_FIELD_NUMBER: _ClassVar[int]
    STARTS_OVER_FIELD_NUMBER: _ClassVar[int]
    REST_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    starts_over: bool
    rest: ReadLogResponse.Rest
    def __init__(self, data: _Optional[bytes] = ..., starts_over: _Optional[bool] = ..., rest: _Optional[_Union[ReadLogResponse.Rest, _Mapping[str, object]]] = ...) -> None: ...
