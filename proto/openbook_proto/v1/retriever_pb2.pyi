from openbook_proto.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Document(_message.Message):
    __slots__ = ("number", "external_id", "title", "uri", "licence", "metadata_json")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    number: int
    external_id: str
    title: str
    uri: str
    licence: str
    metadata_json: str
    def __init__(self, number: _Optional[int] = ..., external_id: _Optional[str] = ..., title: _Optional[str] = ..., uri: _Optional[str] = ..., licence: _Optional[str] = ..., metadata_json: _Optional[str] = ...) -> None: ...

class Fields(_message.Message):
    __slots__ = ("tokens", "text", "document")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    tokens: bool
    text: bool
    document: bool
    def __init__(self, tokens: _Optional[bool] = ..., text: _Optional[bool] = ..., document: _Optional[bool] = ...) -> None: ...

class Chunks(_message.Message):
    __slots__ = ("chunk_length", "token_type", "tokens", "lengths", "texts", "continuation_texts", "document_index", "documents")
    CHUNK_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_TYPE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    CONTINUATION_TEXTS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    chunk_length: int
    token_type: _common_pb2.ElementType
    tokens: bytes
    lengths: bytes
    texts: _containers.RepeatedScalarFieldContainer[str]
    continuation_texts: _containers.RepeatedScalarFieldContainer[str]
    document_index: _containers.RepeatedScalarFieldContainer[int]
    documents: _containers.RepeatedCompositeFieldContainer[Document]
    def __init__(self, chunk_length: _Optional[int] = ..., token_type: _Optional[_Union[_common_pb2.ElementType, str]] = ..., tokens: _Optional[bytes] = ..., lengths: _Optional[bytes] = ..., texts: _Optional[_Iterable[str]] = ..., continuation_texts: _Optional[_Iterable[str]] = ..., document_index: _Optional[_Iterable[int]] = ..., documents: _Optional[_Iterable[_Union[Document, _Mapping]]] = ...) -> None: ...

class Exclusion(_message.Message):
    __slots__ = ("document_ids",)
    DOCUMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    document_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, document_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class FilterValue(_message.Message):
    __slots__ = ("text", "number", "flag")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    text: str
    number: float
    flag: bool
    def __init__(self, text: _Optional[str] = ..., number: _Optional[float] = ..., flag: _Optional[bool] = ...) -> None: ...

class FilterValues(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[FilterValue]
    def __init__(self, values: _Optional[_Iterable[_Union[FilterValue, _Mapping]]] = ...) -> None: ...

class FilterRange(_message.Message):
    __slots__ = ("at_least", "above", "at_most", "below")
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    ABOVE_FIELD_NUMBER: _ClassVar[int]
    AT_MOST_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    at_least: FilterValue
    above: FilterValue
    at_most: FilterValue
    below: FilterValue
    def __init__(self, at_least: _Optional[_Union[FilterValue, _Mapping]] = ..., above: _Optional[_Union[FilterValue, _Mapping]] = ..., at_most: _Optional[_Union[FilterValue, _Mapping]] = ..., below: _Optional[_Union[FilterValue, _Mapping]] = ...) -> None: ...

class FilterCondition(_message.Message):
    __slots__ = ("column", "any_of", "range", "negate")
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    ANY_OF_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    NEGATE_FIELD_NUMBER: _ClassVar[int]
    column: str
    any_of: FilterValues
    range: FilterRange
    negate: bool
    def __init__(self, column: _Optional[str] = ..., any_of: _Optional[_Union[FilterValues, _Mapping]] = ..., range: _Optional[_Union[FilterRange, _Mapping]] = ..., negate: _Optional[bool] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("all_of",)
    ALL_OF_FIELD_NUMBER: _ClassVar[int]
    all_of: _containers.RepeatedCompositeFieldContainer[FilterCondition]
    def __init__(self, all_of: _Optional[_Iterable[_Union[FilterCondition, _Mapping]]] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("database", "snapshot", "min_epoch", "queries", "k", "exclusions", "min_score", "fields", "allow_partial", "shard", "filters", "shards")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    MIN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIONS_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    database: str
    snapshot: str
    min_epoch: int
    queries: _common_pb2.Vectors
    k: int
    exclusions: _containers.RepeatedCompositeFieldContainer[Exclusion]
    min_score: float
    fields: Fields
    allow_partial: bool
    shard: int
    filters: _containers.RepeatedCompositeFieldContainer[Filter]
    shards: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, database: _Optional[str] = ..., snapshot: _Optional[str] = ..., min_epoch: _Optional[int] = ..., queries: _Optional[_Union[_common_pb2.Vectors, _Mapping]] = ..., k: _Optional[int] = ..., exclusions: _Optional[_Iterable[_Union[Exclusion, _Mapping]]] = ..., min_score: _Optional[float] = ..., fields: _Optional[_Union[Fields, _Mapping]] = ..., allow_partial: _Optional[bool] = ..., shard: _Optional[int] = ..., filters: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ..., shards: _Optional[_Iterable[int]] = ...) -> None: ...

class MissingShard(_message.Message):
    __slots__ = ("shard", "chunks", "why")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    shard: int
    chunks: int
    why: str
    def __init__(self, shard: _Optional[int] = ..., chunks: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class Coverage(_message.Message):
    __slots__ = ("chunks", "answered_chunks", "missing")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    chunks: int
    answered_chunks: int
    missing: _containers.RepeatedCompositeFieldContainer[MissingShard]
    def __init__(self, chunks: _Optional[int] = ..., answered_chunks: _Optional[int] = ..., missing: _Optional[_Iterable[_Union[MissingShard, _Mapping]]] = ...) -> None: ...

class SearchReply(_message.Message):
    __slots__ = ("snapshot", "epoch", "queries", "k", "ids", "scores", "chunks", "unknown_exclusions", "missing_shards", "restarts", "timings", "coverage")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_EXCLUSIONS_FIELD_NUMBER: _ClassVar[int]
    MISSING_SHARDS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    epoch: int
    queries: int
    k: int
    ids: bytes
    scores: bytes
    chunks: Chunks
    unknown_exclusions: int
    missing_shards: _containers.RepeatedScalarFieldContainer[int]
    restarts: int
    timings: _common_pb2.Timings
    coverage: Coverage
    def __init__(self, snapshot: _Optional[str] = ..., epoch: _Optional[int] = ..., queries: _Optional[int] = ..., k: _Optional[int] = ..., ids: _Optional[bytes] = ..., scores: _Optional[bytes] = ..., chunks: _Optional[_Union[Chunks, _Mapping]] = ..., unknown_exclusions: _Optional[int] = ..., missing_shards: _Optional[_Iterable[int]] = ..., restarts: _Optional[int] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., coverage: _Optional[_Union[Coverage, _Mapping]] = ...) -> None: ...

class SearchTextRequest(_message.Message):
    __slots__ = ("texts", "search")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    search: SearchRequest
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., search: _Optional[_Union[SearchRequest, _Mapping]] = ...) -> None: ...

class SearchTextReply(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: SearchReply
    def __init__(self, result: _Optional[_Union[SearchReply, _Mapping]] = ...) -> None: ...

class GetChunksRequest(_message.Message):
    __slots__ = ("database", "snapshot", "ids", "fields", "shard")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    database: str
    snapshot: str
    ids: bytes
    fields: Fields
    shard: int
    def __init__(self, database: _Optional[str] = ..., snapshot: _Optional[str] = ..., ids: _Optional[bytes] = ..., fields: _Optional[_Union[Fields, _Mapping]] = ..., shard: _Optional[int] = ...) -> None: ...

class GetChunksReply(_message.Message):
    __slots__ = ("snapshot", "chunks", "timings")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    chunks: Chunks
    timings: _common_pb2.Timings
    def __init__(self, snapshot: _Optional[str] = ..., chunks: _Optional[_Union[Chunks, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("database", "snapshot")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    database: str
    snapshot: str
    def __init__(self, database: _Optional[str] = ..., snapshot: _Optional[str] = ...) -> None: ...

class ShardState(_message.Message):
    __slots__ = ("shard", "first_row", "rows", "ready_replicas")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    READY_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    shard: int
    first_row: int
    rows: int
    ready_replicas: int
    def __init__(self, shard: _Optional[int] = ..., first_row: _Optional[int] = ..., rows: _Optional[int] = ..., ready_replicas: _Optional[int] = ...) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("database", "snapshot", "live_snapshot", "epoch", "contract_json", "documents", "chunks", "shards")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    LIVE_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_JSON_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    database: str
    snapshot: str
    live_snapshot: str
    epoch: int
    contract_json: str
    documents: int
    chunks: int
    shards: _containers.RepeatedCompositeFieldContainer[ShardState]
    def __init__(self, database: _Optional[str] = ..., snapshot: _Optional[str] = ..., live_snapshot: _Optional[str] = ..., epoch: _Optional[int] = ..., contract_json: _Optional[str] = ..., documents: _Optional[int] = ..., chunks: _Optional[int] = ..., shards: _Optional[_Iterable[_Union[ShardState, _Mapping]]] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("database", "snapshot", "holder", "ttl_seconds")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    database: str
    snapshot: str
    holder: str
    ttl_seconds: float
    def __init__(self, database: _Optional[str] = ..., snapshot: _Optional[str] = ..., holder: _Optional[str] = ..., ttl_seconds: _Optional[float] = ...) -> None: ...

class PinReply(_message.Message):
    __slots__ = ("snapshot", "epoch")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    epoch: int
    def __init__(self, snapshot: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class UnpinRequest(_message.Message):
    __slots__ = ("database", "snapshot", "holder")
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    database: str
    snapshot: str
    holder: str
    def __init__(self, database: _Optional[str] = ..., snapshot: _Optional[str] = ..., holder: _Optional[str] = ...) -> None: ...

class UnpinReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
