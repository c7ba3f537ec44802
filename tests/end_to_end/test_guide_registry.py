"""The guide to registries, with a Redis of the test's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from guide_support import Guide

from openbook_database.registry import open_registry
from openbook_database.registry.local_redis import LocalRedis
from openbook_database.snapshot import Snapshot

PASSWORD = "not-a-secret"


def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBOOK_REDIS_PASSWORD", PASSWORD)
    with LocalRedis(tmp_path / "redis", password=PASSWORD) as redis:
        address = f"redis://127.0.0.1:{redis.port}"
        smaller = {"redis://127.0.0.1:6379": address, "--out build/notes-1": "--out build/notes-1 --dtype float32"}
        guide = Guide("docs/guides/registry.md", tmp_path, smaller)
        build, start, move = guide.blocks
        guide.run(build)
        with guide.services(start):
            (listed,) = json.loads("[\n" + guide.run(move).partition("\n[\n")[2])
        snapshot = Snapshot.open(tmp_path / "build" / "notes-1").id
        assert (listed["database"], listed["live"], listed["epoch"]) == ("notes", snapshot, "1")
        assert len(listed["replicas"]) == len(listed["routers"]) == 1
        assert open_registry(address).control("notes").live == snapshot
    assert PASSWORD not in (tmp_path / "log").read_text()
