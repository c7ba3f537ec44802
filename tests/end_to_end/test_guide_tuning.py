"""The instruction-tuning guide's commands."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from guide_support import ROOT, Guide

BLEND = f"{ROOT}/examples/train/blends/factbook.yaml"
SMALLER = {
    "--out build/tuning/2015": "--out build/tuning/2015 --limit-documents 2 --dtype float32",
    "--out build/tuning/2021": "--out build/tuning/2021 --limit-documents 2 --dtype float32",
    "--set out=build/tuning/run": f"--set out=build/tuning/run --set passages.address=127.0.0.1:7000 --set blend={BLEND} "
    "--set steps=2 --set optimiser.warmup_steps=1 --set examples=2 --set only_answerable=false",
    "--part test": "--part all",
    "--limit 64": "--limit 2 --max-tokens 4 --limit-documents 2",
}


@pytest.mark.skipif("OPENBOOK_DATA" not in os.environ, reason="OPENBOOK_DATA names no folder with the data sets")
def test_the_guide(tmp_path: Path) -> None:
    guide = Guide("docs/guides/instruction-tuning.md", tmp_path, SMALLER)
    build, start, train, measure = guide.blocks
    guide.run(build)
    with guide.services(start):
        summary = json.loads(guide.run(train).splitlines()[-1])
    assert summary["steps"] == 2
    assert set(summary["snapshots"]) == {"factbook-2015", "factbook-2021"}
    assert summary["tokens"] > 0
    guide.run(measure)
    figures = json.loads((tmp_path / "build" / "tuning" / "adapter.json").read_text())
    assert figures["tasks"]["factbook@2015-11-18"]["sides"]["off"]["count"] > 0
