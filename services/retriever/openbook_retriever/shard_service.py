"""The Retriever RPCs of a shard."""

from __future__ import annotations

import grpc

from openbook_core.errors import ArgumentError
from openbook_proto.v1 import retriever_pb2 as pb
from openbook_proto.v1 import retriever_pb2_grpc
from openbook_retriever.shard_engine import ShardEngine


class ShardService(retriever_pb2_grpc.RetrieverServicer):
    """Errors that the engine raises become statuses in the server."""

    def __init__(self, engine: ShardEngine) -> None:
        self._engine = engine

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchReply:
        return self._engine.search(request)

    def SearchText(self, request: pb.SearchTextRequest, context: grpc.ServicerContext) -> pb.SearchTextReply:
        raise ArgumentError("a shard takes vectors only: send texts to the router", field="texts")

    def GetChunks(self, request: pb.GetChunksRequest, context: grpc.ServicerContext) -> pb.GetChunksReply:
        return self._engine.get_chunks(request)

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeReply:
        return self._engine.describe(request)
