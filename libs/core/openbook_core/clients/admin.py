"""Client of a router's DatabaseAdmin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grpc

from openbook_core.clients.base import Client
from openbook_core.rpc.status import error_from_rpc
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

    def prepare(
        self,
        database: str,
        snapshot: str,
        *,
        terms: admin_pb2.SwapTerms | None = None,
        force: bool = False,
        timeout_s: float = 30.0,
    ) -> admin_pb2.DatabaseState:
        """Have replicas load a snapshot; PreconditionError where one has no room for it, unless `force` is set."""
        request = admin_pb2.PrepareRequest(database=database, snapshot=snapshot, terms=terms, force=force)
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

    def retire(self, database: str, *, timeout_s: float = 30.0) -> admin_pb2.DatabaseState:
        """Keep the previous snapshot no longer, if there is one."""
        request = admin_pb2.RetireRequest(database=database)
        reply: admin_pb2.RetireReply = self._call(self._stub.Retire, request, timeout_s)
        return reply.state

    def plan(self, database: str, snapshot: str, *, timeout_s: float = 30.0) -> admin_pb2.PlanReply:
        """What loading a snapshot would take on each replica."""
        request = admin_pb2.PlanRequest(database=database, snapshot=snapshot)
        reply: admin_pb2.PlanReply = self._call(self._stub.Plan, request, timeout_s)
        return reply

    def watch(
        self, database: str = "", *, every_s: float = 0.0, timeout_s: float | None = None
    ) -> Iterator[Sequence[admin_pb2.DatabaseState]]:
        """The databases now, and again whenever something has changed, until the iterator is closed."""
        stream = self._stub.Watch(
            admin_pb2.WatchRequest(database=database, interval_seconds=every_s), timeout=timeout_s
        )
        try:
            for reply in stream:
                yield reply.databases
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address) from error
        finally:
            stream.cancel()
