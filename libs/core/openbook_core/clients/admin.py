"""Client of a router's DatabaseAdmin."""

from __future__ import annotations

from openbook_core.clients.base import Client
from openbook_core.security.dial import Dial
from openbook_proto.v1 import admin_pb2, admin_pb2_grpc


class AdminClient(Client):
    """Changes which snapshot is live; each call returns the database's state after it."""

    def __init__(self, address: str, dial: Dial | None = None) -> None:
        super().__init__(address, dial)
        self._stub = admin_pb2_grpc.DatabaseAdminStub(self._channel)

    def register(self, database: str, url: str, *, timeout_s: float = 60.0) -> admin_pb2.RegisterReply:
        request = admin_pb2.RegisterRequest(database=database, url=url)
        reply: admin_pb2.RegisterReply = self._call(self._stub.Register, request, timeout_s)
        return reply

    def prepare(self, database: str, snapshot: str, *, timeout_s: float = 30.0) -> admin_pb2.DatabaseState:
        request = admin_pb2.PrepareRequest(database=database, snapshot=snapshot)
        reply: admin_pb2.PrepareReply = self._call(self._stub.Prepare, request, timeout_s)
        return reply.state

    def activate(
        self, database: str, snapshot: str, *, expected_epoch: int | None = None, timeout_s: float = 30.0
    ) -> admin_pb2.DatabaseState:
        request = admin_pb2.ActivateRequest(database=database, snapshot=snapshot, expected_epoch=expected_epoch)
        reply: admin_pb2.ActivateReply = self._call(self._stub.Activate, request, timeout_s)
        return reply.state

    def rollback(self, database: str, *, timeout_s: float = 30.0) -> admin_pb2.DatabaseState:
        reply: admin_pb2.RollbackReply = self._call(
            self._stub.Rollback, admin_pb2.RollbackRequest(database=database), timeout_s
        )
        return reply.state

    def abort(self, database: str, snapshot: str = "", *, timeout_s: float = 30.0) -> admin_pb2.DatabaseState:
        """Give up the snapshot that is being prepared, if there is one; the live one is untouched."""
        request = admin_pb2.AbortRequest(database=database, snapshot=snapshot)
        reply: admin_pb2.AbortReply = self._call(self._stub.Abort, request, timeout_s)
        return reply.state

    def list(self, database: str = "", *, timeout_s: float = 10.0) -> list[admin_pb2.DatabaseState]:
        reply: admin_pb2.ListReply = self._call(self._stub.List, admin_pb2.ListRequest(database=database), timeout_s)
        return list(reply.databases)
