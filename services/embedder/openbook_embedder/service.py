"""The RPCs of the embedder: check the request, tokenise on this thread, queue, reply."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc

from openbook_core.rpc.channel import MAX_MESSAGE_BYTES
from openbook_core.vectors import VECTOR_TYPES, encode_vectors
from openbook_embedder.intake import MAX_TEXT_CHARACTERS, Intake
from openbook_embedder.messages import call_of, deadline_of, reply_of
from openbook_embedder.stream import MAX_STREAM_MESSAGES, Stream
from openbook_proto.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc

SERVICE_NAME = embedder_pb2.DESCRIPTOR.services_by_name["Embedder"].full_name


class EmbedderService(embedder_pb2_grpc.EmbedderServicer):
    """Errors are raised as OpenbookError; the server's interceptor turns them into a status."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def Embed(self, request: embedder_pb2.EmbedRequest, context: grpc.ServicerContext) -> embedder_pb2.EmbedReply:
        arrived = time.monotonic()
        deadline = deadline_of(context)
        with self._intake.counted("Embed"), self._intake.slot():
            tokenized = self._intake.tokenize(call_of(request))
            ticket = self._intake.submit(tokenized, deadline)
            if not context.add_callback(ticket.cancel):
                ticket.cancel()
            ticket.result()
            return reply_of(self._intake.engine, request, tokenized, ticket, arrived)

    def EmbedStream(
        self, requests: Iterator[embedder_pb2.EmbedStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[embedder_pb2.EmbedStreamReply]:
        with self._intake.slot():
            yield from Stream(self._intake, requests, context).replies()

    def GetInfo(self, request: embedder_pb2.GetInfoRequest, context: grpc.ServicerContext) -> embedder_pb2.GetInfoReply:
        engine, config, tokenizer = self._intake.engine, self._intake.config, self._intake.tokenizer
        return embedder_pb2.GetInfoReply(
            model=config.model,
            dimension=engine.dimension,
            max_tokens=engine.max_tokens,
            max_texts=config.max_texts,
            dtype=engine.dtype,
            fingerprint=common_pb2.Fingerprint(
                digest=engine.fingerprint.digest, record_json=engine.fingerprint.to_json()
            ),
            probe_texts=engine.probe_texts,
            probe_vectors=encode_vectors(engine.probe_vectors),
            tokenizer=common_pb2.Fingerprint(digest=tokenizer.digest, record_json=tokenizer.to_json()),
            batch_tokens=config.batch_tokens,
            max_queue_tokens=config.max_queue_tokens,
            max_text_characters=MAX_TEXT_CHARACTERS,
            max_stream_messages=MAX_STREAM_MESSAGES,
            max_calls=config.max_calls,
            max_message_bytes=MAX_MESSAGE_BYTES,
            types=VECTOR_TYPES.values(),
        )
