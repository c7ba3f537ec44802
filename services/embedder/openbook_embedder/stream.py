"""EmbedStream: messages are read while there are credits and room in the queue, answers leave as they are ready.

The reader is a thread of its own that tokenises and queues; the RPC's thread sends. A message holds one of
MAX_STREAM_MESSAGES credits from before it is read until its answer was taken by the transport, so neither a sender that
is too fast nor a receiver that is too slow fills the memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any

import grpc

from openbook_core.errors import OpenbookError
from openbook_core.rpc.status import status_from_error
from openbook_embedder.intake import Intake
from openbook_embedder.messages import call_of, deadline_of, reply_of
from openbook_embedder.ticket import Ticket
from openbook_embedder.tokens import TokenizedTexts
from openbook_proto.v1 import embedder_pb2

MAX_STREAM_MESSAGES = 8


class _Answer:
    """One message on its way: its tokens and the ticket it waits with, or the error it was refused with."""

    def __init__(self, message: embedder_pb2.EmbedStreamRequest) -> None:
        self.message = message
        self.arrived = time.monotonic()
        self.tokenized: TokenizedTexts | None = None
        self.ticket: Ticket | None = None
        self.error: OpenbookError | None = None


class Stream:
    """One call of EmbedStream."""

    def __init__(
        self, intake: Intake, requests: Iterator[embedder_pb2.EmbedStreamRequest], context: grpc.ServicerContext
    ) -> None:
        self._intake, self._requests = intake, requests
        self._deadline = deadline_of(context)
        self._credits = threading.Semaphore(MAX_STREAM_MESSAGES)
        self._gone = threading.Event()
        # Answers, then how reading ended: None, or the exception that ended it.
        self._ready: SimpleQueue[_Answer | BaseException | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._open: set[Ticket] = set()
        self._read = 0
        if not context.add_callback(self._leave):
            self._leave()

    def replies(self) -> Iterator[embedder_pb2.EmbedStreamReply]:
        """The answers; ends when every message that was read is answered. Raises what the reading raised."""
        threading.Thread(target=self._read_all, name="embedder-stream", daemon=True).start()
        sent, reading = 0, True
        try:
            while reading or sent < self._read:
                item = self._ready.get()
                if self._gone.is_set():
                    return
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    reading = False
                    continue
                yield self._reply(item)
                sent += 1
                self._credits.release()
        finally:
            self._leave()

    def _leave(self) -> None:
        """The stream ended or its caller went away: what waits for it is dropped, and the reader let go."""
        self._gone.set()
        self._credits.release()
        with self._lock:
            waiting = list(self._open)
        for ticket in waiting:
            ticket.cancel()

    def _read_all(self) -> None:
        try:
            while self._credits.acquire() and not self._gone.is_set():
                message = next(self._requests, None)
                if message is None:
                    break
                self._read += 1
                self._accept(_Answer(message))
            self._ready.put(None)
        except grpc.RpcError:  # the caller went away: gRPC may end the reading before it calls `_leave`
            self._leave()
            self._ready.put(None)
        except Exception as error:  # noqa: BLE001  the RPC's thread raises it
            self._ready.put(error)

    def _accept(self, answer: _Answer) -> None:
        try:
            answer.tokenized = self._intake.tokenize(call_of(answer.message.request))
            answer.ticket = self._intake.feed(
                answer.tokenized, self._deadline, exclusive=answer.message.exclusive, gone=self._gone
            )
        except OpenbookError as error:
            answer.error = error
            self._ready.put(answer)
            return
        with self._lock:
            self._open.add(answer.ticket)
        answer.ticket.vectors.add_done_callback(partial(self._done, answer))
        if self._gone.is_set():
            answer.ticket.cancel()

    def _done(self, answer: _Answer, _: Future[Any]) -> None:
        with self._lock:
            if answer.ticket is not None:
                self._open.discard(answer.ticket)
        self._ready.put(answer)

    def _reply(self, answer: _Answer) -> embedder_pb2.EmbedStreamReply:
        request, sequence = answer.message.request, answer.message.sequence
        try:
            with self._intake.counted("EmbedStream"):
                if answer.ticket is None or answer.tokenized is None:
                    raise answer.error or OpenbookError("the message was not queued")
                reply = reply_of(self._intake.engine, request, answer.tokenized, answer.ticket, answer.arrived)
        except OpenbookError as error:
            status = status_from_error(error).SerializeToString()
            return embedder_pb2.EmbedStreamReply(sequence=sequence, error=status)
        return embedder_pb2.EmbedStreamReply(sequence=sequence, reply=reply)
