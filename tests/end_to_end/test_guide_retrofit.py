"""The retrofit guide's commands."""

from __future__ import annotations

import json
from pathlib import Path

from guide_support import ROOT, Guide

# The shipped recipes' sources and retriever are their own settings, so they are given again.
SMALL = (
    f"--set 'corpus.sources=[{{path: {ROOT}/examples/factbook/2015-11-18.jsonl.zst}}]' --set corpus.max_documents=2 "
    "--set steps=3 --set optimiser.warmup_steps=1 --set evaluation.sequences=2 --set batch.sequences=2"
)
SMALLER = {
    "--limit-tokens 2000": "--limit-tokens 200",
    "--limit-documents 20": "--limit-documents 2 --dtype float32",
    "--config examples/train/retrofit.yaml --set corpus.max_documents=20": "--config examples/train/retrofit.yaml "
    f"{SMALL} --set retrieval.address=127.0.0.1:7000",
    "--config examples/train/tiny-twin.yaml --set corpus.max_documents=20": "--config examples/train/tiny-twin.yaml "
    f"{SMALL}",
}


def test_the_guide(tmp_path: Path) -> None:
    guide = Guide("docs/guides/retrofit.md", tmp_path, SMALLER)
    build, start, train, measure, back, twin = guide.blocks
    guide.run(build)
    with guide.services(start):
        trained = json.loads(guide.run(train).splitlines()[-1])
        assert trained["steps"] == 3
        guide.run(measure)
    base, retrofit = (json.loads((tmp_path / "build" / f"{name}.json").read_text()) for name in ("base", "retrofit"))
    assert retrofit["off"] == base["off"]
    assert retrofit["cross_attention"] == "on"
    assert retrofit["on"]["nats_per_token"] != retrofit["off"]["nats_per_token"]
    resolved = guide.run(back)
    assert "model.cross_attention_layers: [12, 24]  # derived" in resolved
    assert "model.encoder.hidden_size: 128  # derived" in resolved
    alone = json.loads(guide.run(twin).splitlines()[-1])
    assert alone["loss_off"] > 0.0
    assert alone["loss_on"] is None
