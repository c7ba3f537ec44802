"""The registry's backends, small snapshots and shortcuts for the tests of the contract."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from openbook_database.manifest import Manifest
from openbook_database.registry.base import Registry
from openbook_database.registry.directory import DirectoryRegistry
from openbook_database.registry.local_redis import LocalRedis
from openbook_database.registry.readiness import no_check
from openbook_database.registry.records import (
    Control,
    LoadState,
    ReplicaReport,
    ReplicaSnapshot,
)
from openbook_database.registry.redis import RedisRegistry


@cache
def redis_url() -> str:
    """One server for all tests of this process; each registry has its own prefix."""
    folder = tempfile.TemporaryDirectory(prefix="openbook-redis-")
    atexit.register(folder.cleanup)
    server = LocalRedis(Path(folder.name))
    atexit.register(server.stop)
    return server.url


BACKENDS: dict[str, Callable[[Path, Callable[[], float]], Registry]] = {
    "directory": lambda root, clock: DirectoryRegistry(root / "registry", ttl_s=5, clock=clock),
    "redis": lambda root, clock: RedisRegistry(f"{redis_url()}?prefix={quote(str(root))}:", ttl_s=5, clock=clock),
}


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Books:
    """Two editions of one database with two shards, one of another contract, one of another name."""

    old: Path
    new: Path
    third: Path
    other_contract: Path
    other_name: Path

    def id(self, name: str) -> str:
        return Manifest.read(getattr(self, name)).snapshot_id


def report(registry: Registry, snapshot: str, *shards: int, name: str = "r1", **changes: Any) -> ReplicaReport:
    held = ReplicaSnapshot(snapshot, changes.pop("state", LoadState.READY), shards, changes.pop("error", ""))
    made = ReplicaReport("factbook", name, "127.0.0.1:1", 0, (held,))
    registry.report_replica(made)
    return made


def make_live(registry: Registry, books: Books, *names: str) -> Control:
    for name in names:
        registry.register("factbook", getattr(books, name))
        registry.prepare("factbook", books.id(name))
        control = registry.activate("factbook", books.id(name), ready_check=no_check)
    return control
