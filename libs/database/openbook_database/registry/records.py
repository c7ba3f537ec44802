"""What a registry holds, as immutable records that travel as JSON."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Self

from openbook_core.errors import ArgumentError
from openbook_database.contract import Contract

MAX_SECONDS = 30 * 86_400.0


def _require(field: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ArgumentError(f"{field}: must be {expected}, given {value}", field=field)


class Phase(StrEnum):
    """What is being done to a database."""

    IDLE = "idle"
    PREPARING = "preparing"


class LoadState(StrEnum):
    """How far a replica is with one snapshot."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class _Record:
    """JSON both ways for flat dataclasses; fields that a later release added are passed over."""

    def to_record(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: value for name, value in record.items() if name in known})


@dataclass(frozen=True)
class SwapTerms(_Record):
    """What a swap is asked with.

    `deadline_s`: a candidate that is not live by then is given up, whoever asked for it. `quorum`: ready replicas that
    each shard must have. `canary_percent`: share of the unpinned requests that the candidate answers once it is ready.
    `standby_s`: the snapshot that was live before is retired so long after; 0 keeps it until the next swap. At least
    `watch_s`: without it there is nothing to go back to.
    `watch_s`: for so long after it the swap is undone by the routers where, of the requests that the new snapshot
    answers, the share of failed ones is above `max_error_share`, that of queries without a neighbour above
    `max_empty_share`, or the 99th percentile of the latency above `max_p99_ms` (None: not watched). A canary that breaks one
    of these is given up.
    `rolling`: no replica holds both snapshots. Some give up the live one for the candidate before the swap, the others
    follow after `standby_s`, which it needs.
    """

    deadline_s: float = 300.0
    quorum: int = 1
    canary_percent: float = 0.0
    standby_s: float = 0.0
    watch_s: float = 0.0
    max_error_share: float | None = None
    max_empty_share: float | None = None
    max_p99_ms: float | None = None
    rolling: bool = False

    def __post_init__(self) -> None:
        """Raises ArgumentError naming the field."""
        _require("deadline_s", self.deadline_s, 0 < self.deadline_s <= MAX_SECONDS, f"above 0, at most {MAX_SECONDS:g}")
        _require("quorum", self.quorum, 1 <= self.quorum <= 1024, "from 1 to 1024")
        _require("canary_percent", self.canary_percent, 0 <= self.canary_percent <= 100, "from 0 to 100")
        for name in ("standby_s", "watch_s"):
            value = getattr(self, name)
            _require(name, value, 0 <= value <= MAX_SECONDS, f"from 0 to {MAX_SECONDS:g}")
        held = f"0, or at least watch_s ({self.watch_s:g}): a swap is undone by going back to what stands by"
        _require("standby_s", self.standby_s, not 0 < self.standby_s < self.watch_s, held)
        after = "above 0 for a rolling swap: the other replicas follow then"
        _require("standby_s", self.standby_s, self.standby_s > 0 or not self.rolling, after)
        for name in ("max_error_share", "max_empty_share"):
            share = getattr(self, name)
            _require(name, share, share is None or 0 <= share <= 1, "from 0 to 1")
        p99 = self.max_p99_ms
        _require("max_p99_ms", p99, p99 is None or 0 < p99 < math.inf, "above 0")

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Also of an earlier release, which took a standby shorter than the watch."""
        standby_s = record.get("standby_s", 0.0)
        return super().from_record(
            {**record, "standby_s": max(standby_s, record.get("watch_s", 0.0)) if standby_s else 0.0}
        )

    @property
    def watches(self) -> bool:
        """Whether any limit is set."""
        return (self.max_error_share, self.max_empty_share, self.max_p99_ms) != (None, None, None)


DEFAULT_TERMS = SwapTerms()


@dataclass(frozen=True)
class Control(_Record):
    """The one mutable record of a database; changed only by compare-and-set.

    `epoch` grows with every change of `live`, a rollback included; `fence` with every change at all. `moved_by` is
    the verb that made the present epoch: "activate", "rollback", or "" before the first; `reason`: why, where it was not
    asked for by a person. `terms`: of the candidate, and once it is live of that.
    Moments are seconds since 1970 by the registry's clock, 0 for none: the candidate is given up at `expires`, the live
    snapshot is watched until `watched_until`, the previous one is retired at `standby_until`.
    `first`: during a rolling swap the names of the replicas that hold the new snapshot and not the old one; the others
    hold the old one and not the new one. Empty where every replica holds what is wanted.
    """

    database: str
    epoch: int = 0
    fence: int = 0
    live: str | None = None
    previous: str | None = None
    candidate: str | None = None
    phase: Phase = Phase.IDLE
    moved_by: str = ""
    reason: str = ""
    terms: SwapTerms = DEFAULT_TERMS
    expires: float = 0.0
    watched_until: float = 0.0
    standby_until: float = 0.0
    first: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "phase", Phase(self.phase))
        object.__setattr__(self, "first", tuple(self.first))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        return super().from_record({**record, "terms": SwapTerms.from_record(record.get("terms", {}))})

    def wanted_by(self, replica: str, leased: Collection[str] = (), ready: Collection[str] = ()) -> list[str]:
        """The snapshots that a replica is to hold, the most urgent first; `ready`: those that it serves.

        One that comes after a rolling swap, and so holds no old snapshot for a rollback, takes the live one.
        """
        kept = dict.fromkeys([self.live, self.candidate, self.previous, *sorted(leased)])
        if self.first:
            old, new = (self.live, self.candidate) if self.candidate else (self.previous, self.live)
            changes_over = replica in self.first or not (self.candidate or old in ready)
            given_up = {old, self.previous} if changes_over else {new}
            kept = {name: None for name in kept if name not in given_up}
        return [name for name in kept if name]

    @property
    def tries(self) -> bool:
        """Whether requests try a candidate, or are watched for what a swap changed."""
        return bool(self.watched_until or (self.candidate and self.terms.canary_percent))

    @property
    def timed(self) -> bool:
        """Whether something is to happen by itself at some moment."""
        return bool(self.expires or self.standby_until or self.watched_until)


@dataclass(frozen=True)
class KnownSnapshot(_Record):
    """A registered snapshot: its id, where its files are, and its size."""

    snapshot: str
    url: str
    shards: int
    documents: int
    chunks: int


@dataclass(frozen=True)
class ReplicaSnapshot(_Record):
    """What one replica holds of one snapshot: the shards it serves, how far it is, `bytes` of mapped files, and `device_bytes`
    that it takes of the replica's GPU.

    `reason` (a value of `openbook_core.errors.Reason`) and `error` say why it failed.
    """

    snapshot: str
    state: LoadState
    shards: tuple[int, ...] = ()
    error: str = ""
    reason: str = ""
    bytes: int = 0
    device_bytes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", LoadState(self.state))
        object.__setattr__(self, "shards", tuple(self.shards))


@dataclass(frozen=True)
class ReplicaReport(_Record):
    """What a process that serves shards says of itself. `heartbeat` (seconds since 1970) is set by the registry.

    `bytes`: of the files that it maps, those of several snapshots counted once; `bytes_limit`: most that it takes, 0
    where that is left to the system. It serves the shards whose number modulo `member_count` is `member_index`.

    `device`: the GPU that searches, empty where none does. It has `device_total` bytes, 0 where that limits nothing or is not
    known yet; `device_free` of them were free at the last load or unload here, and `device_work` go to each snapshot beside
    its index.
    """

    database: str
    name: str
    address: str
    epoch: int
    snapshots: tuple[ReplicaSnapshot, ...] = ()
    heartbeat: float = 0.0
    bytes: int = 0
    bytes_limit: int = 0
    member_index: int = 0
    member_count: int = 1
    device: str = ""
    device_free: int = 0
    device_total: int = 0
    device_work: int = 0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        held = tuple(ReplicaSnapshot.from_record(item) for item in record["snapshots"])
        return super().from_record({**record, "snapshots": held})

    def serves(self, snapshot: str) -> tuple[int, ...]:
        """Shards of `snapshot` that this replica reports ready."""
        return tuple(
            shard
            for held in self.snapshots
            if held.snapshot == snapshot and held.state is LoadState.READY
            for shard in held.shards
        )


@dataclass(frozen=True)
class RouterReport(_Record):
    """What a router says of itself: the epoch that it routes by. `heartbeat` is set by the registry."""

    database: str
    name: str
    address: str
    epoch: int
    heartbeat: float = 0.0


@dataclass(frozen=True)
class Lease(_Record):
    """A holder (`name`) keeps `snapshot` loaded until `expires`, or until it renews or gives it back.

    Times are seconds since 1970 by the registry's clock; `heartbeat` is when it was last taken or renewed.
    """

    database: str
    name: str
    snapshot: str
    expires: float = 0.0
    heartbeat: float = 0.0


Report = ReplicaReport | RouterReport | Lease
REPORTS: dict[str, type[Report]] = {"replicas": ReplicaReport, "routers": RouterReport, "leases": Lease}


@dataclass(frozen=True)
class AuditEntry(_Record):
    """Who asked for what, when (seconds since 1970), and what came of it: asked, done, or refused with the reason."""

    at: float
    actor: str
    verb: str
    snapshot: str
    outcome: str
    epoch: int


@dataclass(frozen=True)
class DatabaseState:
    """All that the registry knows of one database; replicas and routers whose reports have expired are left out."""

    control: Control
    contract: Contract
    snapshots: tuple[KnownSnapshot, ...]
    replicas: tuple[ReplicaReport, ...]
    routers: tuple[RouterReport, ...]
