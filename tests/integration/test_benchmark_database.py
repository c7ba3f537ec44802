"""The benchmark of builds on a tiny random encoder: its figures follow from `raw`, and `db plan` reads its rates."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from openbook_database.testing import tiny_rows, tiny_tokenizer, write_rows

sys.path.insert(0, str(Path(__file__).parent))
from embedder_support import write_modules, write_tiny_encoder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_figures_follow_from_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    database, builds, figures = (
        importlib.import_module(name) for name in ("database", "database_build", "database_figures")
    )
    tiny_tokenizer().save(tmp_path / "tokenizer")
    book = builds.Book(
        data=write_rows(tmp_path / "rows.jsonl", tiny_rows(120)),
        tokenizer=str(tmp_path / "tokenizer"),
        model=str(write_modules(write_tiny_encoder(tmp_path / "tiny"))),
    )
    size = dataclasses.replace(
        database.QUICK,
        share=10,
        rounds=1,
        sizes=(20, 120),
        adding_rounds=1,
        incremental=10,
        vectors=600,
        queries=20,
        lists=256,
    )
    (tmp_path / "work").mkdir()
    result: dict[str, Any] = json.loads(json.dumps(database.run(size, book, False, tmp_path / "work")))
    raw = result["raw"]
    assert {"encoder_share", "stages", "peak_rss_mb", "add_over_faiss", "incremental_share"} <= set(result)
    assert result["vs_retro_pytorch"] is None and result["vs_autofaiss"] is None

    share = raw["share"]
    wall_s = median(trial["wall_s"] for trial in share["build"])
    assert result["encoder_share"] == pytest.approx(share["bare"][0]["wall_s"] / wall_s, abs=1e-4)
    # The lists of a build: its chunks, and the 32 probe texts.
    assert share["texts"] == share["build"][0]["chunks"] + 32
    assert result["stages"]["embed"] == pytest.approx(share["build"][0]["stage_s"]["embed"] / wall_s, abs=1e-4)
    assert result["stages"]["encoder"] <= sum(result["stages"].values()) - result["stages"]["encoder"] <= 1

    small, large = raw["sizes"]
    assert (small["documents"], large["documents"]) == (20, 120)
    assert small["chunks"] < large["chunks"]
    assert result["peak_rss_mb"] == {
        str(child["chunks"]): pytest.approx(child["peak_rss_mb"], abs=0.1) for child in (small, large)
    }
    assert large["index"]["bytes"] >= large["chunks"] * 384 * 4
    assert all(child["peak_rss_mb"] > child["peak_anonymous_mb"] * 0.5 > 10 for child in raw["sizes"])
    bare_s = large["adding"]["bare_faiss_s"][0]
    added = {"add_over_faiss": large["adding"]["ours_s"][0], "add_stage_over_faiss": large["stage_s"]["add"]}
    for name, ours_s in added.items():
        assert result[name][str(large["chunks"])] == pytest.approx(bare_s / ours_s, abs=1e-4)

    encoder, random = raw["incremental"]
    assert encoder["changed_documents"] == 1 and random["changed_documents"] == 2
    assert encoder["full"]["documents"] == encoder["incremental"]["documents"] == 10
    assert result["incremental_share"] == pytest.approx(
        encoder["incremental"]["wall_s"] / encoder["full"]["wall_s"], abs=1e-4
    )
    assert figures.summarise(raw) == {name: value for name, value in result.items() if name != "raw"}
    assert any("encoder_share" in line for line in figures.report(result))
    figures.plot(result, tmp_path / "result.png")
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
