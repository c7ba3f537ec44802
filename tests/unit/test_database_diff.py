"""`db diff` against sets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from openbook_cli.main import app
from openbook_core.errors import NotFoundError
from openbook_database.diff import Change, SnapshotDiff
from openbook_database.manifest import Manifest
from openbook_database.testing import build_tiny_snapshot, tiny_rows


@pytest.fixture(autouse=True, scope="module")
def without_flushing() -> Iterator[None]:
    """Flushing takes most of a tiny build's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def test_every_kind_of_change(tmp_path: Path) -> None:
    rows = [{**row, "region": "r", "note": None} for row in tiny_rows(14, seed=6, words=20)]
    after = [dict(row) for row in rows[2:]]
    after[0] |= {"text": "Another."}
    after[1] |= {"title": "Another"}
    after[2] |= {"licence": "CC0", "uri": "http://x"}
    after[3] |= {"region": "s", "note": 1}
    after += [{"id": "é", "text": "new"}, {"id": "!", "text": "new"}]
    keep = {"fields": {"metadata": ("region", "note")}}
    first = build_tiny_snapshot(tmp_path / "a", rows=rows, **keep).path
    second = build_tiny_snapshot(tmp_path / "b", rows=after[::-1], shards=3, **keep).path
    expected = [
        Change("removed", rows[0]["id"]),
        Change("removed", rows[1]["id"]),
        Change("changed", rows[2]["id"], ("content",)),
        Change("changed", rows[3]["id"], ("content", "title")),
        Change("changed", rows[4]["id"], ("uri", "licence")),
        Change("changed", rows[5]["id"], ("metadata.note", "metadata.region")),
        Change("added", "é"),
        Change("added", "!"),
    ]
    diff = SnapshotDiff(first, second)
    assert list(diff.changes()) == sorted(expected, key=lambda change: change.external_id.encode())
    assert diff.counts == {"added": 2, "changed": 4, "removed": 2, "unchanged": 8}
    assert diff.contract == []
    reverse = SnapshotDiff(second, first)
    swapped = {"added": "removed", "removed": "added", "changed": "changed"}
    assert {(c.kind, c.external_id) for c in reverse.changes()} == {(swapped[c.kind], c.external_id) for c in expected}
    nothing = SnapshotDiff(first, first)
    assert list(nothing.changes()) == []
    assert nothing.counts["unchanged"] == 14


def test_random_corpora_against_sets(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    texts = [{str(n): int(random.integers(2)) for n in random.integers(0, 40, 25).tolist()} for _ in range(2)]
    paths = [
        build_tiny_snapshot(tmp_path / str(n), rows=[{"id": i, "text": f"words {t}"} for i, t in rows.items()]).path
        for n, rows in enumerate(texts)
    ]
    first, second = texts
    found = list(SnapshotDiff(*paths).changes())
    assert {c.external_id for c in found if c.kind == "added"} == second.keys() - first.keys()
    assert {c.external_id for c in found if c.kind == "removed"} == first.keys() - second.keys()
    assert {c.external_id for c in found if c.kind == "changed"} == {
        name for name in first.keys() & second.keys() if first[name] != second[name]
    }


@pytest.mark.parametrize("chunk_length", [16, 8])
def test_the_command_as_json(tmp_path: Path, chunk_length: int) -> None:
    first = build_tiny_snapshot(tmp_path / "a", rows=[{"id": "a", "text": "x"}, {"id": 'b"', "text": "y"}]).path
    rows = [{"id": 'b"', "text": "z"}, {"id": "c", "text": "y"}]
    second = build_tiny_snapshot(tmp_path / "b", rows=rows, chunk_length=chunk_length).path
    shown = json.loads(CliRunner().invoke(app, ["db", "diff", str(first), str(second), "--json"]).stdout)
    assert shown["documents"] == [
        {"id": "a", "change": "removed", "fields": []},
        {"id": 'b"', "change": "changed", "fields": ["content"]},
        {"id": "c", "change": "added", "fields": []},
    ]
    assert shown["snapshots"] == [Manifest.read(first).snapshot_id, Manifest.read(second).snapshot_id]
    assert [shown[kind] for kind in ("added", "changed", "removed", "unchanged")] == [1, 1, 1, 0]
    other = [{"field": "chunk_length", "first": 16, "second": 8}]
    assert shown["contract"] == (other if chunk_length == 8 else [])
    lines = CliRunner().invoke(app, ["db", "diff", str(first), str(second)]).stdout.splitlines()
    assert lines[-3:] == ["- a", '~ b"  (content)', "+ c"]
    assert lines[:-3] == (["contract: chunk_length: 16 -> 8"] if chunk_length == 8 else [])
    same = CliRunner().invoke(app, ["db", "diff", str(first), str(first), "--json"]).stdout
    assert json.loads(same)["documents"] == []


def test_no_snapshot_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="gone holds no snapshot"):
        SnapshotDiff(tmp_path / "gone", tmp_path / "gone")
