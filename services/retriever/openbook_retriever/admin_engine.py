"""What DatabaseAdmin does: the registry's verbs, and its state as a message."""

from __future__ import annotations

from openbook_core.errors import ArgumentError
from openbook_database.registry.base import Registry, check_database_name
from openbook_database.registry.records import DatabaseState, Phase, ReplicaReport
from openbook_proto.v1 import admin_pb2 as pb
from openbook_retriever.router_watch import RouterWatch

_PHASES = {Phase.IDLE: pb.SWAP_PHASE_IDLE, Phase.PREPARING: pb.SWAP_PHASE_PREPARING}


class AdminEngine:
    """Changes which snapshot is live; this router moves at once, the others within a poll interval."""

    def __init__(self, registry: Registry, watch: RouterWatch) -> None:
        self._registry = registry
        self._watch = watch

    def register(self, request: pb.RegisterRequest, actor: str) -> pb.RegisterReply:
        if not request.url:
            raise ArgumentError("url: give the folder of a snapshot", field="url")
        check_database_name(request.database)
        known = self._registry.register(request.database, request.url.removeprefix("file://"), actor=actor)
        return pb.RegisterReply(snapshot=known.snapshot, state=self._state(request.database))

    def prepare(self, request: pb.PrepareRequest, actor: str) -> pb.PrepareReply:
        self._registry.prepare(request.database, request.snapshot, actor=actor)
        return pb.PrepareReply(state=self._state(request.database))

    def activate(self, request: pb.ActivateRequest, actor: str) -> pb.ActivateReply:
        expected = request.expected_epoch if request.HasField("expected_epoch") else None
        self._registry.activate(request.database, request.snapshot, expected_epoch=expected, actor=actor)
        self._watch.refresh(request.database)
        return pb.ActivateReply(state=self._state(request.database))

    def rollback(self, request: pb.RollbackRequest, actor: str) -> pb.RollbackReply:
        self._registry.rollback(request.database, actor=actor)
        self._watch.refresh(request.database)
        return pb.RollbackReply(state=self._state(request.database))

    def abort(self, request: pb.AbortRequest, actor: str) -> pb.AbortReply:
        self._registry.abort(request.database, request.snapshot, actor=actor)
        self._watch.refresh(request.database)
        return pb.AbortReply(state=self._state(request.database))

    def list(self, request: pb.ListRequest) -> pb.ListReply:
        if request.database:
            return pb.ListReply(databases=[self._state(request.database)])
        return pb.ListReply(databases=[state_message(state) for state in self._registry.list()])

    def _state(self, database: str) -> pb.DatabaseState:
        return state_message(self._registry.state(database))


def state_message(state: DatabaseState) -> pb.DatabaseState:
    """A database's state on the wire."""
    control = state.control
    return pb.DatabaseState(
        database=control.database,
        epoch=control.epoch,
        live=control.live or "",
        previous=control.previous or "",
        candidate=control.candidate or "",
        phase=_PHASES[control.phase],
        snapshots=[
            pb.KnownSnapshot(
                snapshot=known.snapshot,
                url=known.url,
                shards=known.shards,
                documents=known.documents,
                chunks=known.chunks,
            )
            for known in state.snapshots
        ],
        replicas=[_replica(replica) for replica in state.replicas],
        routers=[pb.Router(name=r.name, address=r.address, epoch=r.epoch) for r in state.routers],
    )


def _replica(replica: ReplicaReport) -> pb.Replica:
    return pb.Replica(
        name=replica.name,
        address=replica.address,
        epoch=replica.epoch,
        snapshots=[
            pb.ReplicaSnapshot(snapshot=held.snapshot, state=held.state.value, error=held.error, shards=held.shards)
            for held in replica.snapshots
        ],
    )
