from openbook_proto.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EmbedRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EMBED_ROLE_UNSPECIFIED: _ClassVar[EmbedRole]
    EMBED_ROLE_QUERY: _ClassVar[EmbedRole]
    EMBED_ROLE_PASSAGE: _ClassVar[EmbedRole]
EMBED_ROLE_UNSPECIFIED: EmbedRole
EMBED_ROLE_QUERY: EmbedRole
EMBED_ROLE_PASSAGE: EmbedRole

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("texts", "role", "truncate", "token_ids", "tokenizer", "type")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    role: EmbedRole
    truncate: bool
    token_ids: _containers.RepeatedCompositeFieldContainer[TokenIds]
    tokenizer: str
    type: _common_pb2.ElementType
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., role: _Optional[_Union[EmbedRole, str]] = ..., truncate: _Optional[bool] = ..., token_ids: _Optional[_Iterable[_Union[TokenIds, _Mapping]]] = ..., tokenizer: _Optional[str] = ..., type: _Optional[_Union[_common_pb2.ElementType, str]] = ...) -> None: ...

class EmbedReply(_message.Message):
    __slots__ = ("vectors", "token_counts", "truncated", "fingerprint", "timings", "dtype", "cached")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNTS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    vectors: _common_pb2.Vectors
    token_counts: _containers.RepeatedScalarFieldContainer[int]
    truncated: _containers.RepeatedScalarFieldContainer[bool]
    fingerprint: str
    timings: _common_pb2.Timings
    dtype: str
    cached: int
    def __init__(self, vectors: _Optional[_Union[_common_pb2.Vectors, _Mapping]] = ..., token_counts: _Optional[_Iterable[int]] = ..., truncated: _Optional[_Iterable[bool]] = ..., fingerprint: _Optional[str] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., dtype: _Optional[str] = ..., cached: _Optional[int] = ...) -> None: ...

class EmbedStreamRequest(_message.Message):
    __slots__ = ("sequence", "request", "exclusive")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    request: EmbedRequest
    exclusive: bool
    def __init__(self, sequence: _Optional[int] = ..., request: _Optional[_Union[EmbedRequest, _Mapping]] = ..., exclusive: _Optional[bool] = ...) -> None: ...

class EmbedStreamReply(_message.Message):
    __slots__ = ("sequence", "reply", "error")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    reply: EmbedReply
    error: bytes
    def __init__(self, sequence: _Optional[int] = ..., reply: _Optional[_Union[EmbedReply, _Mapping]] = ..., error: _Optional[bytes] = ...) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoReply(_message.Message):
    __slots__ = ("model", "dimension", "max_tokens", "max_texts", "dtype", "fingerprint", "probe_texts", "probe_vectors", "tokenizer", "batch_tokens", "max_queue_tokens", "max_text_characters", "max_stream_messages", "max_calls", "max_message_bytes", "types")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXTS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PROBE_TEXTS_FIELD_NUMBER: _ClassVar[int]
    PROBE_VECTORS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAM_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    model: str
    dimension: int
    max_tokens: int
    max_texts: int
    dtype: str
    fingerprint: _common_pb2.Fingerprint
    probe_texts: _containers.RepeatedScalarFieldContainer[str]
    probe_vectors: _common_pb2.Vectors
    tokenizer: _common_pb2.Fingerprint
    batch_tokens: int
    max_queue_tokens: int
    max_text_characters: int
    max_stream_messages: int
    max_calls: int
    max_message_bytes: int
    types: _containers.RepeatedScalarFieldContainer[_common_pb2.ElementType]
    def __init__(self, model: _Optional[str] = ..., dimension: _Optional[int] = ..., max_tokens: _Optional[int] = ..., max_texts: _Optional[int] = ..., dtype: _Optional[str] = ..., fingerprint: _Optional[_Union[_common_pb2.Fingerprint, _Mapping]] = ..., probe_texts: _Optional[_Iterable[str]] = ..., probe_vectors: _Optional[_Union[_common_pb2.Vectors, _Mapping]] = ..., tokenizer: _Optional[_Union[_common_pb2.Fingerprint, _Mapping]] = ..., batch_tokens: _Optional[int] = ..., max_queue_tokens: _Optional[int] = ..., max_text_characters: _Optional[int] = ..., max_stream_messages: _Optional[int] = ..., max_calls: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., types: _Optional[_Iterable[_Union[_common_pb2.ElementType, str]]] = ...) -> None: ...
