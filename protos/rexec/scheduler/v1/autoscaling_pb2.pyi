from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as _remote_execution_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FromAutoscaler(_message.Message):
    __slots__ = ("pools", "leave", "ended")
    POOLS_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    pools: Pools
    leave: Leave
    ended: Ended
    def __init__(self, pools: _Optional[_Union[Pools, _Mapping[str, object]]] = ..., leave: _Optional[_Union[Leave, _Mapping[str, object]]] = ..., ended: _Optional[_Union[Ended, _Mapping[str, object]]] = ...) -> None: ...

class Pools(_message.Message):
    __slots__ = ("pools",)
    POOLS_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[Pool]
    def __init__(self, pools: _Optional[_Iterable[_Union[Pool, _Mapping[str, object]]]] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("name", "properties", "patterns", "instance_names", "slots", "cpu_millis", "memory_bytes", "min", "max", "target", "ready", "starting", "leaving", "problem", "start_seconds", "price_per_hour", "cost_today")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    PATTERNS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAMES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CPU_MILLIS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    STARTING_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    START_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PRICE_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    COST_TODAY_FIELD_NUMBER: _ClassVar[int]
    name: str
    properties: _containers.RepeatedCompositeFieldContainer[_remote_execution_pb2.Platform.Property]
    patterns: _containers.RepeatedCompositeFieldContainer[_remote_execution_pb2.Platform.Property]
    instance_names: _containers.RepeatedScalarFieldContainer[str]
    slots: int
    cpu_millis: int
    memory_bytes: int
    min: int
    max: int
    target: int
    ready: int
    starting: int
    leaving: int
    problem: str
    start_seconds: float
    price_per_hour: float
    cost_today: float
    def __init__(self, name: _Optional[str] = ..., properties: _Optional[_Iterable[_Union[_remote_execution_pb2.Platform.Property, _Mapping[str, object]]]] = ..., patterns: _Optional[_Iterable[_Union[_remote_execution_pb2.Platform.Property, _Mapping[str, object]]]] = ..., instance_names: _Optional[_Iterable[str]] = ..., slots: _Optional[int] = ..., cpu_millis: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., min: _Optional[int] = ..., max: _Optional[int] = ..., target: _Optional[int] = ..., ready: _Optional[int] = ..., starting: _Optional[int] = ..., leaving: _Optional[int] = ..., problem: _Optional[str] = ..., start_seconds: _Optional[float] = ..., price_per_hour: _Optional[float] = ..., cost_today: _Optional[float] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("names", "grace_seconds", "reason", "only_idle")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ONLY_IDLE_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    grace_seconds: float
    reason: str
    only_idle: bool
    def __init__(self, names: _Optional[_Iterable[str]] = ..., grace_seconds: _Optional[float] = ..., reason: _Optional[str] = ..., only_idle: _Optional[bool] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class ToAutoscaler(_message.Message):
    __slots__ = ("waiting", "workers", "offers", "tenants", "tasks_left_out")
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    TASKS_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    waiting: _containers.RepeatedCompositeFieldContainer[WaitingWork]
    workers: _containers.RepeatedCompositeFieldContainer[AttachedWorker]
    offers: _containers.RepeatedCompositeFieldContainer[Offered]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantWork]
    tasks_left_out: int
    def __init__(self, waiting: _Optional[_Iterable[_Union[WaitingWork, _Mapping[str, object]]]] = ..., workers: _Optional[_Iterable[_Union[AttachedWorker, _Mapping[str, object]]]] = ..., offers: _Optional[_Iterable[_Union[Offered, _Mapping[str, object]]]] = ..., tenants: _Optional[_Iterable[_Union[TenantWork, _Mapping[str, object]]]] = ..., tasks_left_out: _Optional[int] = ...) -> None: ...

class WaitingWork(_message.Message):
    __slots__ = ("instance_name", "properties", "tenant", "slots", "cpu_millis", "memory_bytes", "tasks", "slot_seconds", "longest_seconds", "oldest_seconds", "limited_tasks")
    INSTANCE_NAME_FIELD_NUMBER: _ClassVar[int]
    PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CPU_MILLIS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    SLOT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LONGEST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LIMITED_TASKS_FIELD_NUMBER: _ClassVar[int]
    instance_name: str
    properties: _containers.RepeatedCompositeFieldContainer[_remote_execution_pb2.Platform.Property]
    tenant: str
    slots: int
    cpu_millis: int
    memory_bytes: int
    tasks: int
    slot_seconds: float
    longest_seconds: float
    oldest_seconds: float
    limited_tasks: int
    def __init__(self, instance_name: _Optional[str] = ..., properties: _Optional[_Iterable[_Union[_remote_execution_pb2.Platform.Property, _Mapping[str, object]]]] = ..., tenant: _Optional[str] = ..., slots: _Optional[int] = ..., cpu_millis: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., tasks: _Optional[int] = ..., slot_seconds: _Optional[float] = ..., longest_seconds: _Optional[float] = ..., oldest_seconds: _Optional[float] = ..., limited_tasks: _Optional[int] = ...) -> None: ...

class Offered(_message.Message):
    __slots__ = ("properties", "instance_names", "cpu_millis", "memory_bytes")
    PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_NAMES_FIELD_NUMBER: _ClassVar[int]
    CPU_MILLIS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    properties: _containers.RepeatedCompositeFieldContainer[_remote_execution_pb2.Platform.Property]
    instance_names: _containers.RepeatedScalarFieldContainer[str]
    cpu_millis: int
    memory_bytes: int
    def __init__(self, properties: _Optional[_Iterable[_Union[_remote_execution_pb2.Platform.Property, _Mapping[str, object]]]] = ..., instance_names: _Optional[_Iterable[str]] = ..., cpu_millis: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class AttachedWorker(_message.Message):
    __slots__ = ("name", "worker_id", "offer", "slots", "busy_slots", "leases", "idle_seconds", "rest_seconds", "draining", "away", "quarantined", "tenants")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SLOTS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    AWAY_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    worker_id: str
    offer: int
    slots: int
    busy_slots: int
    leases: int
    idle_seconds: float
    rest_seconds: float
    draining: bool
    away: bool
    quarantined: bool
    tenants: _containers.RepeatedCompositeFieldContainer[TenantSlots]
    def __init__(self, name: _Optional[str] = ..., worker_id: _Optional[str] = ..., offer: _Optional[int] = ..., slots: _Optional[int] = ..., busy_slots: _Optional[int] = ..., leases: _Optional[int] = ..., idle_seconds: _Optional[float] = ..., rest_seconds: _Optional[float] = ..., draining: _Optional[bool] = ..., away: _Optional[bool] = ..., quarantined: _Optional[bool] = ..., tenants: _Optional[_Iterable[_Union[TenantSlots, _Mapping[str, object]]]] = ...) -> None: ...

class TenantSlots(_message.Message):
    __slots__ = ("tenant", "slots")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    slots: int
    def __init__(self, tenant: _Optional[str] = ..., slots: _Optional[int] = ...) -> None: ...

class TenantWork(_message.Message):
    __slots__ = ("tenant", "slots", "slot_seconds")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SLOT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    slots: int
    slot_seconds: float
    def __init__(self, tenant: _Optional[str] = ..., slots: _Optional[int] = ..., slot_seconds: _Optional[float] = ...) -> None: ...
