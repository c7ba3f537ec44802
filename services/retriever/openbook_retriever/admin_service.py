"""The DatabaseAdmin RPCs, served by a router."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from openbook_core.security.tokens import caller
from openbook_proto.v1 import admin_pb2 as pb
from openbook_proto.v1 import admin_pb2_grpc
from openbook_retriever.admin_engine import AdminEngine


class AdminService(admin_pb2_grpc.DatabaseAdminServicer):
    """Errors that the engine raises become statuses in the server. Peer and token's name go into the audit."""

    def __init__(self, engine: AdminEngine) -> None:
        self._engine = engine

    def Register(self, request: pb.RegisterRequest, context: grpc.ServicerContext) -> pb.RegisterReply:
        return self._engine.register(request, _actor(context))

    def Prepare(self, request: pb.PrepareRequest, context: grpc.ServicerContext) -> pb.PrepareReply:
        return self._engine.prepare(request, _actor(context))

    def Activate(self, request: pb.ActivateRequest, context: grpc.ServicerContext) -> pb.ActivateReply:
        return self._engine.activate(request, _actor(context))

    def Rollback(self, request: pb.RollbackRequest, context: grpc.ServicerContext) -> pb.RollbackReply:
        return self._engine.rollback(request, _actor(context))

    def Abort(self, request: pb.AbortRequest, context: grpc.ServicerContext) -> pb.AbortReply:
        return self._engine.abort(request, _actor(context))

    def Retire(self, request: pb.RetireRequest, context: grpc.ServicerContext) -> pb.RetireReply:
        return self._engine.retire(request, _actor(context))

    def Plan(self, request: pb.PlanRequest, context: grpc.ServicerContext) -> pb.PlanReply:
        return self._engine.plan(request)

    def Watch(self, request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchReply]:
        return self._engine.watch(request, context.is_active)

    def List(self, request: pb.ListRequest, context: grpc.ServicerContext) -> pb.ListReply:
        return self._engine.list(request)


def _actor(context: grpc.ServicerContext) -> str:
    return f"{context.peer()} ({caller()})" if caller() else str(context.peer())
