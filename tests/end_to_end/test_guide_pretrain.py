"""The pretraining guide's commands."""

from __future__ import annotations

import json
from pathlib import Path

from guide_support import ROOT, Guide

import openbook_model

# The shipped recipe's sources and retriever are its own settings, so they are given again.
SOURCES = f"corpus.sources=[{{path: {ROOT}/examples/factbook/2015-11-18.jsonl.zst}}]"
SMALLER = {
    "--limit-documents 20": "--limit-documents 2 --dtype float32",
    "--set corpus.max_documents=20": f"--set '{SOURCES}' --set retrieval.address=127.0.0.1:7000 --set corpus.max_documents=2 "
    "--set steps=4 --set evaluation.sequences=2 --set log_every=1 --set batch.sequences=1 --set batch.micro=1 "
    "--set batch.chunks=2 --set optimiser.warmup_steps=1",
}


def test_the_guide(tmp_path: Path) -> None:
    guide = Guide("docs/guides/pretrain.md", tmp_path, SMALLER)
    start, swap, train = guide.blocks
    with guide.services(start):
        guide.run(swap)
        *_, last, picture = guide.run(train).splitlines()
    summary = json.loads(last)
    assert (summary["steps"], summary["stopped_by"]) == (4, "steps")
    assert picture == "build/train/tiny/curves.png"
    run = tmp_path / "build" / "train" / "tiny"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(0 < line["mfu"] < 1.5 for line in steps)
    assert steps[-1]["learning_rate"] < steps[-2]["learning_rate"]
    weights, average = (
        openbook_model.weights_hash(openbook_model.load(run / name)) for name in ("model", "model-average")
    )
    assert summary["weights_hash"] == weights != average
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
