"""When a prepared snapshot may become live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from openbook_core.errors import PreconditionError, Reason
from openbook_database.registry.records import KnownSnapshot, ReplicaReport

ReadyCheck = Callable[[KnownSnapshot, Sequence[ReplicaReport]], None]


def every_shard_ready(known: KnownSnapshot, replicas: Sequence[ReplicaReport], *, quorum: int = 1) -> None:
    """Raise PreconditionError naming each shard with fewer than `quorum` ready replicas, and why loads failed."""
    ready = Counter(shard for replica in replicas for shard in set(replica.serves(known.snapshot)))
    lacking = [shard for shard in range(known.shards) if ready[shard] < quorum]
    if not lacking:
        return
    reasons = [
        f"{replica.name}: {held.state}{f' ({held.error})' if held.error else ''}"
        for replica in replicas
        for held in replica.snapshots
        if held.snapshot == known.snapshot and set(held.shards) & set(lacking)
    ]
    raise PreconditionError(
        f"snapshot {known.snapshot[:12]} is not ready: shard {', '.join(map(str, lacking))} of {known.shards} has fewer "
        f"than {quorum} ready replica ({'; '.join(reasons) or 'no replica reports it'}). Start replicas, or wait",
        reason=Reason.NOT_READY,
        field="snapshot",
        shards=",".join(map(str, lacking)),
    )


def no_check(known: KnownSnapshot, replicas: Sequence[ReplicaReport]) -> None:
    """For a database that is read in this process only, without replicas."""
