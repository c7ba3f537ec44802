"""The guide from a folder of files to answers."""

from __future__ import annotations

import json
from pathlib import Path

from guide_support import Guide

SMALLER = {
    "openbook db build": "openbook db build --dtype float32",
    "openbook db eval": "openbook db eval --dtype float32",
    "-k 2\n": "-k 2 --dtype float32\n",
}


def test_the_guide(tmp_path: Path) -> None:
    guide = Guide("docs/guides/build-a-database.md", tmp_path, SMALLER)
    files, sources, build, plan, look, measure, start, live, ask, update, erase = guide.blocks
    guide.run(files)
    guide.run(sources)
    assert "3 documents" in guide.run(build)  # the copy is left out
    assert json.loads((tmp_path / "build" / "2026-10.json").read_text())["documents"] == 3
    assert "IVF1048576_HNSW32" in guide.run(plan)
    looked = guide.run(look)
    assert "chunk 0: " in looked and "Technician: Rosa Blum" in looked
    assert (tmp_path / "build" / "2026-10.png").read_bytes().startswith(b"\x89PNG")
    assert "2 questions" in guide.run(measure)
    with guide.services(start), guide.services(live):
        assert "Rosa Blum" in guide.run(ask)
        assert "~ car.txt" in guide.run(update)
        assert "1 documents erased, 2 left" in guide.run(erase)
