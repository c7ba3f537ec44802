"""Leases: who holds a snapshot, for how long, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from openbook_core.errors import ArgumentError, NotFoundError, OverloadedError, PreconditionError, Reason
from openbook_database.registry import base
from openbook_database.registry.base import Registry

sys.path.insert(0, str(Path(__file__).parent))
from registry_support import Books, Clock, make_live, report


def holders(registry: Registry) -> list[tuple[str, str]]:
    return [(lease.name.partition("@")[0], lease.snapshot) for lease in registry.leases("factbook")]


def test_a_lease_lasts_until_it_ends_unless_it_is_renewed(registry: Registry, books: Books, clock: Clock) -> None:
    make_live(registry, books, "old")
    old = books.id("old")
    registry.take_lease("factbook", old, "run", 10)
    registry.take_lease("factbook", old[:8], "other", 30)
    assert holders(registry) == [("other", old), ("run", old)]
    clock.now += 9
    registry.take_lease("factbook", old, "run", 10)
    clock.now += 9
    assert len(holders(registry)) == 2
    clock.now += 1
    assert holders(registry) == [("other", old)], "a dead holder's lease ends"
    registry.release_lease("factbook", old, "other")
    registry.release_lease("factbook", old, "other")
    assert holders(registry) == []


def test_a_long_lease_does_not_end_a_short_one(registry: Registry, books: Books, clock: Clock) -> None:
    make_live(registry, books, "old")
    registry.take_lease("factbook", books.id("old"), "short", 10)
    registry.take_lease("factbook", books.id("old"), "long", 3600)
    assert [name for name, _ in holders(registry)] == ["long", "short"]
    clock.now += 100
    registry.take_lease("factbook", books.id("old"), "third", 10)
    stored = [lease.name.partition("@")[0] for lease in registry._load_reports("leases", "factbook")]
    assert stored == ["long", "third"], "what has long expired is forgotten"


def test_a_lease_on_what_is_not_served_any_more_is_refused(registry: Registry, books: Books) -> None:
    make_live(registry, books, "old", "new", "third")
    with pytest.raises(PreconditionError, match="shard 0, 1 of 2") as refused:
        registry.take_lease("factbook", books.id("old"), "run", 10)
    assert (refused.value.reason, refused.value.field) == (Reason.SNAPSHOT_RETIRED, "snapshot")
    assert holders(registry) == []
    report(registry, books.id("old"), 0, 1)
    registry.take_lease("factbook", books.id("old"), "run", 10)
    registry.withdraw(registry.replicas("factbook")[0])
    registry.take_lease("factbook", books.id("old"), "run", 10)  # who holds it may go on


def test_leases_hold_no_more_snapshots_than_memory_is_meant_for(
    registry: Registry, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_live(registry, books, "old", "new", "third")
    monkeypatch.setattr(base, "MAX_LEASED_SNAPSHOTS", 0)
    report(registry, books.id("old"), 0, 1)
    with pytest.raises(OverloadedError, match="at most 0"):
        registry.take_lease("factbook", books.id("old"), "run", 10)
    registry.take_lease("factbook", books.id("new"), "run", 10)  # previous: kept anyway


@pytest.mark.parametrize(
    ("database", "holder", "ttl_s", "field"),
    [("../x", "run", 1, "database"), ("factbook", "a/b", 1, "name"), ("factbook", "run", 0, "ttl_s")]
    + [("factbook", "run", bad, "ttl_s") for bad in (-1.0, 3601.0, float("nan"), float("inf"))],
)
def test_wrong_leases_are_refused(
    registry: Registry, books: Books, database: str, holder: str, ttl_s: float, field: str
) -> None:
    make_live(registry, books, "old")
    with pytest.raises(ArgumentError) as wrong:
        registry.take_lease(database, books.id("old"), holder, ttl_s)
    assert wrong.value.field == field
    with pytest.raises(NotFoundError):
        registry.take_lease("factbook", "0" * 64, "run", 1)
    assert holders(registry) == []
