"""What it would take of each replica to load a snapshot beside those that it has: planned before a swap begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from openbook_core.errors import CorruptError, NotFoundError, PreconditionError, Reason
from openbook_core.sizes import readable
from openbook_core.telemetry import get_logger
from openbook_database.manifest import Manifest
from openbook_database.mapped import Files, files_of, shards_of, total
from openbook_database.registry.base import Registry
from openbook_database.registry.records import KnownSnapshot, LoadState, ReplicaReport

_log = get_logger("openbook_database.memory_plan")


class MemoryMode(StrEnum):
    """How a snapshot finds room in a replica.

    OVERLAP: old and new fit beside each other. SHARED: they do, because they share files on disk. MAPPED: the replica has no
    limit, so the system keeps of its files in memory what it can. ROLLING: it fits instead of what is there, not beside it,
    and another replica has the same shards. REFUSED: it does not fit. LOADED: it is there already.
    """

    OVERLAP = "overlap"
    SHARED = "shared"
    MAPPED = "mapped"
    ROLLING = "rolling"
    REFUSED = "refused"
    LOADED = "loaded"


@dataclass(frozen=True)
class ReplicaPlan:
    """Bytes of mapped files of one replica: now, of the new snapshot, of those shared with what it has, and its limit."""

    name: str
    bytes: int
    bytes_new: int
    bytes_shared: int
    bytes_limit: int
    mode: MemoryMode

    def fits(self, *, rolling: bool = False) -> bool:
        return self.mode not in (MemoryMode.REFUSED, *(() if rolling else (MemoryMode.ROLLING,)))


def plan_load(registry: Registry, database: str, known: KnownSnapshot) -> list[ReplicaPlan]:
    """One plan for each replica that reports. A held snapshot whose files cannot be read here shares nothing."""
    replicas = registry.replicas(database)
    held = {item.snapshot for replica in replicas for item in replica.snapshots if item.state is LoadState.READY}
    registered = {each.snapshot: each for each in registry.state(database).snapshots}
    manifests = {known.snapshot: (Path(known.url), Manifest.read(Path(known.url)))}
    for snapshot in held & registered.keys() - {known.snapshot}:
        folder = Path(registered[snapshot].url)
        with _passed_over(snapshot):
            manifests[snapshot] = (folder, Manifest.read(folder))
    members = Counter((replica.member_index, replica.member_count) for replica in replicas)
    return [
        _plan(replica, known.snapshot, manifests, members[replica.member_index, replica.member_count] > 1)
        for replica in replicas
    ]


def require_fit(snapshot: str, plans: Sequence[ReplicaPlan], *, rolling: bool = False) -> None:
    """Raise PreconditionError with the numbers where a replica has no room, with `rolling` for the snapshot alone."""
    refused = [plan for plan in plans if not plan.fits(rolling=rolling)]
    if not refused:
        return
    told = "; ".join(
        f"{plan.name} maps {readable(plan.bytes)}, would map {readable(plan.bytes_new - plan.bytes_shared)} more, and has a "
        f"limit of {readable(plan.bytes_limit)}"
        for plan in refused
    )
    raise PreconditionError(
        f"snapshot {snapshot[:12]} does not fit{'' if rolling else ' beside what is loaded'}: {told}. Raise memory_limit_mb, let "
        "more members share the shards, retire the previous snapshot, swap it rolling, or prepare it by force",
        reason=Reason.OUT_OF_MEMORY,
        field="snapshot",
    )


@contextmanager
def _passed_over(snapshot: str) -> Iterator[None]:
    """A held snapshot that cannot be read here takes no part in the plan."""
    try:
        yield
    except (NotFoundError, CorruptError) as error:
        _log.warning("snapshot %s is left out of the plan: %s", snapshot[:12], error)


def _plan(
    replica: ReplicaReport, snapshot: str, manifests: dict[str, tuple[Path, Manifest]], has_twin: bool
) -> ReplicaPlan:
    def files(name: str) -> Files:
        folder, manifest = manifests[name]
        shards = shards_of(replica.member_index, replica.member_count, len(manifest.shards))
        return files_of(folder, manifest, shards)

    new = files(snapshot)
    ready = [held.snapshot for held in replica.snapshots if held.state is LoadState.READY]
    old: dict[tuple[int, int], int] = {}
    for name in ready:
        if name == snapshot:
            old |= new
        elif name in manifests:
            with _passed_over(name):
                old |= files(name)
    shared = sum(size for key, size in new.items() if key in old)
    bytes_new = total([new])
    fits = replica.bytes + bytes_new - shared <= replica.bytes_limit
    if snapshot in ready:
        mode = MemoryMode.LOADED
    elif not replica.bytes_limit:
        mode = MemoryMode.MAPPED
    elif not fits:
        alone = replica.bytes - total([old]) + bytes_new
        mode = MemoryMode.ROLLING if has_twin and alone <= replica.bytes_limit else MemoryMode.REFUSED
    else:
        mode = MemoryMode.OVERLAP if replica.bytes + bytes_new <= replica.bytes_limit else MemoryMode.SHARED
    return ReplicaPlan(replica.name, replica.bytes, bytes_new, shared, replica.bytes_limit, mode)
