"""Client of the embedder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal

import grpc
import numpy as np
from google.rpc import status_pb2
from numpy.typing import NDArray

from openbook_core.clients.base import Client
from openbook_core.errors import OpenbookError, UnavailableError
from openbook_core.fingerprint import Fingerprint
from openbook_core.rpc.status import error_from_rpc, error_from_status
from openbook_core.security.dial import Dial
from openbook_core.vectors import VECTOR_TYPES, decode_vectors
from openbook_proto.v1 import embedder_pb2, embedder_pb2_grpc

Role = Literal["query", "passage"]
VectorType = Literal["float32", "float16", "bfloat16", "int8"]
_ROLES = {"query": embedder_pb2.EMBED_ROLE_QUERY, "passage": embedder_pb2.EMBED_ROLE_PASSAGE}


@dataclass(frozen=True)
class EmbedResult:
    """Vectors [n, d] float32 of n texts, tokens read of each, whether each was cut, compute type, how many were cached."""

    vectors: NDArray[np.float32]
    token_counts: list[int]
    truncated: list[bool]
    fingerprint_digest: str
    dtype: str
    cached: int = 0


@dataclass(frozen=True)
class EmbedderInfo:
    """What is served, and its limits (see GetInfoReply); `probe_vectors` [32, d] belong to `probe_texts`."""

    model: str
    dimension: int
    max_tokens: int
    max_texts: int
    dtype: str
    fingerprint: Fingerprint
    probe_texts: list[str]
    probe_vectors: NDArray[np.float32]
    tokenizer: Fingerprint
    batch_tokens: int
    max_queue_tokens: int
    max_text_characters: int
    max_stream_messages: int
    max_calls: int
    max_message_bytes: int
    types: list[VectorType]


class EmbedderClient(Client):
    """Calls one embedder at HOST:PORT."""

    def __init__(self, address: str, dial: Dial | None = None) -> None:
        super().__init__(address, dial)
        self._stub = embedder_pb2_grpc.EmbedderStub(self._channel)

    def embed(
        self,
        texts: Sequence[str],
        role: Role,
        *,
        truncate: bool = True,
        type: VectorType = "float32",
        timeout_s: float = 30.0,
    ) -> EmbedResult:
        """`type` is how the vectors travel; they come back as float32."""
        request = embedder_pb2.EmbedRequest(texts=texts, role=_ROLES[role], truncate=truncate, type=VECTOR_TYPES[type])
        return _result(self._call(self._stub.Embed, request, timeout_s))

    def embed_ids(
        self,
        token_ids: Sequence[Sequence[int]],
        role: Role,
        *,
        tokenizer: str,
        type: VectorType = "float32",
        timeout_s: float = 30.0,
    ) -> EmbedResult:
        """Token ids as the encoder reads them, with the digest of the `tokenizer` that made them."""
        request = embedder_pb2.EmbedRequest(
            token_ids=[embedder_pb2.TokenIds(ids=ids) for ids in token_ids],
            role=_ROLES[role],
            tokenizer=tokenizer,
            type=VECTOR_TYPES[type],
        )
        return _result(self._call(self._stub.Embed, request, timeout_s))

    def embed_stream(
        self,
        blocks: Iterable[Sequence[str]],
        role: Role,
        *,
        exclusive: bool = False,
        truncate: bool = True,
        type: VectorType = "float32",
        window: int = 4,
    ) -> Iterator[EmbedResult | OpenbookError]:
        """One result for each block of texts, in order: its vectors, or the error that it alone met.

        At most `window` blocks are unanswered; the next is pulled, on the caller's thread, when a result was taken.
        `exclusive`: a block's vectors follow from the block alone, to the last bit. Raises what ended the stream.
        """
        sending: SimpleQueue[embedder_pb2.EmbedStreamRequest | None] = SimpleQueue()
        call = self._stub.EmbedStream(iter(sending.get, None))
        source = iter(blocks)
        answers: dict[int, EmbedResult | OpenbookError] = {}
        sent = taken = 0
        exhausted = False
        try:
            while True:
                while not exhausted and sent - taken < window:
                    block = next(source, None)
                    if block is None:
                        exhausted = True
                        sending.put(None)
                        break
                    request = embedder_pb2.EmbedRequest(
                        texts=block, role=_ROLES[role], truncate=truncate, type=VECTOR_TYPES[type]
                    )
                    sending.put(embedder_pb2.EmbedStreamRequest(sequence=sent, request=request, exclusive=exclusive))
                    sent += 1
                if taken == sent:
                    return
                while taken not in answers:
                    reply = next(call, None)
                    if reply is None:
                        raise UnavailableError(f"{self.address} ended the stream with {sent - taken} blocks unanswered")
                    answers[reply.sequence] = _outcome(reply)
                yield answers.pop(taken)
                taken += 1
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address) from error
        finally:
            sending.put(None)
            call.cancel()

    def info(self, *, timeout_s: float = 10.0) -> EmbedderInfo:
        reply = self._call(self._stub.GetInfo, embedder_pb2.GetInfoRequest(), timeout_s)
        return EmbedderInfo(
            model=reply.model,
            dimension=reply.dimension,
            max_tokens=reply.max_tokens,
            max_texts=reply.max_texts,
            dtype=reply.dtype,
            fingerprint=Fingerprint.from_json(reply.fingerprint.record_json),
            probe_texts=list(reply.probe_texts),
            probe_vectors=decode_vectors(reply.probe_vectors, "probe_vectors"),
            tokenizer=Fingerprint.from_json(reply.tokenizer.record_json or "{}"),
            batch_tokens=reply.batch_tokens,
            max_queue_tokens=reply.max_queue_tokens,
            max_text_characters=reply.max_text_characters,
            max_stream_messages=reply.max_stream_messages,
            max_calls=reply.max_calls,
            max_message_bytes=reply.max_message_bytes,
            types=[name for name, value in VECTOR_TYPES.items() if value in reply.types],  # type: ignore[misc]
        )


def _outcome(reply: embedder_pb2.EmbedStreamReply) -> EmbedResult | OpenbookError:
    if reply.WhichOneof("outcome") == "error":
        return error_from_status(status_pb2.Status.FromString(reply.error))
    return _result(reply.reply)


def _result(reply: embedder_pb2.EmbedReply) -> EmbedResult:
    vectors = decode_vectors(reply.vectors, "vectors")
    return EmbedResult(
        vectors, list(reply.token_counts), list(reply.truncated), reply.fingerprint, reply.dtype, reply.cached
    )
