"""The embedder's protobuf messages, read and written."""

from __future__ import annotations

import time

import grpc

from openbook_core.errors import ArgumentError
from openbook_core.vectors import VECTOR_TYPES, encode_vectors
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.intake import Call
from openbook_embedder.ticket import Ticket
from openbook_embedder.tokens import TokenizedTexts
from openbook_proto.v1 import common_pb2, embedder_pb2

_FOREVER_S = 10 * 365 * 86_400.0
_ROLES = {embedder_pb2.EMBED_ROLE_QUERY: "query", embedder_pb2.EMBED_ROLE_PASSAGE: "passage"}
_TYPES = (common_pb2.ELEMENT_TYPE_UNSPECIFIED, *VECTOR_TYPES.values())


def deadline_of(context: grpc.ServicerContext) -> float | None:
    """The call's deadline in seconds of time.monotonic(); gRPC says hundreds of years where the caller gave none."""
    remaining = context.time_remaining()
    return None if remaining is None or remaining > _FOREVER_S else time.monotonic() + remaining


def call_of(request: embedder_pb2.EmbedRequest) -> Call:
    """Raises ArgumentError for a role or a type that there is not."""
    if request.role not in _ROLES:
        raise ArgumentError(
            f"role: given {request.role}; say EMBED_ROLE_QUERY or EMBED_ROLE_PASSAGE, a wrong role lowers recall",
            field="role",
        )
    if request.type not in _TYPES:
        raise ArgumentError(f"type: given {request.type}; vectors are FLOAT32, FLOAT16, BFLOAT16 or INT8", field="type")
    return Call(
        role=_ROLES[request.role],
        truncate=request.truncate,
        texts=request.texts,
        token_ids=[each.ids for each in request.token_ids],
        tokenizer=request.tokenizer,
    )


def reply_of(
    engine: EncoderEngine, request: embedder_pb2.EmbedRequest, tokenized: TokenizedTexts, ticket: Ticket, arrived: float
) -> embedder_pb2.EmbedReply:
    """The reply to a call whose ticket has its vectors; `arrived` in seconds of time.monotonic()."""
    vectors_ND = ticket.vectors.result()
    ticket.trace()
    done = time.monotonic()
    total, queued, tokenizing = done - arrived, ticket.queued_s, ticket.submitted - arrived
    return embedder_pb2.EmbedReply(
        vectors=encode_vectors(vectors_ND, request.type or common_pb2.ELEMENT_TYPE_FLOAT32),
        token_counts=tokenized.counts,
        truncated=tokenized.truncated,
        fingerprint=engine.fingerprint.digest,
        dtype=engine.dtype,
        cached=ticket.cached,
        timings=common_pb2.Timings(
            tokenize_ms=1000 * tokenizing,
            queue_ms=1000 * queued,
            embed_ms=1000 * (total - queued - tokenizing),
            total_ms=1000 * total,
        ),
    )
