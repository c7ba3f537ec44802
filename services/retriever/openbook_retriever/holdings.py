"""The snapshots that a shard process holds: the only owner of what is loaded, and of how many requests use it.

A snapshot is loading, then ready or failed. One that is no longer wanted still answers for a while, so that requests
which pinned it can end; then it is retiring: it refuses new requests, and goes when the last one that uses it is done.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

from openbook_core.errors import ArgumentError, PreconditionError, Reason
from openbook_database.index.gpu import CONTEXT
from openbook_database.mapped import Files, total
from openbook_database.registry.records import LoadState, ReplicaSnapshot
from openbook_database.shard import Shard
from openbook_database.snapshot import Snapshot
from openbook_retriever.on_device import Loaded, OnDevice


@dataclass
class _Held:
    shards: tuple[int, ...]
    state: LoadState = LoadState.LOADING
    snapshot: Snapshot | None = None
    error: str = ""
    reason: str = ""
    files: Files = field(default_factory=dict)
    device: OnDevice | None = None
    failed_at: float = 0.0
    users: int = 0
    unwanted_since: float | None = None
    retiring: bool = False


class Holdings:
    """Loaded snapshots by (database, snapshot id); safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: dict[tuple[str, str], _Held] = {}
        self._live: dict[str, str] = {}
        self._device_free = self._device_total = 0

    # --- for requests ---

    @contextmanager
    def lease(self, database: str, snapshot: str) -> Iterator[Snapshot]:
        """The snapshot, never another one; it stays loaded meanwhile. PreconditionError where it is not ready here."""
        with self._lock:
            held = self._held.get((database, snapshot))
            if held is None or held.retiring or held.snapshot is None:
                raise self._not_loaded(database, snapshot, held)
            held.users += 1
            opened = held.snapshot
        try:
            yield opened
        finally:
            with self._lock:
                held.users -= 1

    def live(self, database: str) -> str:
        """What this process believes to be the live snapshot; empty where it knows of none."""
        with self._lock:
            return self._live.get(database, "")

    # --- for the loader ---

    def set_live(self, database: str, snapshot: str) -> None:
        with self._lock:
            self._live[database] = snapshot

    def lacks(self, database: str, snapshot: str, retry_s: float) -> bool:
        """Whether to load `snapshot`, which is wanted: it is neither here, nor being loaded, nor failed less than
        `retry_s` ago."""
        with self._lock:
            held = self._held.get((database, snapshot))
            if held is None:
                return True
            held.retiring, held.unwanted_since = False, None
            return held.state is LoadState.FAILED and time.monotonic() - held.failed_at >= retry_s

    def begin(self, database: str, snapshot: str, shards: tuple[int, ...]) -> None:
        """`snapshot` is being loaded from now on."""
        with self._lock:
            self._held[database, snapshot] = _Held(shards)

    def loaded(
        self, database: str, opened: Snapshot, files: Files | None = None, device: OnDevice | None = None
    ) -> None:
        """`files`: those that are mapped here; `device`: what searches it, and is ended with it."""
        with self._lock:
            held = self._held.get((database, opened.id))
            if held is not None:
                held.snapshot, held.state, held.files, held.device = opened, LoadState.READY, files or {}, device
                if device is not None:
                    self._device_free, self._device_total = device.memory.free, device.memory.total
        if held is None and device is not None:
            device.end()

    def failed(self, database: str, snapshot: str, error: str, reason: str = "") -> None:
        with self._lock:
            held = self._held.get((database, snapshot))
            if held is not None:
                held.state, held.error, held.failed_at = LoadState.FAILED, error, time.monotonic()
                held.reason = reason

    def forget(self, database: str, snapshot: str) -> None:
        """Its load was given up."""
        with self._lock:
            held = self._held.get((database, snapshot))
            if held is not None and held.state is LoadState.LOADING:
                del self._held[database, snapshot]

    def names(self, database: str) -> set[str]:
        """The snapshots of a database that take room, whatever their state."""
        with self._lock:
            return {snapshot for (name, snapshot), held in self._held.items() if name == database}

    def ready(self, database: str) -> set[str]:
        """The snapshots of a database that are answered from here."""
        return {name for name in self.names(database) if self.serves(database, name)}

    def serves(self, database: str, snapshot: str) -> tuple[int, ...]:
        """The shards of a snapshot that are answered from here; none where it is not ready or on its way out."""
        with self._lock:
            held = self._held.get((database, snapshot))
            return () if held is None or held.snapshot is None or held.retiring else held.shards

    def answers(self, database: str, snapshot: str) -> bool:
        """Whether a snapshot is ready here, if only with none of its shards."""
        with self._lock:
            held = self._held.get((database, snapshot))
            return held is not None and held.snapshot is not None and not held.retiring

    def loading(self, database: str) -> set[str]:
        """The snapshots of a database that are being loaded or wait for it."""
        with self._lock:
            return {
                snapshot
                for (name, snapshot), held in self._held.items()
                if name == database and held.state is LoadState.LOADING
            }

    def bytes(self, more: Files | None = None) -> int:
        """Bytes of mapped files of all snapshots that are loaded or being retired, each file counted once; with `more`."""
        with self._lock:
            return total([*(held.files for held in self._held.values()), more or {}])

    def calls(self) -> dict[tuple[str, str], int]:
        """The calls that use each (database, snapshot) now."""
        with self._lock:
            return {names: held.users for names, held in self._held.items()}

    def device_memory(self) -> Loaded:
        """Of the GPU: bytes that the snapshots here take, and what was free when one was last loaded or unloaded."""
        with self._lock:
            taken = sum(held.device.memory.bytes for held in self._held.values() if held.device is not None)
            return Loaded(taken, self._device_free, self._device_total)

    def drop_lost(self) -> list[str]:
        """Fail the snapshots that nothing searches any more, to be loaded anew; returns why."""
        with self._lock:
            lost = [held for held in self._held.values() if held.device is not None and held.device.lost]
            for held in lost:
                assert held.device is not None
                held.snapshot, held.state, held.failed_at = None, LoadState.FAILED, time.monotonic()
                held.error, held.reason = held.device.lost, Reason.UNAVAILABLE
        self._end(lost)
        return [held.error for held in lost]

    def keep_only(self, database: str, wanted: Collection[str], drain_s: float) -> list[str]:
        """Retire what has not been `wanted` for `drain_s` seconds, and at once what is not ready; returns the snapshots
        that were unloaded now, which no request uses: their memory is free when this returns."""
        gone = {}
        now = time.monotonic()
        with self._lock:
            for (name, snapshot), held in list(self._held.items()):
                if name != database or snapshot in wanted:
                    continue
                if held.unwanted_since is None:
                    held.unwanted_since = now
                ready = held.state is LoadState.READY and not held.retiring
                if ready and now - held.unwanted_since < drain_s:
                    continue
                held.retiring = True
                if held.users == 0 and held.state is not LoadState.LOADING:
                    del self._held[name, snapshot]
                    gone[snapshot] = held
        self._end(gone.values())
        return list(gone)

    def report(self, database: str) -> tuple[ReplicaSnapshot, ...]:
        """What is held of a database, for the registry."""
        with self._lock:
            return tuple(
                ReplicaSnapshot(
                    snapshot=snapshot,
                    state=held.state,
                    shards=held.shards,
                    error=held.error,
                    reason=held.reason,
                    bytes=total([held.files]),
                    device_bytes=held.device.memory.bytes if held.device is not None else 0,
                )
                for (name, snapshot), held in sorted(self._held.items())
                if name == database and not held.retiring
            )

    def settled(self) -> bool:
        """Whether nothing is being loaded."""
        with self._lock:
            return all(held.state is not LoadState.LOADING for held in self._held.values())

    def _end(self, held: Iterable[_Held]) -> None:
        """Without the lock: a process takes its time to give a GPU's memory back."""
        for each in held:
            if each.device is not None:
                each.device.end()
                with self._lock:
                    self._device_free += each.device.memory.bytes + CONTEXT
                each.device = None

    def _not_loaded(self, database: str, snapshot: str, held: _Held | None) -> PreconditionError:
        if held is None or held.retiring:
            why = "it is not loaded here (retired, or never prepared)"
        elif held.state is LoadState.FAILED:
            why = f"it could not be loaded: {held.error}"
        else:
            why = "it is still being loaded"
        ready = [
            name[:12] for (owner, name), other in self._held.items() if owner == database and other.snapshot is not None
        ]
        return PreconditionError(
            f"snapshot {snapshot[:12]} of database {database!r}: {why}; loaded: {', '.join(sorted(ready)) or 'none'}",
            reason=Reason.SNAPSHOT_NOT_LOADED,
            field="snapshot",
        )


def find_shard(opened: Snapshot, number: int) -> Shard:
    """Shard `number` of those opened; ArgumentError where this process does not serve it."""
    for shard in opened.shards:
        if shard.number == number:
            return shard
    served = ", ".join(str(shard.number) for shard in opened.shards) or "none"
    raise ArgumentError(f"shard {number}: this process serves of this snapshot: {served}", field="shard")
