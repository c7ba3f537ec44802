"""The embedder guide's commands."""

from __future__ import annotations

import json
from pathlib import Path

from guide_support import Guide


def test_the_guide(tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    rows = ({"id": str(number), "text": f"Country {number} has {number * 7919} inhabitants."} for number in range(100))
    few.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    smaller = {
        "--limit-documents 20": "--limit-documents 2",
        "--texts examples/factbook/2026-02-19.jsonl.zst": f"--texts {few}",
    }
    guide = Guide("docs/guides/embedder.md", tmp_path, smaller)
    start, ask, build, export = guide.blocks
    with guide.services(start) as output:
        assert json.loads(output.read_text())["http"].endswith(guide.ports["7002"])
        assert '"embedding"' in guide.run(ask)
        assert "2 documents" in guide.run(build)
        assert "exported to build/embedder/onnx: " in guide.run(export)
