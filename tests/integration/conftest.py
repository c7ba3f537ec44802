"""What several of these tests need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from openbook_database.registry.local_redis import LocalRedis


@pytest.fixture(params=["directory", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a registry is: in a directory, or in a Redis of its own."""
    if request.param == "directory":
        yield str(tmp_path / "registry")
    else:
        with LocalRedis(tmp_path / "redis") as server:
            yield server.url
