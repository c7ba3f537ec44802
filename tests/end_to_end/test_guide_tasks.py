"""The tasks guide's commands."""

from __future__ import annotations

import json
from pathlib import Path

from guide_support import ROOT, Guide

SMALLER = {
    "--limit-documents 20": "--limit-documents 2",
    "--limit 8": "--limit 2 --max-tokens 4",
    "--part test": "--part train --limit-documents 2 --limit 1 --max-tokens 16",
    "--data examples": f"--data {ROOT}/examples",
}


def test_the_guide(tmp_path: Path) -> None:
    guide = Guide("docs/guides/tasks.md", tmp_path, SMALLER)
    bare, adapted = guide.blocks

    assert "off (gate 0)" in guide.run(bare)
    task = json.loads((tmp_path / "build" / "tasks.json").read_text(encoding="utf-8"))["tasks"]["factbook"]
    assert task["sides"]["off"]["count"] == task["questions"] > 0
    assert (tmp_path / "build" / "tasks.png").stat().st_size > 1000

    assert "stale" in guide.run(adapted)
    figures = json.loads((tmp_path / "build" / "adapter.json").read_text(encoding="utf-8"))
    old, new = figures["tasks"].values()
    assert old["snapshot"] != new["snapshot"]
    assert figures["adapter"]["folder"].endswith("adapters/factbook")
    assert 0 <= new["sides"]["off"]["right"] <= 1
