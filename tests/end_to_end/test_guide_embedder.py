"""The embedder guide's commands."""

from __future__ import annotations

import json
from pathlib import Path

from guide_support import Guide


def test_the_guide(tmp_path: Path) -> None:
    guide = Guide("docs/guides/embedder.md", tmp_path, {"--limit-documents 20": "--limit-documents 2"})
    start, ask, build = guide.blocks
    with guide.services(start) as output:
        assert json.loads(output.read_text())["http"].endswith(guide.ports["7002"])
        assert '"embedding"' in guide.run(ask)
        assert "2 documents" in guide.run(build)
