"""The commands of the guide to questions, publishing and the neighbour cache."""

from __future__ import annotations

import json
from pathlib import Path

from guide_support import ROOT, Guide

from openbook_database.neighbours import NeighbourCache
from openbook_database.snapshot import Snapshot

# The shipped recipe's sources are its own setting, so they are given again.
SOURCES = f"corpus.sources=[{{path: {ROOT}/examples/factbook/2015-11-18.jsonl.zst}}]"
SMALLER = {
    "--limit-documents 20": "--limit-documents 2 --dtype float32",
    "--json build/book-eval.json": "--json build/book-eval.json --dtype float32 --limit 40",
    "--k 2": "--k 2 --dtype float32",
    "--set corpus.max_documents=20": f"--set '{SOURCES}' --set corpus.max_documents=2 --set steps=6 "
    "--set evaluation.sequences=2",
}


def test_the_guide(tmp_path: Path) -> None:
    guide = Guide("docs/guides/neighbour-cache-and-publishing.md", tmp_path, SMALLER)
    build, evaluate, transport, neighbours = guide.blocks
    guide.run(build)
    assert "answer with continuation" in guide.run(evaluate)
    figures = json.loads((tmp_path / "build" / "book-eval.json").read_text())
    assert (figures["kind"], figures["questions"]) == ("factbook, old edition", 40)
    assert "copied" in guide.run(transport)
    book = Snapshot.open(tmp_path / "build" / "replica")
    summary = json.loads(guide.run(neighbours).splitlines()[-1])
    assert summary["snapshot"] == book.id == NeighbourCache.open(tmp_path / "build" / "neighbours").snapshot_id
    assert summary["steps"] == 6 and not summary["masked_batches"]
