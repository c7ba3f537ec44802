"""The Retriever RPCs of a router."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import grpc
import numpy as np

from openbook_core.errors import OpenbookError
from openbook_core.telemetry import get_logger, request_id
from openbook_database.scoring import MISSING
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_proto.v1 import retriever_pb2_grpc
from openbook_retriever.requests import sendable
from openbook_retriever.router_engine import RouterEngine
from openbook_retriever.router_watch import RouterWatch
from openbook_retriever.traffic import is_another_parts

_DEFAULT_TIMEOUT_S = 30.0
# The request's own mistakes, which another snapshot would not mend.
_CALLERS = ("INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED")
Reply = TypeVar("Reply")
_log = get_logger("openbook_retriever.router")


class RouterService(retriever_pb2_grpc.RetrieverServicer):
    """Hands the caller's remaining time on; errors that the engine raises become statuses in the server."""

    def __init__(self, engine: RouterEngine, watch: RouterWatch) -> None:
        self._engine = engine
        self._watch = watch

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchReply:
        reply = self._tried(request, lambda: self._engine.search(request, _time_left(context)), lambda reply: reply)
        return sendable(reply, "queries")

    def SearchText(self, request: pb.SearchTextRequest, context: grpc.ServicerContext) -> pb.SearchTextReply:
        reply = self._tried(
            request.search,
            lambda: self._engine.search_text(request, _time_left(context)),
            lambda reply: reply.result,
        )
        return sendable(reply, "texts")

    def GetChunks(self, request: pb.GetChunksRequest, context: grpc.ServicerContext) -> pb.GetChunksReply:
        return sendable(self._engine.get_chunks(request, _time_left(context)), "ids")

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeReply:
        return self._engine.describe(request)

    def Pin(self, request: pb.PinRequest, context: grpc.ServicerContext) -> pb.PinReply:
        return self._engine.pin(request)

    def Unpin(self, request: pb.UnpinRequest, context: grpc.ServicerContext) -> pb.UnpinReply:
        return self._engine.unpin(request)

    def _tried(
        self, search: pb.SearchRequest, answer: Callable[[], Reply], found: Callable[[Reply], pb.SearchReply]
    ) -> Reply:
        """Answer, from the candidate where the request is part of a canary, and count what came of it.

        A candidate that cannot answer fails no request: that is counted, and the live snapshot answers. What the router's own
        gate or the embedder refuses is not asked again: the live snapshot would need them too.
        """
        database = search.database
        trial = None if search.snapshot else self._watch.trial(database, request_id())
        if trial is None:
            return answer()
        if trial.canary:
            search.snapshot = trial.canary
            try:
                return self._counted(database, trial.canary, answer, found)
            except OpenbookError as error:
                if error.grpc_code in _CALLERS or is_another_parts(error):
                    raise
                _log.warning("database %s: canary %s does not answer: %s", database, trial.canary[:12], error)
            search.snapshot = ""
        return self._counted(database, trial.live, answer, found)

    def _counted(
        self, database: str, asked: str, answer: Callable[[], Reply], found: Callable[[Reply], pb.SearchReply]
    ) -> Reply:
        started = time.perf_counter()
        try:
            reply = answer()
        except OpenbookError as error:
            self._watch.traffic.failed(database, asked, error, time.perf_counter() - started)
            raise
        result = found(reply)
        first_Q = np.frombuffer(result.ids, dtype="<i8")[:: result.k]
        empty = int(np.count_nonzero(first_Q == MISSING))
        seconds = time.perf_counter() - started
        self._watch.traffic.answered(database, result.snapshot, seconds, result.queries, empty)
        return reply


def _time_left(context: grpc.ServicerContext) -> float:
    """Seconds until the caller's deadline; a default where it set none."""
    left = context.time_remaining()
    return _DEFAULT_TIMEOUT_S if left is None or left > 1e6 else float(left)
