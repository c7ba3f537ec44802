"""`openbook db build`: its options of sources and cleaning reach the build, with a small tokenizer and encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from openbook_cli import build as verb
from openbook_cli.database import app
from openbook_core.errors import ConfigError, InputError
from openbook_core.tokenizer import Tokenizer
from openbook_database.snapshot import Snapshot
from openbook_database.testing import HashEncoder, tiny_rows, tiny_tokenizer, write_rows


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "load_encoder", lambda *given: HashEncoder())
    monkeypatch.setattr(Tokenizer, "load", lambda name: tiny_tokenizer())


def run(*arguments: object) -> tuple[str, Any]:
    result = CliRunner().invoke(app, ["build", "--name", "tiny", *map(str, arguments)])
    return result.output, result.exception


def test_the_device_is_the_encoders_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        "openbook_embedder.engine.EncoderEngine.load", lambda name, **given: asked.update(given) or HashEncoder()
    )
    verb.load_encoder(None, "model", "float32", "cpu", {}, (), {})
    assert (asked["device"], asked["dtype"]) == ("cpu", "float32")


def test_memory_sample_and_vectors_from_the_command_line(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", tiny_rows(12))
    given = ("--memory", "2MiB", "--train-sample", 40, "--no-keep-vectors", "--overlap-threshold", 0.5)
    output, error = run(source, "--out", tmp_path / "one", "--index", "IVF2,SQ8", "--chunk-length", 16, *given)
    assert error is None, output
    again, error = run(source, "--out", tmp_path / "one", "--index", "IVF2,SQ8", "--chunk-length", 16, *given)
    assert error is None and "was there already" in again
    manifest = Snapshot.open(tmp_path / "one").manifest
    settings = manifest.recipe["settings"]
    assert (settings["memory"], settings["train_sample"], settings["keep_vectors"]) == (2 << 20, 40, False)
    assert settings["cleaning"]["overlap_threshold"] == 0.5 and manifest.index.trained_on == 40
    output, error = run(
        source, "--out", tmp_path / "two", "--base", tmp_path / "one", "--index", "IVF2,SQ8", "--chunk-length", 16
    )
    assert error is None, output
    assert not Snapshot.open(tmp_path / "two").manifest.recipe["settings"]["keep_vectors"]


def test_recall_shards_fields_and_cleaning_reach_the_settings(tmp_path: Path) -> None:
    rows = [{"key": row["id"], "body": row["text"], "head": row["title"], "year": 2000} for row in tiny_rows(40)]
    source = tmp_path / "a.jsonl"
    source.write_text("not JSON\n" + "".join(json.dumps(row) + "\n" for row in rows))
    output, error = run(
        *(source, "--out", tmp_path / "one", "--index", "IVF8,SQ8", "--target-recall", 0.5, "--shards", 3),
        *("--template", "{title} > {text}", "--text-field", "body", "--id-field", "key", "--title-field", "head"),
        *("--metadata", "year", "--skip-bad-lines", "--limit-documents", 30, "--workers", 2, "--device", "cpu"),
        *("--dedup", "near", "--near-threshold", 0.9, "--longest-run", 0, "--json", tmp_path / "figures.json"),
    )
    assert error is None, output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["documents"], figures["shards"], figures["skipped"]) == (30, 3, {"not JSON": 1})
    assert "skipped: 1 lines (not JSON)" in output
    manifest = Snapshot.open(tmp_path / "one").manifest
    settings, recall = manifest.recipe["settings"], manifest.index.recall
    assert (recall["target"], recall["chosen"] >= 0.5, len(manifest.shards)) == (0.5, True, 3)
    assert all(line["recall"] < 0.5 for line in recall["measured"] if line["nprobe"] < manifest.index.search["nprobe"])
    assert manifest.contract.passage_template == "{title} > {text}"
    assert (settings["cleaning"]["dedup"], settings["cleaning"]["near_threshold"]) == ("near", 0.9)
    assert settings["cleaning"]["longest_run"] is None
    record = Snapshot.open(tmp_path / "one").documents.record(0)
    assert (record.title is not None, record.metadata) == (True, {"year": 2000})


def test_sources_and_cleaning_from_the_command_line(tmp_path: Path) -> None:
    rows = tiny_rows(12)
    write_rows(tmp_path / "a.jsonl", rows[:6])
    write_rows(tmp_path / "b.jsonl", [{"id": "twin", "text": rows[0]["text"]}])
    pq.write_table(pa.table({"body": [row["text"] for row in rows[6:]]}), tmp_path / "c.parquet")
    (tmp_path / "asked.jsonl").write_text(json.dumps({"question": rows[3]["text"]}))
    entry = {"path": "c.parquet", "licence": "MIT", "fields": {"text": "body", "id": ""}}
    (tmp_path / "list.yaml").write_text(json.dumps({"sources": [entry]}))
    output, error = run(
        *("--input", tmp_path / "[ab].jsonl", "--sources", tmp_path / "list.yaml", "--out", tmp_path / "out"),
        *("--dedup", "exact", "--decontaminate", tmp_path / "asked.jsonl", "--chunk-length", 32, "--metadata", "title"),
    )
    assert error is None, output
    assert "left out: 1 documents (exact duplicate)" in output
    assert "left out: 1 documents (evaluation overlap)" in output
    snapshot = Snapshot.open(tmp_path / "out")
    assert snapshot.manifest.contract.chunk_length == 32
    assert [source["name"] for source in snapshot.manifest.sources] == ["a.jsonl", "b.jsonl", "c.parquet"]
    number = snapshot.documents.number("c.parquet:6")
    assert number is not None
    assert snapshot.documents.record(number).licence == "MIT"
    assert len((tmp_path / "out.report.jsonl").read_text().splitlines()) == 2


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", tiny_rows(3))
    for options, kind, message in (
        (["--input", tmp_path / "*.parquet"], InputError, "no file matches"),
        (["--input", rows, "--dedup", "fuzzy"], ConfigError, "cleaning.dedup"),
        (["--input", rows, "--longest-run", 5], ConfigError, "cleaning.longest_run"),
        (["--input", rows, "--chunk-length", 0], ConfigError, "chunk_length"),
        (["--sources", tmp_path / "gone.yaml"], ConfigError, "no such configuration file"),
    ):
        output, error = run(*options, "--out", tmp_path / "out")
        assert isinstance(error, kind), output
        assert message in str(error)
