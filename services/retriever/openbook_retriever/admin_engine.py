"""What DatabaseAdmin does: the registry's verbs, and its state as a message."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import BoundedSemaphore
from typing import Any

from openbook_core.errors import ArgumentError, OverloadedError, PreconditionError, Reason
from openbook_database.registry.base import Registry, check_database_name
from openbook_database.registry.memory_plan import plan_load, require_fit
from openbook_database.registry.records import Control, DatabaseState, KnownSnapshot, Phase, ReplicaReport, SwapTerms
from openbook_database.registry.rolling import first_group
from openbook_proto.v1 import admin_pb2 as pb
from openbook_retriever.router_watch import RouterWatch

MAX_WATCHERS = 8
_WATCH_EVERY_S, _WATCH_AT_MOST_S = 0.1, 60.0
_ROLLING_STANDBY_S = 60.0
_LIMITS = ("max_error_share", "max_empty_share", "max_p99_ms")
_PHASES = {Phase.IDLE: pb.SWAP_PHASE_IDLE, Phase.PREPARING: pb.SWAP_PHASE_PREPARING}


class AdminEngine:
    """Changes which snapshot is live; this router moves at once, the others within a poll interval."""

    def __init__(self, registry: Registry, watch: RouterWatch) -> None:
        self._registry = registry
        self._watch = watch
        self._watchers = BoundedSemaphore(MAX_WATCHERS)

    def register(self, request: pb.RegisterRequest, actor: str) -> pb.RegisterReply:
        if not request.url:
            raise ArgumentError("url: give the folder of a snapshot", field="url")
        check_database_name(request.database)
        known = self._registry.register(request.database, request.url.removeprefix("file://"), actor=actor)
        return pb.RegisterReply(snapshot=known.snapshot, state=self._state(request.database))

    def prepare(self, request: pb.PrepareRequest, actor: str) -> pb.PrepareReply:
        terms = _terms(request.terms)
        control = self._registry.control(request.database)
        known = self._registry.snapshot(request.database, request.snapshot)
        self._watch.manifest(request.database, known.snapshot)  # without it no request could be answered
        if control.candidate is None and not request.force:
            require_fit(known.snapshot, plan_load(self._registry, request.database, known), rolling=terms.rolling)
        first = self._first_group(control, known, terms) if terms.rolling else ()
        self._registry.prepare(request.database, request.snapshot, terms=terms, first=first, actor=actor)
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

    def retire(self, request: pb.RetireRequest, actor: str) -> pb.RetireReply:
        self._registry.retire(request.database, actor=actor)
        self._watch.refresh(request.database)
        return pb.RetireReply(state=self._state(request.database))

    def plan(self, request: pb.PlanRequest) -> pb.PlanReply:
        known = self._registry.snapshot(request.database, request.snapshot)
        plans = plan_load(self._registry, request.database, known)
        return pb.PlanReply(
            snapshot=known.snapshot,
            replicas=[
                pb.ReplicaPlan(
                    name=plan.name,
                    bytes=plan.bytes,
                    bytes_new=plan.bytes_new,
                    bytes_shared=plan.bytes_shared,
                    bytes_limit=plan.bytes_limit,
                    mode=plan.mode.value,
                    device=plan.device,
                    device_new=plan.device_new,
                    device_free=plan.device_free,
                    device_total=plan.device_total,
                    device_error=plan.device_error,
                )
                for plan in plans
            ],
            fits=all(plan.fits() for plan in plans),
            fits_rolling=all(plan.fits(rolling=True) for plan in plans),
        )

    def watch(self, request: pb.WatchRequest, goes_on: Callable[[], bool]) -> Iterator[pb.WatchReply]:
        """The databases, and again when something other than a heartbeat has changed, while `goes_on`.

        Each watcher takes a worker: OverloadedError where there are MAX_WATCHERS.
        """
        every_s = request.interval_seconds or _WATCH_EVERY_S
        if not _WATCH_EVERY_S <= every_s <= _WATCH_AT_MOST_S:
            raise ArgumentError(
                f"interval_seconds: must be from {_WATCH_EVERY_S} to {_WATCH_AT_MOST_S:g}, given {every_s}",
                field="interval_seconds",
            )
        if not self._watchers.acquire(blocking=False):
            raise OverloadedError(f"{MAX_WATCHERS} callers watch this router already: watch another", retry_after_s=5)
        try:
            last = None
            while goes_on():
                now = pb.WatchReply(databases=self.list(pb.ListRequest(database=request.database)).databases)
                if now != last:
                    yield now
                last = now
                time.sleep(every_s)
        finally:
            self._watchers.release()

    def list(self, request: pb.ListRequest) -> pb.ListReply:
        if request.database:
            return pb.ListReply(databases=[self._state(request.database)])
        return pb.ListReply(databases=[state_message(state) for state in self._registry.list()])

    def _first_group(self, control: Control, known: KnownSnapshot, terms: SwapTerms) -> tuple[str, ...]:
        """The replicas that go first in a rolling swap; none where the swap has begun or is done."""
        if control.candidate is not None or control.live == known.snapshot:
            return ()
        if control.live is None:
            raise PreconditionError(
                f"database {control.database!r} has no live snapshot yet, so there is nothing to exchange: swap without rolling",
                reason=Reason.NOT_READY,
                field="rolling",
            )
        live = self._registry.snapshot(control.database, control.live)
        return first_group(self._registry.replicas(control.database), live, known, quorum=terms.quorum)

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
        moved_by=control.moved_by,
        reason=control.reason,
        terms=_terms_message(control.terms),
        fence=control.fence,
        expires=control.expires,
        watched_until=control.watched_until,
        standby_until=control.standby_until,
        first=control.first,
    )


def _terms(message: pb.SwapTerms) -> SwapTerms:
    asked: dict[str, Any] = {
        "deadline_s": message.deadline_seconds,
        "quorum": message.quorum,
        "canary_percent": message.canary_percent,
        "standby_s": message.standby_seconds,
        "watch_s": message.watch_seconds,
        "rolling": message.rolling,
    }
    if message.rolling and not message.standby_seconds:
        asked["standby_s"] = max(message.watch_seconds, _ROLLING_STANDBY_S)
    limits = {name: getattr(message, name) for name in _LIMITS if message.HasField(name)}
    return SwapTerms(**{name: value for name, value in asked.items() if value}, **limits)


def _terms_message(terms: SwapTerms) -> pb.SwapTerms:
    return pb.SwapTerms(
        deadline_seconds=terms.deadline_s,
        quorum=terms.quorum,
        canary_percent=terms.canary_percent,
        standby_seconds=terms.standby_s,
        watch_seconds=terms.watch_s,
        rolling=terms.rolling,
        **{name: getattr(terms, name) for name in _LIMITS if getattr(terms, name) is not None},
    )


def _replica(replica: ReplicaReport) -> pb.Replica:
    return pb.Replica(
        name=replica.name,
        address=replica.address,
        epoch=replica.epoch,
        bytes=replica.bytes,
        bytes_limit=replica.bytes_limit,
        device=replica.device,
        device_free=replica.device_free,
        device_total=replica.device_total,
        snapshots=[
            pb.ReplicaSnapshot(
                snapshot=held.snapshot,
                state=held.state.value,
                error=held.error,
                shards=held.shards,
                reason=held.reason,
                bytes=held.bytes,
                device_bytes=held.device_bytes,
            )
            for held in replica.snapshots
        ],
    )
