"""What it would take of each replica to load a snapshot beside those that it has: planned before a swap begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from openbook_core.errors import ConfigError, CorruptError, NotFoundError, PreconditionError, Reason
from openbook_core.sizes import readable
from openbook_core.telemetry import get_logger
from openbook_database.gpu_size import gpu_bytes_of
from openbook_database.index.gpu import CONTEXT, needed_bytes
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
    """Bytes of mapped files of one replica: now, of the new snapshot, of those shared with what it has, and its limit.

    `device`: its GPU, if any, with the bytes that the new snapshot takes there and those that are free (0 of `device_total`
    where nothing is known or refused); `device_error`: why no GPU can hold it.
    """

    name: str
    bytes: int
    bytes_new: int
    bytes_shared: int
    bytes_limit: int
    mode: MemoryMode
    device: str = ""
    device_new: int = 0
    device_free: int = 0
    device_total: int = 0
    device_error: str = ""

    def fits(self, *, rolling: bool = False) -> bool:
        return self.mode not in (MemoryMode.REFUSED, *(() if rolling else (MemoryMode.ROLLING,)))


def plan_load(registry: Registry, database: str, known: KnownSnapshot) -> list[ReplicaPlan]:
    """One plan for each replica that reports. A held snapshot whose files cannot be read here shares nothing.

    Raises NotFoundError or CorruptError where those of the new one cannot.
    """
    replicas = registry.replicas(database)
    held = {item.snapshot for replica in replicas for item in replica.snapshots if item.state is LoadState.READY}
    registered = {each.snapshot: each for each in registry.state(database).snapshots}
    with _told_what_for(known.snapshot):
        manifests = {known.snapshot: (Path(known.url), Manifest.read(Path(known.url)))}
    for snapshot in held & registered.keys() - {known.snapshot}:
        folder = Path(registered[snapshot].url)
        with _passed_over(snapshot):
            manifests[snapshot] = (folder, Manifest.read(folder))
    members = Counter((replica.member_index, replica.member_count) for replica in replicas)
    with _told_what_for(known.snapshot):
        return [
            _plan(replica, known.snapshot, manifests, members[replica.member_index, replica.member_count] > 1)
            for replica in replicas
        ]


def require_fit(snapshot: str, plans: Sequence[ReplicaPlan], *, rolling: bool = False) -> None:
    """Raise PreconditionError with the numbers where a replica has no room, with `rolling` for the snapshot alone."""
    refused = [plan for plan in plans if not plan.fits(rolling=rolling)]
    if not refused:
        return
    raise PreconditionError(
        f"snapshot {snapshot[:12]} does not fit{'' if rolling else ' beside what is loaded'}: "
        f"{'; '.join(map(_why_not, refused))}. Raise memory_limit_mb, let more members share the shards, retire the previous "
        "snapshot, swap it rolling, or prepare it by force",
        reason=Reason.OUT_OF_MEMORY,
        field="snapshot",
    )


def _why_not(plan: ReplicaPlan) -> str:
    if plan.device_error:
        return f"{plan.name}: {plan.device_error}"
    told = []
    more = plan.bytes_new - plan.bytes_shared
    if plan.bytes_limit and plan.bytes + more > plan.bytes_limit:
        told.append(
            f"maps {readable(plan.bytes)}, would map {readable(more)} more, and has a limit of {readable(plan.bytes_limit)}"
        )
    if plan.device_total and plan.device_new > plan.device_free:
        told.append(
            f"would take {readable(plan.device_new)} on {plan.device}, of which {readable(plan.device_free)} of "
            f"{readable(plan.device_total)} are free"
        )
    return f"{plan.name} {' and '.join(told)}"


@contextmanager
def _told_what_for(snapshot: str) -> Iterator[None]:
    """Whoever asks may read the files where this process cannot."""
    try:
        yield
    except NotFoundError as error:
        raise NotFoundError(
            f"{error}; the router answers by snapshot {snapshot[:12]}'s manifest and must be able to read it: mount the folder "
            "there, or register a copy that is"
        ) from error
    except CorruptError as error:
        raise CorruptError(
            f"no plan of memory for snapshot {snapshot[:12]}: {error}; the router looks at the files for it: let it, or swap "
            "by force, without a plan"
        ) from error


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
    limit, all_bytes = replica.bytes_limit, replica.bytes + bytes_new
    fits = not limit or all_bytes - shared <= limit
    fits_alone = not limit or all_bytes - total([old]) <= limit
    device_new, device_error = _of_device(replica, *manifests[snapshot])
    if replica.device_total:
        comes_back = sum(held.device_bytes + CONTEXT for held in replica.snapshots if held.device_bytes)
        fits = fits and device_new <= replica.device_free
        fits_alone = fits_alone and device_new <= replica.device_free + comes_back
    if snapshot in ready:
        mode = MemoryMode.LOADED
    elif device_error or not fits:
        mode = MemoryMode.ROLLING if has_twin and fits_alone and not device_error else MemoryMode.REFUSED
    elif not limit:
        mode = MemoryMode.MAPPED
    else:
        mode = MemoryMode.OVERLAP if all_bytes <= limit else MemoryMode.SHARED
    return ReplicaPlan(
        replica.name,
        replica.bytes,
        bytes_new,
        shared,
        limit,
        mode,
        device=replica.device,
        device_new=device_new,
        device_free=replica.device_free,
        device_total=replica.device_total,
        device_error=device_error,
    )


def _of_device(replica: ReplicaReport, folder: Path, manifest: Manifest) -> tuple[int, str]:
    """Bytes that a snapshot takes on the replica's GPU, 0 where it has none, and why none can hold it."""
    if not replica.device:
        return 0, ""
    shards = shards_of(replica.member_index, replica.member_count, len(manifest.shards))
    try:
        index_bytes = gpu_bytes_of(folder, manifest, shards)
    except ConfigError as error:
        return 0, error.message
    return CONTEXT + needed_bytes(index_bytes, replica.device_work), ""
