"""`openbook embedder export` and `compare`, on a tiny encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median

import pytest
from tiny_encoders import EFFECT_TEXTS
from typer.testing import CliRunner

from openbook_cli.embedder import _passages
from openbook_cli.main import app
from openbook_core.errors import ConfigError, MismatchError
from openbook_embedder.compare import compare_backends
from openbook_embedder.engine import EncoderEngine
from openbook_embedder.exported import MIN_PROBE_COSINE

ROOT = Path(__file__).parents[3]


def run(*words: object) -> str:
    done = CliRunner().invoke(app, ["embedder", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = ({"id": str(place), "title": "A page", "text": text} for place, text in enumerate(EFFECT_TEXTS))
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_export_then_compare(
    encoder_of: Callable[[str], Path], texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = cache(_passages)
    monkeypatch.setattr("openbook_cli.embedder._passages", passages)  # its tokenizer takes seconds to load
    model, out, figures = encoder_of("bert"), tmp_path / "exported", tmp_path / "figures.json"
    said = run("export", model, "--format", "onnx", "--out", out, "--texts", texts)
    assert f"exported to {out}: 100.00% of the 10 nearest" in said and "note:" not in said
    assert EncoderEngine.load(out).dtype == "onnx-float32"
    assert "onnx-float32" in run("compare", model, "--exported", out, "--texts", texts, "--json", figures)
    found = json.loads(figures.read_text())
    names = {"torch-float32", "torch-bfloat16", "onnx-float32"}
    assert set(found["chunks_per_s"]) == set(found["effect"]) == set(found["raw"]["seconds"]) == names
    assert found["effect"]["torch-float32"]["overlap"] == 1.0 > found["effect"]["torch-bfloat16"]["overlap"]
    assert all(len(taken) == 5 and min(taken) > 0 for taken in found["raw"]["seconds"].values())
    assert (found["texts"], found["raw"]["texts_per_turn"]) == ("texts.jsonl", 64)


def test_int8_says_what_it_loses(
    encoder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openbook_cli.embedder._passages", lambda path: list(EFFECT_TEXTS))
    said = run("export", encoder_of("bert"), "--format", "onnx", "--dtype", "int8", "--out", tmp_path / "exported")
    assert "too little for a default" in said
    cosine = float(said.partition("lowest cosine on the probe texts ")[2].split()[0].rstrip(";"))
    assert ("too low for databases" in said) == (cosine < MIN_PROBE_COSINE)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--format", "tflite"], "format"),
        (["--format", "onnx", "--dtype", "float16"], "dtype"),
        (["--format", "onnx", "--texts", "absent.jsonl"], "texts"),
        (["--format", "onnx"], "texts"),
    ],
)
def test_bad_options(words: list[str], field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where there are no examples
    with pytest.raises(ConfigError) as refused:
        CliRunner().invoke(app, ["embedder", "export", "--out", "out", *words], catch_exceptions=False)
    assert refused.value.field == field
    assert not list(tmp_path.iterdir())


def test_only_exports_of_the_model_are_compared(
    encoder_of: Callable[[str], Path], export_of: Callable[[str, str], Path]
) -> None:
    with pytest.raises(ConfigError, match="is no export"):
        compare_backends(encoder_of("bert"), [encoder_of("mpnet")], EFFECT_TEXTS)
    with pytest.raises(MismatchError, match="weights"):
        compare_backends(encoder_of("mpnet"), [export_of("bert", "onnx")], EFFECT_TEXTS)


def test_the_guide_s_table_is_that_of_its_run() -> None:
    figures = json.loads((ROOT / "docs" / "results" / "embedder-backends.json").read_text(encoding="utf-8"))
    guide = (ROOT / "docs" / "guides" / "embedder.md").read_text(encoding="utf-8")
    assert len(figures["chunks_per_s"]) == 5
    for name, taken in figures["raw"]["seconds"].items():
        rate, effect = figures["raw"]["texts_per_turn"] / median(taken), figures["effect"][name]
        assert f"| {rate:.1f} | {effect['overlap']:.2%} | {effect['probe_cosine']:.5f} |" in guide
