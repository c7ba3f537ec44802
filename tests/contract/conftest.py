"""Fixtures of the registry's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from openbook_database.registry.base import Registry
from openbook_database.testing import build_tiny_snapshot

sys.path.insert(0, str(Path(__file__).parent))
from registry_support import BACKENDS, Books, Clock


@pytest.fixture(scope="session")
def books(tmp_path_factory: pytest.TempPathFactory) -> Books:
    root = tmp_path_factory.mktemp("books")
    build_tiny_snapshot(root / "old", database="factbook", documents=4, shards=2, edition="2015")
    build_tiny_snapshot(root / "new", database="factbook", documents=4, shards=2, edition="2026")
    build_tiny_snapshot(root / "third", database="factbook", documents=3, shards=3, edition="2030")
    build_tiny_snapshot(root / "other_contract", database="factbook", documents=4, dimension=8, chunk_length=32)
    build_tiny_snapshot(root / "other_name", database="cookbook", documents=2)
    return Books(*(root / name for name in ("old", "new", "third", "other_contract", "other_name")))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=list(BACKENDS))
def registry(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Registry:
    return BACKENDS[request.param](tmp_path, clock)
