"""The Retriever RPCs of a router."""

from __future__ import annotations

import grpc

from openbook_proto.v1 import retriever_pb2 as pb
from openbook_proto.v1 import retriever_pb2_grpc
from openbook_retriever.router_engine import RouterEngine

_DEFAULT_TIMEOUT_S = 30.0


class RouterService(retriever_pb2_grpc.RetrieverServicer):
    """Hands the caller's remaining time on; errors that the engine raises become statuses in the server."""

    def __init__(self, engine: RouterEngine) -> None:
        self._engine = engine

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchReply:
        return self._engine.search(request, _time_left(context))

    def SearchText(self, request: pb.SearchTextRequest, context: grpc.ServicerContext) -> pb.SearchTextReply:
        return self._engine.search_text(request, _time_left(context))

    def GetChunks(self, request: pb.GetChunksRequest, context: grpc.ServicerContext) -> pb.GetChunksReply:
        return self._engine.get_chunks(request, _time_left(context))

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeReply:
        return self._engine.describe(request)

    def Pin(self, request: pb.PinRequest, context: grpc.ServicerContext) -> pb.PinReply:
        return self._engine.pin(request)

    def Unpin(self, request: pb.UnpinRequest, context: grpc.ServicerContext) -> pb.UnpinReply:
        return self._engine.unpin(request)


def _time_left(context: grpc.ServicerContext) -> float:
    """Seconds until the caller's deadline; a default where it set none."""
    left = context.time_remaining()
    return _DEFAULT_TIMEOUT_S if left is None or left > 1e6 else float(left)
