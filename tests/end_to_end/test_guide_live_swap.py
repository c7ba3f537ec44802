"""The guide of the live swap, run as written on two tiny editions."""

from __future__ import annotations

import json
from pathlib import Path

from guide_support import Guide

from openbook_database.testing import build_tiny_snapshot


def test_the_guide(tmp_path: Path) -> None:
    ids = [
        build_tiny_snapshot(tmp_path / "books" / year, database="factbook", shards=2, edition=year).snapshot_id
        for year in ("2015", "2026")
    ]
    guide = Guide("docs/guides/live-swap.md", tmp_path, {})
    start, swaps = guide.blocks
    with guide.services(start):
        lines = guide.run(swaps).splitlines()
        first, plan, second, back, retired = (json.loads(line) for line in lines if line.startswith("{"))
        assert (first["live"], first["epoch"], second["live"], second["epoch"]) == (ids[0], 1, ids[1], 2)
        assert plan["fits"]
        assert len(plan["replicas"]) == 4
        assert {replica["mode"] for replica in plan["replicas"]} == {"mapped"}
        assert (back["live"], back["epoch"], back["moved_by"]) == (ids[0], "3", "rollback")
        assert "previous" not in retired
        shown = "\n".join(line for line in lines if not line.startswith("{"))
        assert f"factbook   epoch 2   live {ids[1][:12]}   previous {ids[0][:12]}" in shown
        assert shown.count("ready") == 8
    assert json.loads((tmp_path / "state" / "factbook.json").read_text())["control"]["epoch"] == 3
