"""Client of the embedder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openbook_core.clients.base import Client
from openbook_core.fingerprint import Fingerprint
from openbook_core.vectors import decode_vectors
from openbook_proto.v1 import embedder_pb2, embedder_pb2_grpc

Role = Literal["query", "passage"]
_ROLES = {"query": embedder_pb2.EMBED_ROLE_QUERY, "passage": embedder_pb2.EMBED_ROLE_PASSAGE}


@dataclass(frozen=True)
class EmbedResult:
    """Vectors [n, d] float32 of n texts, tokens read of each, whether each was cut."""

    vectors: NDArray[np.float32]
    token_counts: list[int]
    truncated: list[bool]
    fingerprint_digest: str


@dataclass(frozen=True)
class EmbedderInfo:
    """What is served; `probe_vectors` [32, d] belong to `probe_texts`."""

    model: str
    dimension: int
    max_tokens: int
    max_texts: int
    dtype: str
    fingerprint: Fingerprint
    probe_texts: list[str]
    probe_vectors: NDArray[np.float32]


class EmbedderClient(Client):
    """Calls one embedder at HOST:PORT."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._stub = embedder_pb2_grpc.EmbedderStub(self._channel)

    def embed(self, texts: Sequence[str], role: Role, *, truncate: bool = True, timeout_s: float = 30.0) -> EmbedResult:
        request = embedder_pb2.EmbedRequest(texts=texts, role=_ROLES[role], truncate=truncate)
        reply = self._call(self._stub.Embed, request, timeout_s)
        vectors = decode_vectors(reply.vectors, "vectors")
        return EmbedResult(vectors, list(reply.token_counts), list(reply.truncated), reply.fingerprint)

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
        )
