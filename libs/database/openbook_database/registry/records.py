"""What a registry holds, as immutable records that travel as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from openbook_database.contract import Contract


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
    """JSON both ways for flat dataclasses."""

    def to_record(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        return cls(**record)


@dataclass(frozen=True)
class Control(_Record):
    """The one mutable record of a database; changed only by compare-and-set.

    `epoch` grows with every change of `live`, a rollback included; `fence` with every change at all. `moved_by` is
    the verb that made the present epoch: "activate", "rollback", or "" before the first.
    """

    database: str
    epoch: int = 0
    fence: int = 0
    live: str | None = None
    previous: str | None = None
    candidate: str | None = None
    phase: Phase = Phase.IDLE
    moved_by: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "phase", Phase(self.phase))


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
    """What one replica holds of one snapshot: the shards it serves, and how far it is."""

    snapshot: str
    state: LoadState
    shards: tuple[int, ...] = ()
    error: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", LoadState(self.state))
        object.__setattr__(self, "shards", tuple(self.shards))


@dataclass(frozen=True)
class ReplicaReport(_Record):
    """What a process that serves shards says of itself. `heartbeat` (seconds since 1970) is set by the registry."""

    database: str
    name: str
    address: str
    epoch: int
    snapshots: tuple[ReplicaSnapshot, ...] = ()
    heartbeat: float = 0.0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        held = tuple(ReplicaSnapshot.from_record(item) for item in record["snapshots"])
        return cls(**{**record, "snapshots": held})

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
