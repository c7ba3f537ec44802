"""What a router knows of each database: cached, refreshed every poll interval, never moved back.

A registry that cannot be read changes nothing; one that knows less than was seen before is told what it forgot.
Replicas whose reports have expired are kept as a last resort. No error ends the heartbeats, and what the registry refuses of
what a router does by itself keeps it from nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock, Thread

from openbook_core.errors import NotFoundError, OpenbookError, PreconditionError, Reason, UnavailableError
from openbook_core.telemetry import get_logger
from openbook_database.contract import Contract
from openbook_database.manifest import Manifest
from openbook_database.registry.base import Registry
from openbook_database.registry.records import Control, KnownSnapshot, ReplicaReport, RouterReport
from openbook_retriever.attempts import Attempts
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.followed import Followed
from openbook_retriever.ratchet import Ratchet, Seen
from openbook_retriever.traffic import Traffic, in_canary

_log = get_logger("openbook_retriever.router_watch")


@dataclass(frozen=True)
class View:
    """One database at one moment. `replicas`: fresh reports; `stale`: reports that have expired since; `forgotten`:
    the registry has an older record than this, or none; `shards`: how many a snapshot has, as far as that is known."""

    control: Control
    contract: Contract
    replicas: tuple[ReplicaReport, ...] = ()
    stale: tuple[ReplicaReport, ...] = ()
    forgotten: bool = False
    leased: frozenset[str] = frozenset()
    shards: Mapping[str, int] = field(default_factory=dict)
    _serving: dict[tuple[str, int], list[str]] = field(default_factory=dict, init=False, compare=False, repr=False)

    def kept(self, snapshot: str) -> bool:
        """Whether shards are to have `snapshot`: it is live, previous, being prepared or held by a lease."""
        return snapshot in self.leased or snapshot in (self.control.live, self.control.previous, self.control.candidate)

    def canary(self, request_id: str) -> str:
        """The candidate, where this request is among the share that tries it and every shard of it is ready; else ""."""
        candidate, percent = self.control.candidate, self.control.terms.canary_percent
        if not candidate or not percent or not in_canary(request_id, candidate, percent):
            return ""
        return candidate if self.whole(candidate) else ""

    def whole(self, snapshot: str | None) -> bool:
        """Whether replicas report every shard of a snapshot ready."""
        reported = {shard for replica in self.replicas for shard in replica.serves(snapshot or "")}
        return bool(reported) and len(reported) == self.shards.get(snapshot or "")

    def serving(self, snapshot: str, shard: int) -> list[str]:
        """Addresses of the replicas that report this shard ready, or reported it last where none does now."""
        known = self._serving.get((snapshot, shard))
        if known is None:
            fresh = [replica.address for replica in self.replicas if shard in replica.serves(snapshot)]
            known = fresh or [replica.address for replica in self.stale if shard in replica.serves(snapshot)]
            self._serving[snapshot, shard] = known
        return known


@dataclass(frozen=True)
class Trial:
    """The live snapshot, and the candidate where a request is to try that, else ""."""

    live: str
    canary: str


class RouterWatch:
    """Owner of the views; `start` it once the address is known."""

    def __init__(self, config: RetrieverConfig, registry: Registry) -> None:
        self._config = config
        self._registry = registry
        self._lock = Lock()
        self._views: dict[str, View] = {}
        self._manifests: dict[str, Manifest] = {}
        self._known: dict[str, KnownSnapshot] = {}
        self._reported: dict[str, tuple[float, int]] = {}
        self._judged: dict[str, tuple[object, ...]] = {}
        self._attempts = Attempts(config.heartbeat_s)
        self._followed = Followed(config, registry)
        self.traffic = Traffic()
        self._ratchet = Ratchet(config.state_dir)
        for seen in self._ratchet.all():
            self._views[seen.control.database] = View(seen.control, seen.contract)
            self._known |= {known.snapshot: known for known in seen.snapshots}
        self._name = ""
        self._address = ""
        self._health: Callable[[str, bool], None] = lambda database, ready: None
        self._stop = Event()
        self._polled = Event()
        self._thread = Thread(target=self._run, name="router-watch", daemon=True)

    def start(
        self, name: str, address: str, health: Callable[[str, bool], None] = lambda database, ready: None
    ) -> None:
        """Follow the registry; returns after the first look. `health` is told of each database whether it can be searched."""
        self._name, self._address, self._health = name, address, health
        self._thread.start()
        self._polled.wait()

    def stop(self) -> None:
        """Stop following and take the reports back; may be called again."""
        self._stop.set()
        self._thread.join()
        for database, view in self._views.items():
            try:
                self._registry.withdraw(self._router_report(database, view.control.epoch))
            except (OpenbookError, OSError) as error:
                _log.warning("database %s: report not withdrawn: %s", database, error)

    def view(self, database: str, min_epoch: int = 0) -> View:
        """The cached view, read anew where there is none or its epoch is below `min_epoch`.

        Raises NotFoundError for an unknown database and UnavailableError where the registry has not that epoch.
        """
        with self._lock:
            view = self._views.get(database)
        if self._config.databases and database not in self._config.databases:
            raise NotFoundError(
                f"database {database!r} is not served here (served: {', '.join(self._config.databases)})",
                field="database",
            )
        if view is None or view.control.epoch < min_epoch:
            view = self.refresh(database)
        if view.control.epoch < min_epoch:
            raise UnavailableError(
                f"min_epoch: the caller has seen epoch {min_epoch} of database {database!r}, this router and its "
                f"registry know {view.control.epoch}: try again",
                field="min_epoch",
                reason=Reason.NOT_READY,
            )
        return view

    def trial(self, database: str, request_id: str) -> Trial | None:
        """What an unpinned request tries and is counted for; None where nothing is tried or watched, as mostly."""
        with self._lock:
            view = self._views.get(database)
        if view is None or not view.control.tries:
            return None
        return Trial(view.control.live or "", view.canary(request_id))

    def refresh(self, database: str) -> View:
        """Read the registry now; where it cannot be read, the cached view, or the error if there is none."""
        try:
            contract = self._registry.contract(database)
            control = self._registry.control(database)
            replicas = tuple(self._registry.replicas(database))
            leased = frozenset(lease.snapshot for lease in self._registry.leases(database))
        except (OpenbookError, OSError) as error:
            with self._lock:
                cached = self._views.get(database)
                if cached is not None and isinstance(error, NotFoundError):
                    cached = self._views[database] = replace(cached, forgotten=True)
            if cached is not None:
                self._followed.failed(database, error)
                return cached
            if isinstance(error, OpenbookError):
                raise
            raise UnavailableError(f"the registry cannot be read: {error}") from error
        with self._lock:
            old = self._views.get(database)
            forgotten = old is not None and (control.epoch, control.fence) < (old.control.epoch, old.control.fence)
            if old is not None and forgotten:
                control, contract = old.control, old.contract
            names = {replica.name for replica in replicas}
            last = (*old.replicas, *old.stale) if old else ()
            stale = tuple(replica for replica in last if replica.name not in names)
            view = self._views[database] = View(
                control, contract, replicas, stale[-64:], forgotten, leased, shards=self._shard_counts()
            )
        return view

    def pin(self, database: str, snapshot: str, holder: str, ttl_s: float) -> tuple[str, int]:
        """Take or renew a lease on `snapshot`, or on the live one where it is empty; returns it and the epoch.

        Raises as `Registry.take_lease`, and PreconditionError where nothing is live.
        """
        view = self.view(database)
        wanted = snapshot or view.control.live
        if not wanted:
            raise PreconditionError(
                f"database {database!r} has no live snapshot yet: prepare and activate one", reason=Reason.NOT_READY
            )
        lease = self._registry.take_lease(database, wanted, holder, ttl_s)
        return lease.snapshot, view.control.epoch

    def unpin(self, database: str, snapshot: str, holder: str) -> None:
        self._registry.release_lease(database, snapshot, holder)

    def manifest(self, database: str, snapshot: str) -> Manifest:
        """The manifest of a registered snapshot, kept once it was read."""
        with self._lock:
            cached = self._manifests.get(snapshot)
        if cached is None:
            known = self._registry.snapshot(database, snapshot)
            cached = Manifest.read(Path(known.url))
            if cached.snapshot_id != snapshot:
                raise PreconditionError(
                    f"the folder of snapshot {snapshot[:12]} of database {database!r} now holds "
                    f"{cached.snapshot_id[:12]}: register it where it is now",
                    reason=Reason.SNAPSHOT_RETIRED,
                    field="snapshot",
                )
            with self._lock:
                self._manifests[snapshot], self._known[snapshot] = cached, known
        if cached.database != database:
            raise NotFoundError(f"database {database!r} has no snapshot {snapshot[:12]}", field="snapshot")
        return cached

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                asked_for = tuple(self._views)
            for database in self._followed.names(asked_for):
                try:
                    self._poll(database)
                except Exception as error:  # noqa: BLE001
                    self._followed.failed(database, error)
                else:
                    self._followed.succeeded(database)
            self._polled.set()
            self._stop.wait(self._config.poll_interval_s)

    def _poll(self, database: str) -> None:
        view = self.refresh(database)
        control = view.control
        if view.forgotten:  # a database that is gone takes no report
            self._attempts.make("restoring", control, lambda: self._restore(view))
        self._report(control)
        if not view.forgotten:
            self._attempts.make("ending what is over", control, lambda: self._expire(control))
        self._count_anew(control)
        self._attempts.make("undoing what breaks a limit", control, lambda: self._judge(control))
        for snapshot in (control.live, control.candidate, control.previous):
            if snapshot:
                self.manifest(database, snapshot)
        self._ratchet.raise_to(Seen(view.contract, control, self._known_of(control)))
        self._health(database, view.whole(control.live))

    def _report(self, control: Control) -> None:
        database, epoch, now = control.database, control.epoch, time.monotonic()
        last = self._reported.get(database)
        if last is None or last[1] != epoch or now - last[0] >= self._config.heartbeat_s:
            self._registry.report_router(self._router_report(database, epoch))
            self._reported[database] = (now, epoch)

    def _expire(self, control: Control) -> None:
        """Give up a candidate whose time is over, whoever prepared it, retire what stood by and end a watch."""
        if not control.timed:
            return
        after = self._registry.expire(control.database, control, actor=self._name)
        if after != control:
            _log.warning("database %s: time is over for what was prepared, stood by or was watched", control.database)
            self.refresh(control.database)

    def _count_anew(self, control: Control) -> None:
        """Forget what was counted where another snapshot is live or tried: a swap is judged by its own requests."""
        judged = (control.epoch, control.candidate, control.expires)
        if judged != self._judged.get(control.database):
            self._judged[control.database] = judged
            self.traffic.forget(control.database)

    def _judge(self, control: Control) -> None:
        """Undo a swap, or give up a canary, that breaks a limit it was asked with, as far as this router sees."""
        database = control.database
        if control.terms.watches and control.candidate:
            why = self.traffic.breach(database, control.candidate, control.terms)
            if why:
                _log.error("database %s: canary %s is given up: %s", database, control.candidate[:12], why)
                self._registry.abort(database, control.candidate, actor=f"{self._name}: {why}")
        elif control.watched_until and control.live and control.previous:
            why = self.traffic.breach(database, control.live, control.terms)
            if why and self._registry.now() < control.watched_until:
                _log.error("database %s: epoch %s is undone: %s", database, control.epoch, why)
                self._registry.rollback(database, expected_epoch=control.epoch, reason=why, actor=self._name)
                self.refresh(database)

    def _known_of(self, control: Control) -> tuple[KnownSnapshot, ...]:
        with self._lock:
            wanted = (control.live, control.previous, control.candidate)
            return tuple(self._known[snapshot] for snapshot in wanted if snapshot in self._known)

    def _restore(self, view: View) -> None:
        control = view.control
        if self._registry.restore(view.contract, control, self._known_of(control), actor=self._name):
            _log.warning("database %s: the registry had lost epoch %s, restored", control.database, control.epoch)

    def _shard_counts(self) -> dict[str, int]:
        return {snapshot: len(manifest.shards) for snapshot, manifest in self._manifests.items()}

    def _router_report(self, database: str, epoch: int) -> RouterReport:
        return RouterReport(database=database, name=self._name, address=self._address, epoch=epoch)
