"""The registry's verbs: one state machine over the few storage operations that a backend supplies.

Every change of the control record is one compare-and-set on (epoch, fence), so a coordinator that dies between
any two steps leaves a record that the next one can go on from or undo (design section 4).
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from openbook_core.errors import (
    ArgumentError,
    ConflictError,
    NotFoundError,
    OpenbookError,
    OverloadedError,
    PreconditionError,
    Reason,
)
from openbook_database.contract import Contract
from openbook_database.manifest import Manifest
from openbook_database.registry.readiness import ReadyCheck, every_shard_ready
from openbook_database.registry.records import (
    DEFAULT_TERMS,
    AuditEntry,
    Control,
    DatabaseState,
    KnownSnapshot,
    Lease,
    Phase,
    ReplicaReport,
    Report,
    RouterReport,
    SwapTerms,
)

DEFAULT_TTL_S = 5.0
MAX_LEASE_S = 3600.0
MAX_LEASED_SNAPSHOTS = 4
_DROP_AFTER_S = 60.0
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_PROCESS_NAME = re.compile(r"[A-Za-z0-9_\[-][A-Za-z0-9._:@\[\]-]{0,199}")


def is_database_name(name: str) -> bool:
    """Whether `name` has 1 to 128 of [A-Za-z0-9._-] and does not start with a dot."""
    return _NAME.fullmatch(name) is not None


def check_database_name(name: str) -> str:
    """`name` where it can name a database; else ArgumentError."""
    if not is_database_name(name):
        raise ArgumentError(
            f"database {name!r} is no name: use 1 to 128 of letters, digits, '.', '_' and '-', not starting with a dot",
            field="database",
        )
    return name


class Registry(ABC):
    """Databases, their snapshots, which one is live, and who serves them.

    Verbs raise ArgumentError (a bad name), NotFoundError (unknown database or snapshot), MismatchError (another
    contract), PreconditionError (not prepared, not ready, nothing to go back to) and ConflictError (somebody else
    changed the record first, or another swap is under way). Repeating a verb that was done changes nothing.
    """

    comes_back_empty = False
    """Whether this backend may lose all it holds while what serves goes on; `restore` then makes it again."""

    def __init__(self, *, ttl_s: float = DEFAULT_TTL_S, clock: Callable[[], float] = time.time) -> None:
        """`ttl_s`: age at which a report no longer counts, by the reader's `clock` (seconds since 1970)."""
        self._ttl_s = ttl_s
        self._clock = clock

    # --- verbs ---

    def register(self, database: str, path: str | Path, *, actor: str = "") -> KnownSnapshot:
        """Make the snapshot in the folder `path` known; the first one fixes the database's contract."""
        check_database_name(database)
        url = str(Path(path).absolute())
        manifest = Manifest.read(Path(url))
        known = KnownSnapshot(
            snapshot=manifest.snapshot_id,
            url=url,
            shards=len(manifest.shards),
            documents=manifest.documents,
            chunks=manifest.chunks,
        )
        if manifest.database != database:
            raise ArgumentError(
                f"{path} was built for database {manifest.database!r}, not {database!r}: register it under that name "
                "or build it again",
                field="database",
            )
        contract = self._create_contract(database, manifest.contract)
        manifest.contract.require_equal(contract, f"snapshot {known.snapshot[:12]}", f"database {database!r}")
        with self._audited(database, "register", known.snapshot, actor):
            self._put_snapshot(database, known)
        return known

    def prepare(
        self,
        database: str,
        snapshot: str,
        *,
        terms: SwapTerms = DEFAULT_TERMS,
        first: Sequence[str] = (),
        actor: str = "",
    ) -> Control:
        """Have replicas load `snapshot` beside the live one, or with `first` those alone and instead of the live one
        (`Control.first`); a repeated call keeps the first one's `terms`."""
        known = self.snapshot(database, snapshot)
        control = self.control(database)
        if control.candidate == known.snapshot or (control.live == known.snapshot and control.candidate is None):
            return control
        with self._audited(database, "prepare", known.snapshot, actor):
            if control.candidate is not None:
                raise ConflictError(
                    f"database {database!r} is already being moved to snapshot {control.candidate[:12]}: activate or "
                    "abort that one first"
                )
            if first and known.snapshot == control.previous:
                raise PreconditionError(
                    f"snapshot {known.snapshot[:12]} of database {database!r} stands by already: roll back instead of a rolling "
                    "swap to it",
                    field="snapshot",
                )
            if control.first:
                raise ConflictError(
                    f"of database {database!r} only the replicas {', '.join(control.first)} hold the live snapshot yet: wait "
                    "until the previous one's standby is over, or retire it"
                )
            return self._change(
                control,
                replace(
                    control,
                    candidate=known.snapshot,
                    phase=Phase.PREPARING,
                    terms=terms,
                    expires=self._clock() + terms.deadline_s,
                    watched_until=0.0,
                    first=tuple(first),
                ),
            )

    def activate(
        self,
        database: str,
        snapshot: str,
        *,
        expected_epoch: int | None = None,
        ready_check: ReadyCheck | None = None,
        actor: str = "",
    ) -> Control:
        """Make the prepared `snapshot` live by one compare-and-set; `ready_check` raises where it may not be yet (by
        default where a shard has fewer ready replicas than the swap's quorum)."""
        known = self.snapshot(database, snapshot)
        control = self.control(database)
        if control.live == known.snapshot and expected_epoch in (None, control.epoch, control.epoch - 1):
            return control
        with self._audited(database, "activate", known.snapshot, actor):
            self._expect_epoch(control, expected_epoch)
            if control.candidate != known.snapshot:
                raise PreconditionError(
                    f"snapshot {known.snapshot[:12]} of database {database!r} is not prepared (being prepared: "
                    f"{(control.candidate or 'none')[:12]}): prepare it first",
                    reason=Reason.NOT_READY,
                    field="snapshot",
                )
            (ready_check or _quorum(control))(known, self.replicas(database))
            now, terms = self._clock(), control.terms
            return self._change(
                control,
                replace(
                    control,
                    epoch=control.epoch + 1,
                    live=known.snapshot,
                    previous=control.live,
                    candidate=None,
                    phase=Phase.IDLE,
                    moved_by="activate",
                    reason="",
                    expires=0.0,
                    watched_until=now + terms.watch_s if terms.watches and terms.watch_s else 0.0,
                    standby_until=now + terms.standby_s if terms.standby_s and control.live else 0.0,
                ),
            )

    def abort(self, database: str, snapshot: str = "", *, actor: str = "") -> Control:
        """Give up the snapshot that is being prepared; the live one is untouched.

        With `snapshot` (an id or its beginning) only that one: who gives up must not end somebody else's swap.
        """
        control = self.control(database)
        if control.candidate is None or not control.candidate.startswith(snapshot):
            return control
        with self._audited(database, "abort", control.candidate, actor):
            return self._change(control, _without_candidate(control))

    def retire(self, database: str, *, actor: str = "") -> Control:
        """Keep the previous snapshot no longer: replicas unload it when its requests and leases have ended.

        There is nothing to go back to then.
        """
        control = self.control(database)
        if control.previous is None:
            return control
        with self._audited(database, "retire", control.previous, actor):
            return self._change(control, _without_previous(control))

    def expire(self, database: str, control: Control, *, actor: str = "") -> Control:
        """What is to happen by itself at a moment that has passed: the candidate is given up, the previous snapshot retired,
        the watch ended. `control`: as it was just read. Anybody may call it at any time; where somebody else was faster
        nothing is done. Returns the record after it."""
        if not control.timed:
            return control
        now = self._clock()
        late = control.candidate is not None and 0 < control.expires <= now
        over = control.previous is not None and 0 < control.standby_until <= now
        watched = 0 < control.watched_until <= now
        if not (late or over or watched):
            return control
        new = control
        if late:
            new = _without_candidate(new)
        if over:
            new = _without_previous(new)
        if watched:
            new = replace(new, watched_until=0.0)
        new = replace(new, fence=control.fence + 1)
        if not self._compare_and_set(control, new):
            return self.control(database)
        for verb, happened, snapshot in (("expire", late, control.candidate), ("retire", over, control.previous)):
            if happened:
                entry = AuditEntry(now, actor, verb, snapshot or "", "done", control.epoch)
                self._append_audit(database, entry)
        return new

    def rollback(
        self,
        database: str,
        *,
        expected_epoch: int | None = None,
        ready_check: ReadyCheck = every_shard_ready,
        reason: str = "",
        actor: str = "",
    ) -> Control:
        """Make the previous snapshot live again, at once; the `reason` goes into the record.

        The snapshot it replaces becomes the previous one, so a second rollback goes forward again; but that of a rolling
        swap is retired, to make room for the one that is live again. With `expected_epoch` a repeated call changes nothing.
        """
        control = self.control(database)
        if expected_epoch is not None and control.epoch == expected_epoch + 1 and control.moved_by == "rollback":
            return control
        with self._audited(database, "rollback", control.previous or "", actor):
            self._expect_epoch(control, expected_epoch)
            if control.previous is None:
                raise PreconditionError(
                    f"database {database!r} has no previous snapshot to go back to", reason=Reason.NOT_READY
                )
            ready_check(self.snapshot(database, control.previous), self.replicas(database))
            candidate = None if control.candidate == control.previous else control.candidate
            rolled = bool(control.first) and not candidate
            return self._change(
                control,
                replace(
                    control,
                    epoch=control.epoch + 1,
                    live=control.previous,
                    previous=None if rolled else control.live,
                    candidate=candidate,
                    phase=Phase.PREPARING if candidate else Phase.IDLE,
                    moved_by="rollback",
                    reason=reason,
                    expires=control.expires if candidate else 0.0,
                    watched_until=0.0,
                    standby_until=0.0,
                    first=() if rolled else control.first,
                ),
            )

    def restore(
        self, contract: Contract, control: Control, snapshots: Sequence[KnownSnapshot], *, actor: str = ""
    ) -> bool:
        """Write back what a router saw of a database whose record is gone or older; whether the record was raised.

        Epoch and fence are only ever raised. A database that is gone altogether is made again where the backend
        `comes_back_empty`; elsewhere that is left to `register`. Raises MismatchError where the name now belongs to a
        database with another contract.
        """
        database = check_database_name(control.database)
        if not self.comes_back_empty and self._load_contract(database) is None:
            return False
        stored = self._create_contract(database, contract)
        contract.require_equal(stored, "what is served", f"database {database!r} in the registry")
        registered = {known.snapshot for known in self._snapshots(database)}
        for known in snapshots:
            if known.snapshot not in registered:
                self._put_snapshot(database, known)
        now = self._load_control(database) or Control(database)
        if (now.epoch, now.fence) >= (control.epoch, control.fence) or not self._compare_and_set(now, control):
            return False
        self._append_audit(
            database, AuditEntry(self._clock(), actor, "restore", control.live or "", "done", control.epoch)
        )
        return True

    # --- leases ---

    def take_lease(self, database: str, snapshot: str, holder: str, ttl_s: float) -> Lease:
        """Keep `snapshot` loaded for `ttl_s` seconds more; call it again, well before they end, to renew.

        A holder has one lease for each snapshot. Refused, and nothing changed: a snapshot that not every shard serves
        any more (PreconditionError), or one snapshot more than MAX_LEASED_SNAPSHOTS beside those that a swap
        keeps (OverloadedError).
        """
        if not 0 < ttl_s <= MAX_LEASE_S:
            raise ArgumentError(f"ttl_s: must be above 0 and at most {MAX_LEASE_S:g}, given {ttl_s}", field="ttl_s")
        known = self.snapshot(database, snapshot)
        control = self.control(database)
        kept = {control.live, control.previous, control.candidate}
        leased = {lease.snapshot for lease in self.leases(database)} - kept
        if known.snapshot not in kept | leased:
            self._require_still_served(database, known)
            if len(leased) >= MAX_LEASED_SNAPSHOTS:
                raise OverloadedError(
                    f"{len(leased)} snapshots of database {database!r} are held by leases already, at most "
                    f"{MAX_LEASED_SNAPSHOTS} may be: wait until a run ends, or pin one of "
                    f"{', '.join(sorted(name[:12] for name in leased))}",
                    field="snapshot",
                )
        now = self._clock()
        for old in self._load_reports("leases", database):
            if isinstance(old, Lease) and old.expires < now - _DROP_AFTER_S:
                self._drop_report("leases", database, old.name)
        lease = Lease(database, _lease_name(holder, known.snapshot), known.snapshot, now + ttl_s, now)
        self._put_report("leases", lease)
        return lease

    def release_lease(self, database: str, snapshot: str, holder: str) -> None:
        """Give a lease back; nothing happens where there is none."""
        self._drop_report("leases", check_database_name(database), _lease_name(holder, snapshot))

    def leases(self, database: str) -> Sequence[Lease]:
        """Leases that have not expired, by name."""
        now = self._clock()
        stored = self._load_reports("leases", check_database_name(database))
        return [lease for lease in stored if isinstance(lease, Lease) and lease.expires > now]

    # --- reading ---

    def list(self) -> Sequence[DatabaseState]:
        """Every database, by name."""
        return [self.state(database) for database in self._databases()]

    def state(self, database: str) -> DatabaseState:
        """All that is known of one database."""
        contract = self.contract(database)
        return DatabaseState(
            control=self.control(database),
            contract=contract,
            snapshots=tuple(sorted(self._snapshots(database), key=lambda known: known.snapshot)),
            replicas=tuple(self.replicas(database)),
            routers=tuple(self.routers(database)),
        )

    def contract(self, database: str) -> Contract:
        """The contract that the first snapshot fixed."""
        contract = self._load_contract(check_database_name(database))
        if contract is None:
            raise self._unknown_database(database)
        return contract

    def snapshot(self, database: str, snapshot: str) -> KnownSnapshot:
        """A registered snapshot by its id, or by the first 8 or more digits of it where they name just one."""
        snapshots = self._snapshots(check_database_name(database))
        found = [known for known in snapshots if known.snapshot == snapshot]
        if not found and len(snapshot) >= 8:
            found = [known for known in snapshots if known.snapshot.startswith(snapshot)]
        if len(found) != 1:
            self.contract(database)
            names = ", ".join(sorted(known.snapshot[:12] for known in snapshots)) or "none"
            raise NotFoundError(
                f"database {database!r} has no snapshot {snapshot!r} (registered: {names}); register it first",
                field="snapshot",
            )
        return found[0]

    def control(self, database: str) -> Control:
        """The control record: one small read, made for polling."""
        control = self._load_control(check_database_name(database))
        if control is None:
            if self._load_contract(database) is None:
                raise self._unknown_database(database)
            return Control(database)
        return control

    def now(self) -> float:
        """Seconds since 1970 by the registry's clock, to compare with moments in its records."""
        return self._clock()

    def audit(self, database: str) -> Sequence[AuditEntry]:
        """Who asked for what when, oldest first."""
        return self._audit(check_database_name(database))

    # --- reports ---

    def report_replica(self, report: ReplicaReport) -> None:
        """Store a replica's report, stamped with this clock; call it again well within the time to live."""
        self._put_report("replicas", replace(report, heartbeat=self._clock()))

    def report_router(self, report: RouterReport) -> None:
        """Store a router's report, stamped with this clock."""
        self._put_report("routers", replace(report, heartbeat=self._clock()))

    def withdraw(self, report: ReplicaReport | RouterReport) -> None:
        """Take a report back, at a clean stop; nothing happens where there is none."""
        kind = "replicas" if isinstance(report, ReplicaReport) else "routers"
        self._drop_report(kind, check_database_name(report.database), _check_process_name(report.name))

    def replicas(self, database: str) -> Sequence[ReplicaReport]:
        """Reports of replicas that have not expired, by name."""
        return [r for r in self._reports("replicas", database) if isinstance(r, ReplicaReport)]

    def routers(self, database: str) -> Sequence[RouterReport]:
        """Reports of routers that have not expired, by name."""
        return [r for r in self._reports("routers", database) if isinstance(r, RouterReport)]

    # --- what a backend supplies ---

    @abstractmethod
    def _databases(self) -> Sequence[str]:
        """Names of all databases, sorted."""

    @abstractmethod
    def _create_contract(self, database: str, contract: Contract) -> Contract:
        """Store `contract` unless there is one; return the stored one. Atomic."""

    @abstractmethod
    def _load_contract(self, database: str) -> Contract | None: ...

    @abstractmethod
    def _load_control(self, database: str) -> Control | None: ...

    @abstractmethod
    def _compare_and_set(self, expected: Control, new: Control) -> bool:
        """Replace the control record if epoch and fence are still `expected`'s (no record counts as 0, 0)."""

    @abstractmethod
    def _put_snapshot(self, database: str, known: KnownSnapshot) -> None: ...

    @abstractmethod
    def _snapshots(self, database: str) -> Sequence[KnownSnapshot]: ...

    @abstractmethod
    def _store_report(self, kind: str, report: Report) -> None: ...

    @abstractmethod
    def _drop_report(self, kind: str, database: str, name: str) -> None: ...

    @abstractmethod
    def _load_reports(self, kind: str, database: str) -> Sequence[Report]:
        """All stored reports of one kind, expired ones too, by name."""

    @abstractmethod
    def _append_audit(self, database: str, entry: AuditEntry) -> None: ...

    @abstractmethod
    def _audit(self, database: str) -> Sequence[AuditEntry]: ...

    # --- inside ---

    def _change(self, old: Control, new: Control) -> Control:
        new = replace(new, fence=old.fence + 1)
        if not self._compare_and_set(old, new):
            raise ConflictError(
                f"the record of database {old.database!r} was changed by somebody else (was epoch {old.epoch}, fence "
                f"{old.fence}): look at its state and try again"
            )
        return new

    def _expect_epoch(self, control: Control, expected_epoch: int | None) -> None:
        if expected_epoch is not None and control.epoch != expected_epoch:
            raise ConflictError(
                f"database {control.database!r} is at epoch {control.epoch}, not {expected_epoch}: somebody else moved it",
                field="expected_epoch",
            )

    def _put_report(self, kind: str, report: Report) -> None:
        self.contract(report.database)
        _check_process_name(report.name)
        self._store_report(kind, report)

    def _reports(self, kind: str, database: str) -> Sequence[Report]:
        oldest = self._clock() - self._ttl_s
        return [r for r in self._load_reports(kind, check_database_name(database)) if r.heartbeat >= oldest]

    def _require_still_served(self, database: str, known: KnownSnapshot) -> None:
        try:
            every_shard_ready(known, self.replicas(database))
        except PreconditionError as error:
            raise PreconditionError(
                f"no lease: {error.message}", reason=Reason.SNAPSHOT_RETIRED, field="snapshot"
            ) from error

    def _unknown_database(self, database: str) -> NotFoundError:
        names = ", ".join(self._databases()) or "none"
        return NotFoundError(f"no database {database!r} (registered: {names})", field="database")

    @contextmanager
    def _audited(self, database: str, verb: str, snapshot: str, actor: str) -> Iterator[None]:
        def note(outcome: str) -> None:
            control = self._load_control(database) or Control(database)
            self._append_audit(database, AuditEntry(self._clock(), actor, verb, snapshot, outcome, control.epoch))

        note("asked")
        try:
            yield
        except OpenbookError as error:
            note(f"refused: {error}")
            raise
        note("done")


def _without_candidate(control: Control) -> Control:
    return replace(control, candidate=None, phase=Phase.IDLE, expires=0.0, first=())


def _without_previous(control: Control) -> Control:
    """With it a rolling swap ends; one that is still being prepared goes on."""
    first = control.first if control.candidate else ()
    return replace(control, previous=None, standby_until=0.0, first=first)


def _quorum(control: Control) -> ReadyCheck:
    return partial(every_shard_ready, quorum=control.terms.quorum)


def _lease_name(holder: str, snapshot: str) -> str:
    return f"{_check_process_name(holder)}@{snapshot[:12]}"


def _check_process_name(name: str) -> str:
    if not _PROCESS_NAME.fullmatch(name):
        raise ArgumentError(
            f"{name!r} is no name of a process: use 1 to 200 of letters, digits and ._:@-[], not starting with a dot",
            field="name",
        )
    return name
