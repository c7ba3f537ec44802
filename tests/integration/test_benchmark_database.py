"""The benchmark of builds on a tiny random encoder: its figures follow from `raw`, and `db plan` reads its rates."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from openbook_core.errors import OpenbookError
from openbook_database.plan import Rates
from openbook_database.testing import tiny_rows, tiny_tokenizer, write_rows

sys.path.insert(0, str(Path(__file__).parent))
from embedder_support import write_modules, write_tiny_encoder

ROOT = Path(__file__).parents[2]
PARTS = ["share", "sizes", "torch", "adding", "codes"]
PEERS = {
    "retro_pytorch": {
        "documents": 12,
        "characters": 1000,
        "ours": [{"seconds": 4.0, "chunks": 90}, {"seconds": 5.0, "chunks": 90}, {"seconds": 9.0, "chunks": 90}],
        "retro_pytorch": [{"seconds": 20.0, "chunks": 80}, {"seconds": 10.0, "chunks": 80}],
    },
    "autofaiss": {
        "vectors": 4000,
        "ours": {"seconds": 2.0, "recall": 0.97, "query_ms": 0.5, "bytes": 4_000_000, "factory": "IVF128,SQ8"},
        "autofaiss": {"seconds": 8.0, "recall": 0.91, "query_ms": 0.25, "bytes": 3_000_000, "factory": "HNSW15"},
    },
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = ("database", "database_build", "database_child", "database_figures", "database_plot")
    return {name: importlib.import_module(name) for name in names}


def tiny(bench: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    tiny_tokenizer().save(folder / "tokenizer")
    book = bench["database_build"].Book(
        data=write_rows(folder / "rows.jsonl", tiny_rows(120)),
        tokenizer=str(folder / "tokenizer"),
        model=str(write_modules(write_tiny_encoder(folder / "tiny"))),
    )
    size = dataclasses.replace(
        bench["database"].QUICK,
        share=10,
        rounds=1,
        sizes=(20, 120),
        adding_rounds=1,
        torch=(5,),
        incremental=10,
        vectors=600,
        queries=20,
        added=600,
        added_lists=8,
        coded=600,
        lists=256,
    )
    (folder / "work").mkdir()
    return size, book


def test_the_figures_follow_from_the_trials(tmp_path: Path, bench: dict[str, Any]) -> None:
    size, book = tiny(bench, tmp_path)
    saved: list[list[str]] = []
    database, figures = bench["database"], bench["database_figures"]
    kept = {"peers": {"run": {}, **PEERS}}
    run = database.run(size, book, PARTS, tmp_path / "work", kept, lambda found: saved.append(list(found["raw"])))
    result: dict[str, Any] = json.loads(json.dumps(run))
    raw = result["raw"]
    assert saved == [["peers", *PARTS[: number + 1]] for number in range(len(PARTS))]

    share = raw["share"]
    wall_s = median(trial["wall_s"] for trial in share["build"])
    assert result["encoder_share"] == pytest.approx(share["bare"][0]["wall_s"] / wall_s, abs=1e-4)
    # The lists of a build: its chunks, and the 32 probe texts.
    assert share["texts"] == share["build"][0]["chunks"] + 32
    assert result["stages"]["embed"] == pytest.approx(share["build"][0]["stage_s"]["embed"] / wall_s, abs=1e-4)
    assert result["stages"]["encoder"] <= sum(result["stages"].values()) - result["stages"]["encoder"] <= 1
    small = share["incremental"]
    assert small["changed_documents"] == 1
    assert small["full"]["documents"] == small["incremental"]["documents"] == 10
    assert result["incremental_share_small"] == pytest.approx(
        small["incremental"]["wall_s"] / small["full"]["wall_s"], abs=1e-4
    )

    first, large = raw["sizes"]["builds"]
    assert (first["documents"], large["documents"]) == (20, 120)
    assert first["chunks"] < large["chunks"] == large["encoded_chunks"]
    assert result["peak_rss_mb"] == {
        str(child["chunks"]): pytest.approx(child["peak_rss_mb"], abs=0.1) for child in (first, large)
    }
    assert large["index"]["bytes"] >= large["chunks"] * 384 * 4
    assert large["training_sample_bytes"] == 0
    over = large["peak_once_mb"] - large["index"]["bytes"] / 1e6
    assert result["peak_over_index_mb"][str(large["chunks"])] == pytest.approx(over, abs=0.1)
    assert all(child["peak_rss_mb"] > child["peak_anonymous_mb"] * 0.5 > 10 for child in (first, large))
    assert all(
        child["peak_rss_mb"] >= child["peak_once_mb"] > child["peak_anonymous_mb"] * 0.9 for child in (first, large)
    )
    (torch,) = raw["torch"]["builds"]
    assert torch["documents"] == 5 and torch["index"]["bytes"] < torch["chunks"] * 128 * 4 + 1000
    assert result["peak_torch_over_index_mb"][str(torch["chunks"])] > over
    bare_s = large["adding"]["bare_faiss_s"][0]
    added = {"add_over_faiss_by_size": large["adding"]["ours_s"][0], "add_stage_over_faiss": large["stage_s"]["add"]}
    for name, ours_s in added.items():
        assert result[name][str(large["chunks"])] == pytest.approx(bare_s / ours_s, abs=1e-4)
    assert list(result["add_over_faiss"]) == ["Flat", "IVF8,Flat", "IVF8,SQ8", "IVF8,RaBitQ"]
    trials = raw["adding"]["recipes"]["IVF8,SQ8"]
    assert result["add_over_faiss"]["IVF8,SQ8"] == pytest.approx(
        trials["bare_faiss_s"][0] / trials["ours_s"][0], abs=1e-4
    )

    incremental = raw["sizes"]["incremental"]
    changed, full = incremental["incremental"], incremental["full"]
    assert full == large and incremental["changed_documents"] == 2
    assert 0 < changed["encoded_chunks"] < 0.1 * full["chunks"]
    encode_s = share["bare"][0]["wall_s"] / share["texts"]
    expected = (changed["wall_s"] + changed["encoded_chunks"] * encode_s) / (full["wall_s"] + full["chunks"] * encode_s)
    assert result["incremental_share"] == pytest.approx(expected, abs=1e-4)
    assert result["incremental_share_measured"] == pytest.approx(changed["wall_s"] / full["wall_s"], abs=1e-4)
    assert result["vs_retro_pytorch"] == 15 / 5
    Rates.parse(result["rates"], source="the benchmark")

    assert figures.summarise(raw) == {name: value for name, value in result.items() if name != "raw"}
    raw["peers"]["run"] = share["run"]
    for part in figures.PARTS:
        alone = {part: raw[part]}
        single = {**figures.summarise(alone), "raw": alone}
        assert any(value is not None for value in single.values())
        assert figures.report(single) and figures.table(single)
    bench["database_plot"].plot(result, tmp_path / "result.png")
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


def test_peers_are_compared_by_their_medians(tmp_path: Path, bench: dict[str, Any]) -> None:
    figures = bench["database_figures"]
    run = {
        **{
            "command": "python benchmarks/database.py",
            "date": "2026-11-30T10:00:00",
            "commit": "c" * 40,
            "seconds": 9.0,
        },
        **{"data": "rows.jsonl", "model": "org/model", "cores": 2, "cpu": "a processor"},
        **{"load_1m_before": 0.25, "load_1m_after": 2.0},
    }
    raw = {"peers": {"run": run, **PEERS}}
    result = {**figures.summarise(raw), "raw": raw}
    assert result["vs_retro_pytorch"] == 3.0
    assert result["vs_autofaiss"] == {
        "build": 4.0,
        "recall": {"ours": 0.97, "autofaiss": 0.91},
        "query_ms": {"ours": 0.5, "autofaiss": 0.25},
        "bytes": {"ours": 4_000_000, "autofaiss": 3_000_000},
    }
    assert {result[name] for name in ("encoder_share", "incremental_share", "add_over_faiss", "rates")} == {None}
    printed = "\n".join(figures.report(result))
    for line in ("12 documents, 80 chunks: 15.0 s", "HNSW15, 8.0 s, recall@10 0.910 at 0.25 ms, 3.0 MB"):
        assert line in printed
    shown = "\n".join(figures.table(result))
    assert "over ours | 1 | 3.000 |" in shown and "load at most 0.25" in shown and "bare encoder" not in shown
    readme = f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n"
    assert figures.written(readme, result) == f"before\n{figures.BEGIN}\n{shown}\n{figures.END}\nafter\n"
    bench["database_plot"].plot(result, tmp_path / "result.png")
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


def test_a_part_that_fails_loses_nothing_of_those_before(
    tmp_path: Path, bench: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    database, file = bench["database"], tmp_path / "result.json"

    def fail(self: Any, folder: Path) -> dict[str, Any]:
        raise OpenbookError("no")

    monkeypatch.setattr(importlib.import_module("measure"), "stop_after", lambda seconds: None)
    monkeypatch.setattr(database._Bench, "peers", lambda self, folder: PEERS)
    monkeypatch.setattr(importlib.import_module("embedder_sides"), "require_peers", lambda names: None)
    monkeypatch.setattr(database._Bench, "codes", fail)
    assert database.main(["--quick", "--parts", "codes,peers", "--json", str(file)]) == 1
    assert list(json.loads(file.read_text())["raw"]) == ["peers"]
    monkeypatch.setattr(database._Bench, "codes", lambda self, folder: {"rates": {}, "vectors": "v", "recall": {}})
    assert database.main(["--quick", "--parts", "codes", "--json", str(file)]) == 0
    assert list(json.loads(file.read_text())["raw"]) == ["peers", "codes"]
    for wrong, message in ((["peers", "--peers", "none"], "no part is left"), (["all"], "known: share, sizes, torch")):
        with pytest.raises(SystemExit):
            database.main(["--parts", *wrong])
        assert message in capsys.readouterr().err


def test_random_vectors_lie_together_in_one_document_and_follow_from_the_text_alone(bench: dict[str, Any]) -> None:
    encoder = bench["database_child"].RandomEncoder()
    texts = [f"{title}: chunk {number}" for title in ("Files", "Windows") for number in range(20)]
    vectors_ND = encoder.encode(texts)
    np.testing.assert_array_equal(encoder.encode(texts[7:9]), vectors_ND[7:9])
    cosines_NN = vectors_ND @ vectors_ND.T
    np.testing.assert_allclose(np.diag(cosines_NN), 1, rtol=1e-5)
    same = cosines_NN[:20, :20][~np.eye(20, dtype=bool)]
    assert 0.55 < same.min() < same.max() < 0.85
    assert abs(cosines_NN[:20, 20:]).max() < 0.3


def test_kills_have_passed_with_five_in_each_stage_and_equal_bytes(bench: dict[str, Any]) -> None:
    kills = importlib.import_module("database_kills")
    killed = [{"stage": stage} for stage in kills.STAGES for _ in range(5)]
    assert kills.by_stage([*killed, {"stage": "between"}]) == dict.fromkeys(kills.STAGES, 5) | {"between": 1}
    assert (kills.rarest(killed), kills.rarest(killed[1:]), kills.rarest([])) == (5, 4, 0)
    good = {"kills": 25, "by_stage": kills.by_stage(killed), "different": 0}
    assert kills.passed(good, 25)
    for wrong in ({"kills": 24}, {"different": 1}, {"by_stage": kills.by_stage(killed[1:])}):
        assert not kills.passed({**good, **wrong}, 25)


def test_readme_and_plan_state_what_was_measured(bench: dict[str, Any]) -> None:
    figures = bench["database_figures"]
    result = json.loads((ROOT / "docs" / "results" / "database.json").read_text(encoding="utf-8"))
    raw = result.pop("raw")
    assert figures.summarise(raw) == result
    readme = figures.README.read_text(encoding="utf-8")
    assert figures.BEGIN in readme and figures.written(readme, {**result, "raw": raw}) == readme
    assert json.loads(figures.RATES.read_text(encoding="utf-8")) == result["rates"]
    shown = figures.table({**result, "raw": raw})
    computed = next(line for line in shown if line.startswith("| 1% of the documents"))
    assert "computed, with the encoder's rate" in computed and f"| {result['incremental_share']:.3f} |" in computed
    incremental = raw["sizes"]["incremental"]
    share = incremental["incremental"]["wall_s"] / incremental["full"]["wall_s"]
    assert f"| ... measured, without the encoder |  | {share:.3f} |" in shown


def test_trials_of_an_earlier_program_say_so(bench: dict[str, Any]) -> None:
    """Bare Faiss against the whole stage; one load of one run, whatever parts its trials are arranged in."""
    figures = bench["database_figures"]
    raw = json.loads((ROOT / "docs" / "results" / "database.json").read_text(encoding="utf-8"))["raw"]
    for part in raw.values():
        part["run"] |= {"date": "2026-11-25T00:11:40+00:00", "load_1m_before": 0.25, "note": "before it was changed"}
    for build in raw["sizes"]["builds"]:
        build.pop("adding", None)
        build |= {"chunks": build["documents"], "bare_faiss_s": [3.0, 1.0, 2.0]}
        build["stage_s"]["add"] = 8.0
    raw.pop("adding", None)
    shown = "\n".join(figures.table({**figures.summarise(raw), "raw": raw}))
    added = ", ".join(f"{build['documents']} 0.250" for build in raw["sizes"]["builds"])
    assert f"| the whole stage add over bare Faiss, by chunks | 0.9 | {added} |" in shown
    assert "load at most 0.25 before the run;" in shown and "; before it was changed;" in shown
    for number, part in enumerate(raw.values()):
        part["run"]["date"] = str(number)
    assert "before a part;" in "\n".join(figures.table({**figures.summarise(raw), "raw": raw}))
