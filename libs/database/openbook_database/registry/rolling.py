"""Which replicas exchange the live snapshot for the new one before a rolling swap, while the others go on serving."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from openbook_core.errors import PreconditionError, Reason
from openbook_database.mapped import shards_of
from openbook_database.registry.records import KnownSnapshot, ReplicaReport


def first_group(
    replicas: Sequence[ReplicaReport], live: KnownSnapshot, new: KnownSnapshot, *, quorum: int = 1
) -> tuple[str, ...]:
    """Names of half of the replicas of each member, rounded down.

    Raises PreconditionError where these would not serve each shard of `new` at least `quorum` times, or the others not
    each shard of `live`.
    """
    members: dict[tuple[int, int], list[ReplicaReport]] = {}
    for replica in sorted(replicas, key=lambda replica: replica.name):
        members.setdefault((replica.member_index, replica.member_count), []).append(replica)
    first = [replica for group in members.values() for replica in group[: len(group) // 2]]
    others = [replica for group in members.values() for replica in group[len(group) // 2 :]]
    to_serve = Counter(
        shard for replica in first for shard in shards_of(replica.member_index, replica.member_count, new.shards)
    )
    serving = Counter(shard for replica in others for shard in replica.serves(live.snapshot))
    _require(new, to_serve, quorum, "would be served by the replicas that go first")
    _require(live, serving, 1, "is served by the replicas that stay")
    return tuple(replica.name for replica in first)


def stays_served(replicas: Iterable[ReplicaReport], first: Sequence[str], live: str, shards: Sequence[int]) -> bool:
    """Whether replicas that do not go first report all these `shards` of the live snapshot ready."""
    served = {shard for replica in replicas if replica.name not in first for shard in replica.serves(live)}
    return served.issuperset(shards)


def _require(known: KnownSnapshot, served: Counter[int], least: int, how: str) -> None:
    lacking = [shard for shard in range(known.shards) if served[shard] < least]
    if lacking:
        raise PreconditionError(
            f"a rolling swap is not possible: shard {', '.join(map(str, lacking))} of snapshot {known.snapshot[:12]} {how} "
            f"fewer than {least} times. Start a second replica of each shard, or lower the quorum",
            reason=Reason.NOT_READY,
            field="rolling",
            shards=",".join(map(str, lacking)),
        )
