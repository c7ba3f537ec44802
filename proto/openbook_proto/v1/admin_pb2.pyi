from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SwapPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SWAP_PHASE_UNSPECIFIED: _ClassVar[SwapPhase]
    SWAP_PHASE_IDLE: _ClassVar[SwapPhase]
    SWAP_PHASE_PREPARING: _ClassVar[SwapPhase]
SWAP_PHASE_UNSPECIFIED: SwapPhase
SWAP_PHASE_IDLE: SwapPhase
SWAP_PHASE_PREPARING: SwapPhase

class ReplicaSnapshot(_message.Message):
    __slots__ = ("snapshot", "state", "error", "shards", "reason", "bytes", "device_bytes")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    state: str
    error: str
    shards: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    bytes: int
    device_bytes: int
    def __init__(self, snapshot: _Optional[str] = ..., state: _Optional[str] = ..., error: _Optional[str] = ..., shards: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ..., bytes: _Optional[int] = ..., device_bytes: _Optional[int] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("name", "address", "snapshots", "epoch", "bytes_limit", "bytes", "device", "device_free", "device_total")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FREE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TOTAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    snapshots: _containers.RepeatedCompositeFieldContainer[ReplicaSnapshot]
    epoch: int
    bytes_limit: int
    bytes: int
    device: str
    device_free: int
    device_total: int
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., snapshots: _Optional[_Iterable[_Union[ReplicaSnapshot, _Mapping]]] = ..., epoch: _Optional[int] = ..., bytes_limit: _Optional[int] = ..., bytes: _Optional[int] = ..., device: _Optional[str] = ..., device_free: _Optional[int] = ..., device_total: _Optional[int] = ...) -> None: ...

class Router(_message.Message):
    __slots__ = ("name", "address", "epoch")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    epoch: int
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class KnownSnapshot(_message.Message):
    __slots__ = ("snapshot", "url", "shards", "documents", "chunks")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    url: str
    shards: int
    documents: int
    chunks: int
    def __init__(self, snapshot: _Optional[str] = ..., url: _Optional[str] = ..., shards: _Optional[int] = ..., documents: _Optional[int] = ..., chunks: _Optional[int] = ...) -> None: ...

class SwapTerms(_message.Message):
    __slots__ = ("deadline_seconds", "quorum", "canary_percent", "standby_seconds", "watch_seconds", "max_error_share", "max_empty_share", "max_p99_ms", "rolling")
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    CANARY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    STANDBY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WATCH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_ERROR_SHARE_FIELD_NUMBER: _ClassVar[int]
    MAX_EMPTY_SHARE_FIELD_NUMBER: _ClassVar[int]
    MAX_P99_MS_FIELD_NUMBER: _ClassVar[int]
    ROLLING_FIELD_NUMBER: _ClassVar[int]
    deadline_seconds: float
    quorum: int
    canary_percent: float
    standby_seconds: float
    watch_seconds: float
    max_error_share: float
    max_empty_share: float
    max_p99_ms: float
    rolling: bool
    def __init__(self, deadline_seconds: _Optional[float] = ..., quorum: _Optional[int] = ..., canary_percent: _Optional[float] = ..., standby_seconds: _Optional[float] = ..., watch_seconds: _Optional[float] = ..., max_error_share: _Optional[float] = ..., max_empty_share: _Optional[float] = ..., max_p99_ms: _Optional[float] = ..., rolling: _Optional[bool] = ...) -> None: ...

class DatabaseState(_message.Message):
    __slots__ = ("database", "epoch", "live", "previous", "candidate", "phase", "snapshots", "replicas", "routers", "moved_by", "reason", "terms", "fence", "expires", "watched_until", "standby_until", "first")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    ROUTERS_FIELD_NUMBER: _ClassVar[int]
    MOVED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    WATCHED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    STANDBY_UNTIL_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    database: str
    epoch: int
    live: str
    previous: str
    candidate: str
    phase: SwapPhase
    snapshots: _containers.RepeatedCompositeFieldContainer[KnownSnapshot]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    routers: _containers.RepeatedCompositeFieldContainer[Router]
    moved_by: str
    reason: str
    terms: SwapTerms
    fence: int
    expires: float
    watched_until: float
    standby_until: float
    first: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, database: _Optional[str] = ..., epoch: _Optional[int] = ..., live: _Optional[str] = ..., previous: _Optional[str] = ..., candidate: _Optional[str] = ..., phase: _Optional[_Union[SwapPhase, str]] = ..., snapshots: _Optional[_Iterable[_Union[KnownSnapshot, _Mapping]]] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., routers: _Optional[_Iterable[_Union[Router, _Mapping]]] = ..., moved_by: _Optional[str] = ..., reason: _Optional[str] = ..., terms: _Optional[_Union[SwapTerms, _Mapping]] = ..., fence: _Optional[int] = ..., expires: _Optional[float] = ..., watched_until: _Optional[float] = ..., standby_until: _Optional[float] = ..., first: _Optional[_Iterable[str]] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("database", "url")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    database: str
    url: str
    def __init__(self, database: _Optional[str] = ..., url: _Optional[str] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("snapshot", "state")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    state: DatabaseState
    def __init__(self, snapshot: _Optional[str] = ..., state: _Optional[_Union[DatabaseState, _Mapping]] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("database", "snapshot", "terms", "force")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    database: str
    snapshot: str
    terms: SwapTerms
    force: bool
    def __init__(self, database: _Optional[str] = ..., snapshot: _Optional[str] = ..., terms: _Optional[_Union[SwapTerms, _Mapping]] = ..., force: _Optional[bool] = ...) -> None: ...

class PrepareReply(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: DatabaseState
    def __init__(self, state: _Optional[_Union[DatabaseState, _Mapping]] = ...) -> None: ...

class ActivateRequest(_message.Message):
    __slots__ = ("database", "snapshot", "expected_epoch")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    database: str
    snapshot: str
    expected_epoch: int
    def __init__(self, database: _Optional[str] = ..., snapshot: _Optional[str] = ..., expected_epoch: _Optional[int] = ...) -> None: ...

class ActivateReply(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: DatabaseState
    def __init__(self, state: _Optional[_Union[DatabaseState, _Mapping]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("database",)
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    database: str
    def __init__(self, database: _Optional[str] = ...) -> None: ...

class RollbackReply(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: DatabaseState
    def __init__(self, state: _Optional[_Union[DatabaseState, _Mapping]] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("database", "snapshot")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    database: str
    snapshot: str
    def __init__(self, database: _Optional[str] = ..., snapshot: _Optional[str] = ...) -> None: ...

class AbortReply(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: DatabaseState
    def __init__(self, state: _Optional[_Union[DatabaseState, _Mapping]] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("database", "snapshot")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    database: str
    snapshot: str
    def __init__(self, database: _Optional[str] = ..., snapshot: _Optional[str] = ...) -> None: ...

class ReplicaPlan(_message.Message):
    __slots__ = ("name", "bytes", "bytes_new", "bytes_shared", "bytes_limit", "mode", "device", "device_new", "device_free", "device_total", "device_error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_NEW_FIELD_NUMBER: _ClassVar[int]
    BYTES_SHARED_FIELD_NUMBER: _ClassVar[int]
    BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NEW_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FREE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes: int
    bytes_new: int
    bytes_shared: int
    bytes_limit: int
    mode: str
    device: str
    device_new: int
    device_free: int
    device_total: int
    device_error: str
    def __init__(self, name: _Optional[str] = ..., bytes: _Optional[int] = ..., bytes_new: _Optional[int] = ..., bytes_shared: _Optional[int] = ..., bytes_limit: _Optional[int] = ..., mode: _Optional[str] = ..., device: _Optional[str] = ..., device_new: _Optional[int] = ..., device_free: _Optional[int] = ..., device_total: _Optional[int] = ..., device_error: _Optional[str] = ...) -> None: ...

class PlanReply(_message.Message):
    __slots__ = ("snapshot", "replicas", "fits", "fits_rolling")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    FITS_FIELD_NUMBER: _ClassVar[int]
    FITS_ROLLING_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaPlan]
    fits: bool
    fits_rolling: bool
    def __init__(self, snapshot: _Optional[str] = ..., replicas: _Optional[_Iterable[_Union[ReplicaPlan, _Mapping]]] = ..., fits: _Optional[bool] = ..., fits_rolling: _Optional[bool] = ...) -> None: ...

class RetireRequest(_message.Message):
    __slots__ = ("database",)
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    database: str
    def __init__(self, database: _Optional[str] = ...) -> None: ...

class RetireReply(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: DatabaseState
    def __init__(self, state: _Optional[_Union[DatabaseState, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("database", "interval_seconds")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    database: str
    interval_seconds: float
    def __init__(self, database: _Optional[str] = ..., interval_seconds: _Optional[float] = ...) -> None: ...

class WatchReply(_message.Message):
    __slots__ = ("databases",)
    DATABASES_FIELD_NUMBER: _ClassVar[int]
    databases: _containers.RepeatedCompositeFieldContainer[DatabaseState]
    def __init__(self, databases: _Optional[_Iterable[_Union[DatabaseState, _Mapping]]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("database",)
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    database: str
    def __init__(self, database: _Optional[str] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("databases",)
    DATABASES_FIELD_NUMBER: _ClassVar[int]
    databases: _containers.RepeatedCompositeFieldContainer[DatabaseState]
    def __init__(self, databases: _Optional[_Iterable[_Union[DatabaseState, _Mapping]]] = ...) -> None: ...
