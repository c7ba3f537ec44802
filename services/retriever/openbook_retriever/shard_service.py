"""The Retriever RPCs of a shard."""

from __future__ import annotations

import time

import grpc

from openbook_core.errors import ArgumentError
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_proto.v1 import retriever_pb2_grpc
from openbook_retriever.requests import sendable
from openbook_retriever.shard_engine import ShardEngine

# gRPC says hundreds of years where the caller gave no deadline.
_FOREVER_S = 10 * 365 * 86_400.0


class ShardService(retriever_pb2_grpc.RetrieverServicer):
    """Errors that the engine raises become statuses in the server."""

    def __init__(self, engine: ShardEngine) -> None:
        self._engine = engine

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchReply:
        left = context.time_remaining()
        deadline = None if left is None or left > _FOREVER_S else time.monotonic() + left
        return sendable(self._engine.search(request, deadline, context.add_callback), "queries")

    def SearchText(self, request: pb.SearchTextRequest, context: grpc.ServicerContext) -> pb.SearchTextReply:
        raise ArgumentError("a shard takes vectors only: send texts to the router", field="texts")

    def GetChunks(self, request: pb.GetChunksRequest, context: grpc.ServicerContext) -> pb.GetChunksReply:
        return sendable(self._engine.get_chunks(request), "ids")

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeReply:
        return self._engine.describe(request)

    def Pin(self, request: pb.PinRequest, context: grpc.ServicerContext) -> pb.PinReply:
        raise _of_the_router("Pin")

    def Unpin(self, request: pb.UnpinRequest, context: grpc.ServicerContext) -> pb.UnpinReply:
        raise _of_the_router("Unpin")


def _of_the_router(method: str) -> ArgumentError:
    return ArgumentError(f"{method}: a shard keeps what the registry says: ask the router")
