from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as _remote_execution_pb2
from protos.rexec.scheduler.v1 import record_pb2 as _record_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_STATE_UNSPECIFIED: _ClassVar[WorkerState]
    READY: _ClassVar[WorkerState]
    DRAINING: _ClassVar[WorkerState]
    AWAY: _ClassVar[WorkerState]
    QUARANTINED: _ClassVar[WorkerState]
WORKER_STATE_UNSPECIFIED: WorkerState
READY: WorkerState
DRAINING: WorkerState
AWAY: WorkerState
QUARANTINED: WorkerState

class Instances(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class GetOverviewRequest(_message.Message):
    __slots__ = ("instances",)
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    instances: Instances
    def __init__(self, instances: _Optional[_Union[Instances, _Mapping[str, object]]] = ...) -> None: ...

class Overview(_message.Message):
    __slots__ = ("software_version", "uptime_seconds", "work", "platforms", "platforms_left_out", "workers", "invocations", "invocations_left_out", "tenants", "price", "pools", "pools_left_out")
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    PLATFORMS_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    INVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    INVOCATIONS_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    POOLS_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    software_version: str
    uptime_seconds: float
    work: Work
    platforms: _containers.RepeatedCompositeFieldContainer[WaitingPlatform]
    platforms_left_out: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerCount]
    invocations: _containers.RepeatedCompositeFieldContainer[Invocation]
    invocations_left_out: int
    tenants: _containers.RepeatedCompositeFieldContainer[TenantUse]
    price: Price
    pools: _containers.RepeatedCompositeFieldContainer[PoolCount]
    pools_left_out: int
    def __init__(self, software_version: _Optional[str] = ..., uptime_seconds: _Optional[float] = ..., work: _Optional[_Union[Work, _Mapping[str, object]]] = ..., platforms: _Optional[_Iterable[_Union[WaitingPlatform, _Mapping[str, object]]]] = ..., platforms_left_out: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerCount, _Mapping[str, object]]]] = ..., invocations: _Optional[_Iterable[_Union[Invocation, _Mapping[str, object]]]] = ..., invocations_left_out: _Optional[int] = ..., tenants: _Optional[_Iterable[_Union[TenantUse, _Mapping[str, object]]]] = ..., price: _Optional[_Union[Price, _Mapping[str, object]]] = ..., pools: _Optional[_Iterable[_Union[PoolCount, _Mapping[str, object]]]] = ..., pools_left_out: _Optional[int] = ...) -> None: ...

class Work(_message.Message):
    __slots__ = ("queued_operations", "executing_operations", "waiting_tasks", "running_tasks", "parked_tasks", "reasons", "expected_slot_seconds")
    QUEUED_OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    EXECUTING_OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    WAITING_TASKS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_TASKS_FIELD_NUMBER: _ClassVar[int]
    PARKED_TASKS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SLOT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queued_operations: int
    executing_operations: int
    waiting_tasks: int
    running_tasks: int
    parked_tasks: int
    reasons: _containers.RepeatedCompositeFieldContainer[WaitingReason]
    expected_slot_seconds: float
    def __init__(self, queued_operations: _Optional[int] = ..., executing_operations: _Optional[int] = ..., waiting_tasks: _Optional[int] = ..., running_tasks: _Optional[int] = ..., parked_tasks: _Optional[int] = ..., reasons: _Optional[_Iterable[_Union[WaitingReason, _Mapping[str, object]]]] = ..., expected_slot_seconds: _Optional[float] = ...) -> None: ...

class WaitingReason(_message.Message):
    __slots__ = ("category", "tasks")
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    category: str
    tasks: int
    def __init__(self, category: _Optional[str] = ..., tasks: _Optional[int] = ...) -> None: ...

class WaitingPlatform(_message.Message):
    __slots__ = ("instance_name", "properties", "tasks", "oldest_seconds", "expected_slot_seconds", "reason", "workers", "slots")
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SLOT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    instance_name: str
    properties: _containers.RepeatedCompositeFieldContainer[_remote_execution_pb2.Platform.Property]
    tasks: int
    oldest_seconds: float
    expected_slot_seconds: float
    reason: str
    workers: int
    slots: int
    def __init__(self, instance_name: _Optional[str] = ..., properties: _Optional[_Iterable[_Union[_remote_execution_pb2.Platform.Property, _Mapping[str, object]]]] = ..., tasks: _Optional[int] = ..., oldest_seconds: _Optional[float] = ..., expected_slot_seconds: _Optional[float] = ..., reason: _Optional[str] = ..., workers: _Optional[int] = ..., slots: _Optional[int] = ...) -> None: ...

class WorkerCount(_message.Message):
    __slots__ = ("state", "workers", "slots", "busy_slots")
    STATE_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SLOTS_FIELD_NUMBER: _ClassVar[int]
    state: WorkerState
    workers: int
    slots: int
    busy_slots: int
    def __init__(self, state: _Optional[_Union[WorkerState, str]] = ..., workers: _Optional[int] = ..., slots: _Optional[int] = ..., busy_slots: _Optional[int] = ...) -> None: ...

class Use(_message.Message):
    __slots__ = ("queued", "executing", "succeeded", "failed", "cached", "cancelled", "slots", "slot_seconds", "cost", "expected_slot_seconds")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    EXECUTING_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SLOT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SLOT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queued: int
    executing: int
    succeeded: int
    failed: int
    cached: int
    cancelled: int
    slots: int
    slot_seconds: float
    cost: float
    expected_slot_seconds: float
    def __init__(self, queued: _Optional[int] = ..., executing: _Optional[int] = ..., succeeded: _Optional[int] = ..., failed: _Optional[int] = ..., cached: _Optional[int] = ..., cancelled: _Optional[int] = ..., slots: _Optional[int] = ..., slot_seconds: _Optional[float] = ..., cost: _Optional[float] = ..., expected_slot_seconds: _Optional[float] = ...) -> None: ...

class Invocation(_message.Message):
    __slots__ = ("instance_name", "owner", "use", "first_seen_seconds", "idle_seconds", "eta_seconds")
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    USE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    instance_name: str
    owner: _record_pb2.Owner
    use: Use
    first_seen_seconds: float
    idle_seconds: float
    eta_seconds: float
    def __init__(self, instance_name: _Optional[str] = ..., owner: _Optional[_Union[_record_pb2.Owner, _Mapping[str, object]]] = ..., use: _Optional[_Union[Use, _Mapping[str, object]]] = ..., first_seen_seconds: _Optional[float] = ..., idle_seconds: _Optional[float] = ..., eta_seconds: _Optional[float] = ...) -> None: ...

class TenantUse(_message.Message):
    __slots__ = ("tenant", "use")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    use: Use
    def __init__(self, tenant: _Optional[str] = ..., use: _Optional[_Union[Use, _Mapping[str, object]]] = ...) -> None: ...

class Price(_message.Message):
    __slots__ = ("per_slot_hour", "currency")
    PER_SLOT_HOUR_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    per_slot_hour: float
    currency: str
    def __init__(self, per_slot_hour: _Optional[float] = ..., currency: _Optional[str] = ...) -> None: ...

class PoolCount(_message.Message):
    __slots__ = ("name", "properties", "slots", "min", "max", "target", "ready", "starting", "leaving", "problem", "price_per_hour", "cost_today", "autoscaler_away")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    STARTING_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    PRICE_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    COST_TODAY_FIELD_NUMBER: _ClassVar[int]
    AUTOSCALER_AWAY_FIELD_NUMBER: _ClassVar[int]
    name: str
    properties: _containers.RepeatedCompositeFieldContainer[_remote_execution_pb2.Platform.Property]
    slots: int
    min: int
    max: int
    target: int
    ready: int
    starting: int
    leaving: int
    problem: str
    price_per_hour: float
    cost_today: float
    autoscaler_away: bool
    def __init__(self, name: _Optional[str] = ..., properties: _Optional[_Iterable[_Union[_remote_execution_pb2.Platform.Property, _Mapping[str, object]]]] = ..., slots: _Optional[int] = ..., min: _Optional[int] = ..., max: _Optional[int] = ..., target: _Optional[int] = ..., ready: _Optional[int] = ..., starting: _Optional[int] = ..., leaving: _Optional[int] = ..., problem: _Optional[str] = ..., price_per_hour: _Optional[float] = ..., cost_today: _Optional[float] = ..., autoscaler_away: _Optional[bool] = ...) -> None: ...

class FindOperationsRequest(_message.Message):
    __slots__ = ("instances", "tenant", "user", "invocation", "stages", "page_size", "page_token")
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    INVOCATION_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    instances: Instances
    tenant: str
    user: str
    invocation: str
    stages: _containers.RepeatedScalarFieldContainer[_remote_execution_pb2.ExecutionStage.Value]
    page_size: int
    page_token: str
    def __init__(self, instances: _Optional[_Union[Instances, _Mapping[str, object]]] = ..., tenant: _Optional[str] = ..., user: _Optional[str] = ..., invocation: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[_remote_execution_pb2.ExecutionStage.Value, str]]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class FindOperationsResponse(_message.Message):
    __slots__ = ("operations", "next_page_token")
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedCompositeFieldContainer[FoundOperation]
    next_page_token: str
    def __init__(self, operations: _Optional[_Iterable[_Union[FoundOperation, _Mapping[str, object]]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class FoundOperation(_message.Message):
    __slots__ = ("name", "instance_name", "owner", "digest_function", "action_digest", "stage", "reason", "category", "worker", "action_class", "priority", "age_seconds", "running_seconds", "ahead", "summary", "attempts", "result", "expected_seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FUNCTION_FIELD_NUMBER: _ClassVar[int]
    ACTION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ACTION_CLASS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    instance_name: str
    owner: _record_pb2.Owner
    digest_function: _remote_execution_pb2.DigestFunction.Value
    action_digest: _remote_execution_pb2.Digest
    stage: _remote_execution_pb2.ExecutionStage.Value
    reason: str
    category: str
    worker: str
    action_class: str
    priority: int
    age_seconds: float
    running_seconds: float
    ahead: int
    summary: str
    attempts: int
    result: str
    expected_seconds: float
    def __init__(self, name: _Optional[str] = ..., instance_name: _Optional[str] = ..., owner: _Optional[_Union[_record_pb2.Owner, _Mapping[str, object]]] = ..., digest_function: _Optional[_Union[_remote_execution_pb2.DigestFunction.Value, str]] = ..., action_digest: _Optional[_Union[_remote_execution_pb2.Digest, _Mapping[str, object]]] = ..., stage: _Optional[_Union[_remote_execution_pb2.ExecutionStage.Value, str]] = ..., reason: _Optional[str] = ..., category: _Optional[str] = ..., worker: _Optional[str] = ..., action_class: _Optional[str] = ..., priority: _Optional[int] = ..., age_seconds: _Optional[float] = ..., running_seconds: _Optional[float] = ..., ahead: _Optional[int] = ..., summary: _Optional[str] = ..., attempts: _Optional[int] = ..., result: _Optional[str] = ..., expected_seconds: _Optional[float] = ...) -> None: ...

class FindWorkersRequest(_message.Message):
    __slots__ = ("instances", "states", "page_size", "page_token")
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    instances: Instances
    states: _containers.RepeatedScalarFieldContainer[WorkerState]
    page_size: int
    page_token: str
    def __init__(self, instances: _Optional[_Union[Instances, _Mapping[str, object]]] = ..., states: _Optional[_Iterable[_Union[WorkerState, str]]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class FindWorkersResponse(_message.Message):
    __slots__ = ("workers", "next_page_token")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[FoundWorker]
    next_page_token: str
    def __init__(self, workers: _Optional[_Iterable[_Union[FoundWorker, _Mapping[str, object]]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class FoundWorker(_message.Message):
    __slots__ = ("name", "worker_id", "state", "reason", "slots", "busy_slots", "properties", "instance_names", "resources", "software_version", "attached_seconds", "vitals", "running", "running_left_out")
    class ResourcesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SLOTS_FIELD_NUMBER: _ClassVar[int]
    PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAMES_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    VITALS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    worker_id: str
    state: WorkerState
    reason: str
    slots: int
    busy_slots: int
    properties: _containers.RepeatedCompositeFieldContainer[_remote_execution_pb2.Platform.Property]
    instance_names: _containers.RepeatedScalarFieldContainer[str]
    resources: _containers.ScalarMap[str, int]
    software_version: str
    attached_seconds: float
    vitals: Vitals
    running: _containers.RepeatedCompositeFieldContainer[HeldTask]
    running_left_out: int
    def __init__(self, name: _Optional[str] = ..., worker_id: _Optional[str] = ..., state: _Optional[_Union[WorkerState, str]] = ..., reason: _Optional[str] = ..., slots: _Optional[int] = ..., busy_slots: _Optional[int] = ..., properties: _Optional[_Iterable[_Union[_remote_execution_pb2.Platform.Property, _Mapping[str, object]]]] = ..., instance_names: _Optional[_Iterable[str]] = ..., resources: _Optional[_Mapping[str, int]] = ..., software_version: _Optional[str] = ..., attached_seconds: _Optional[float] = ..., vitals: _Optional[_Union[Vitals, _Mapping[str, object]]] = ..., running: _Optional[_Iterable[_Union[HeldTask, _Mapping[str, object]]]] = ..., running_left_out: _Optional[int] = ...) -> None: ...

class Vitals(_message.Message):
    __slots__ = ("age_seconds", "load", "cache_bytes", "free_disk_bytes", "available_memory_bytes")
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    age_seconds: float
    load: float
    cache_bytes: int
    free_disk_bytes: int
    available_memory_bytes: int
    def __init__(self, age_seconds: _Optional[float] = ..., load: _Optional[float] = ..., cache_bytes: _Optional[int] = ..., free_disk_bytes: _Optional[int] = ..., available_memory_bytes: _Optional[int] = ...) -> None: ...

class HeldTask(_message.Message):
    __slots__ = ("operation", "summary", "running_seconds")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    RUNNING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    operation: str
    summary: str
    running_seconds: float
    def __init__(self, operation: _Optional[str] = ..., summary: _Optional[str] = ..., running_seconds: _Optional[float] = ...) -> None: ...
