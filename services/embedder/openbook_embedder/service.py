"""The RPCs of the embedder: check the request, tokenise on this thread, queue, reply."""

from __future__ import annotations

import time

import grpc

from openbook_core.errors import ArgumentError, OpenbookError
from openbook_core.vectors import encode_vectors
from openbook_embedder.batching import Batcher
from openbook_embedder.config import EmbedderConfig
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.metrics import EmbedderMetrics
from openbook_embedder.tokens import TokenizedTexts
from openbook_proto.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc

SERVICE_NAME = embedder_pb2.DESCRIPTOR.services_by_name["Embedder"].full_name
MAX_TEXT_CHARACTERS = 1_000_000

_ROLES = {embedder_pb2.EMBED_ROLE_QUERY: "query", embedder_pb2.EMBED_ROLE_PASSAGE: "passage"}


class EmbedderService(embedder_pb2_grpc.EmbedderServicer):
    """Errors are raised as OpenbookError; the server's interceptor turns them into a status."""

    def __init__(
        self, engine: EncoderEngine, batcher: Batcher, config: EmbedderConfig, metrics: EmbedderMetrics
    ) -> None:
        self._engine = engine
        self._batcher = batcher
        self._config = config
        self._metrics = metrics

    def Embed(self, request: embedder_pb2.EmbedRequest, context: grpc.ServicerContext) -> embedder_pb2.EmbedReply:
        try:
            reply = self._embed(request, context)
        except OpenbookError as error:
            self._metrics.requests.labels(outcome=error.reason.value).inc()
            raise
        self._metrics.requests.labels(outcome="OK").inc()
        return reply

    def GetInfo(self, request: embedder_pb2.GetInfoRequest, context: grpc.ServicerContext) -> embedder_pb2.GetInfoReply:
        engine = self._engine
        return embedder_pb2.GetInfoReply(
            model=self._config.model,
            dimension=engine.dimension,
            max_tokens=engine.max_tokens,
            max_texts=self._config.max_texts,
            dtype=engine.dtype,
            fingerprint=common_pb2.Fingerprint(
                digest=engine.fingerprint.digest, record_json=engine.fingerprint.to_json()
            ),
            probe_texts=engine.probe_texts,
            probe_vectors=encode_vectors(engine.probe_vectors),
        )

    def _embed(self, request: embedder_pb2.EmbedRequest, context: grpc.ServicerContext) -> embedder_pb2.EmbedReply:
        arrived = time.monotonic()
        remaining = context.time_remaining()
        role = self._check(request)
        tokenized = self._engine.tokenize(request.texts, role)
        if not request.truncate:
            self._refuse_long(tokenized)
        ticket = self._batcher.submit(tokenized.ids, None if remaining is None else arrived + remaining)
        if not context.add_callback(ticket.cancel):
            ticket.cancel()
        vectors_ND = ticket.result()
        done = time.monotonic()
        started = ticket.started or done
        return embedder_pb2.EmbedReply(
            vectors=encode_vectors(vectors_ND),
            token_counts=tokenized.counts,
            truncated=tokenized.truncated,
            fingerprint=self._engine.fingerprint.digest,
            timings=common_pb2.Timings(
                queue_ms=1000 * (started - ticket.submitted),
                embed_ms=1000 * (done - started),
                total_ms=1000 * (done - arrived),
            ),
        )

    def _check(self, request: embedder_pb2.EmbedRequest) -> str:
        """The role as a word; raises ArgumentError naming the field at fault."""
        if request.role not in _ROLES:
            raise ArgumentError(
                f"role: given {request.role}; say EMBED_ROLE_QUERY or EMBED_ROLE_PASSAGE, a wrong role lowers recall",
                field="role",
            )
        if not request.texts:
            raise ArgumentError("texts: the list is empty; give at least one text", field="texts")
        if len(request.texts) > self._config.max_texts:
            raise ArgumentError(
                f"texts: {len(request.texts)} given, at most {self._config.max_texts} in one call; send several calls",
                field="texts",
            )
        for place, text in enumerate(request.texts):
            if not text:
                raise ArgumentError(f"texts[{place}]: is empty; leave it out", field=f"texts[{place}]")
            if len(text) > MAX_TEXT_CHARACTERS:
                raise ArgumentError(
                    f"texts[{place}]: {len(text)} characters, at most {MAX_TEXT_CHARACTERS}; the encoder reads only "
                    f"{self._engine.max_tokens} tokens, so split the text",
                    field=f"texts[{place}]",
                )
        return _ROLES[request.role]

    def _refuse_long(self, tokenized: TokenizedTexts) -> None:
        for place, cut in enumerate(tokenized.truncated):
            if cut:
                raise ArgumentError(
                    f"texts[{place}]: longer than the encoder's {self._engine.max_tokens} tokens; shorten it, or set "
                    "truncate to have it cut",
                    field=f"texts[{place}]",
                )
