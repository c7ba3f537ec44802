"""The perplexity guide's commands."""

from __future__ import annotations

import json
from pathlib import Path

from guide_support import ROOT, Guide

# The shipped recipe's sources and retriever are its own settings, so they are given again.
SOURCES = f"corpus.sources=[{{path: {ROOT}/examples/factbook/2015-11-18.jsonl.zst}}]"
SMALLER = {
    "--limit-tokens 20000": "--limit-tokens 700",
    "--limit-tokens 2000": "--limit-tokens 200",
    "--limit-documents 20": "--limit-documents 2 --dtype float32",
    "--set corpus.max_documents=20": f"--set '{SOURCES}' --set retrieval.address=127.0.0.1:7000 --set corpus.max_documents=2 "
    "--set steps=6 --set evaluation.sequences=2",
}


def test_the_guide(tmp_path: Path) -> None:
    guide = Guide("docs/guides/perplexity.md", tmp_path, SMALLER)
    off, start, on, score = guide.blocks
    with guide.services(start):
        assert "off (gate 0)" in guide.run(off)
        output = guide.run(on)
        assert "exact_match" in guide.run(score)
    figures = json.loads((tmp_path / "build" / "perplexity.json").read_text())
    assert figures["cross_attention"] == "on"
    assert figures["documents_excluded_for_themselves"] == figures["documents"]
    assert figures["on"]["nats_per_token"] != figures["off"]["nats_per_token"]
    assert figures["half"] is not None
    assert figures["overlap"][-1]["chunks"] > 0
    assert figures["gate"]["verdict"] in output
    assert ("exit code 3" in output) is not figures["gate"]["passed"]
    assert (tmp_path / "build" / "perplexity.png").exists()
    assert json.loads((tmp_path / "build" / "perplexity-off.json").read_text())["on"] is None
    assert json.loads((tmp_path / "build" / "scores.json").read_text())["exact_match"] == 1.0
