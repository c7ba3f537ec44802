"""The run behind docs/results/language.json: its three configurations, its corpus, its verdict on the lowest overlap."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from zstandard import ZstdCompressor

from openbook_core.tokenizer import Tokenizer
from openbook_model.accounting import parameters_by_part
from openbook_trainer.config import TrainConfig, load_train_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """`language` and `language_corpus`, imported as the script imports them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import language
    import language_corpus

    return language, language_corpus


def load(name: str) -> TrainConfig:
    return load_train_config(ROOT / "examples" / "train" / f"evidence-{name}.yaml")[0]


def test_the_twin_is_the_retro_without_retrieval_and_the_gpt_has_as_many_parameters() -> None:
    retro, twin, gpt = (load(name) for name in ("retro", "twin", "gpt"))
    apart = {"out": retro.out, "retrieval": retro.retrieval}
    same = {"cross_attention_layers": retro.model.cross_attention_layers, "encoder": retro.model.encoder}
    assert twin.model_copy(update={**apart, "model": twin.model.model_copy(update=same)}) == retro
    assert gpt.model_copy(update={"out": twin.out, "model": twin.model}) == twin, "they differ in the model alone"
    sizes = [sum(parameters_by_part(config.model).values()) for config in (retro, twin, gpt)]
    assert sizes[2] == pytest.approx(sizes[0], rel=0.01)
    assert sizes[1] < 0.8 * sizes[0]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir()
    path.write_bytes(ZstdCompressor().compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def test_the_corpus_is_parted_by_document(tmp_path: Path, modules: tuple[ModuleType, ModuleType]) -> None:
    _, corpus = modules
    sections = [{"id": f"o/{n}", "title": f"t{n}", "text": f"section {n} " * 9, "license": "A"} for n in range(20)]
    paragraphs = [{"title": f"w{n % 8}", "text": f"paragraph {n % 16} " * 9, "license": "B"} for n in range(32)]
    write(tmp_path / "openstax" / "modules.jsonl.zst", sections)
    write(tmp_path / "wikipedia" / "paragraphs.jsonl.zst", paragraphs)
    counts = corpus.write_corpus(tmp_path, tmp_path, corpus.Size(held_out=3, held_out_characters=40, characters=2000))
    held_out, candidates = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("held-out", "candidates")
    )
    assert counts == {
        "held_out": 6,
        "candidates": len(candidates),
        "characters": sum(len(row["text"]) for row in candidates),
    }
    assert 2000 <= counts["characters"] < 2400
    ids = {row["id"] for row in held_out}
    assert sum(name.startswith("wikipedia/") for name in ids) == 3
    assert not ids & {row["id"] for row in candidates}
    assert all(len(row["text"]) <= 40 for row in held_out)
    article = next(row for row in candidates if row["id"].startswith("wikipedia/"))
    number = int(article["title"][1:])
    assert article["text"] == f"paragraph {number} " * 9 + "\n\n" + f"paragraph {number + 8} " * 9, (
        "each paragraph once"
    )
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    assert tokenizer.vocab_size <= corpus.VOCABULARY
    assert tokenizer.decode(tokenizer.encode("Zürich, 2015")) == "Zürich, 2015"


@pytest.mark.parametrize(
    ("value", "error", "wins"), [(-0.31, 0.1, True), (-0.29, 0.1, False), (0.31, 0.1, False), (-1.0, None, False)]
)
def test_who_wins_at_the_lowest_overlap(
    modules: tuple[ModuleType, ModuleType], value: float, error: float | None, wins: bool
) -> None:
    language, _ = modules

    def row(r: float, chunks: int, value: float | None, error: float | None) -> dict[str, Any]:
        figure = {"bits_per_byte": value, "bits_per_byte_standard_error": error}
        return {"r_at_most": r, "chunks": chunks, "on_minus_off": figure}

    found = language._wins([row(0.125, 0, None, None), row(0.25, 7, value, error), row(1.0, 9, -9.0, 0.1)])
    assert found == {"r_at_most": 0.25, "chunks": 7, "bits_per_byte": value, "error": error, "wins": wins}


def test_the_table_has_every_side_and_each_overlap(modules: tuple[ModuleType, ModuleType]) -> None:
    language, _ = modules

    def figures(value: float | None) -> dict[str, Any]:
        names = ("nats_per_token", "perplexity", "bits_per_byte")
        error = None if value is None else 0.01
        return {key: each for name in names for key, each in ((name, value), (f"{name}_standard_error", error))}

    sides = {"off": figures(1.5), "on": figures(1.25), "on_minus_off": figures(-0.25)}
    rows = [{"r_at_most": 0.125, "chunks": 0, **dict.fromkeys(sides, figures(None))}]
    rows += [{"r_at_most": 1.0, "chunks": 9, **sides}]
    gate = {"passed": True, "verdict": "it uses its neighbours", "reasons": ["ON < OFF"]}
    perplexity = {name: figures(1.5) for name in ("off", "on", "half", "shuffled")}
    result = {
        "parameters": {"retro": 2000, "twin": 1500, "gpt": 2001},
        "wins_at_the_lowest_overlap": {
            "twin": {"r_at_most": 1.0, "wins": True},
            "gpt": {"r_at_most": 1.0, "wins": False},
        },
        "raw": {
            "perplexity": {**perplexity, "overlap": rows, "gate": gate},
            "gpts": {name: {**figures(1.75), "overlap": rows} for name in ("twin", "gpt")},
        },
    }
    lines = list(language.table(result))
    assert "| RETRO, half | 2,000 | 1.5000 ± 0.0100 | 1.5000 ± 0.0100 | 1.5000 ± 0.0100 |" in lines
    assert "| GPT of as many parameters | 2,001 | 1.7500 ± 0.0100 | 1.7500 ± 0.0100 | 1.7500 ± 0.0100 |" in lines
    assert "| 0.125 | 0 | - | - | - | - | - |" in lines
    assert f"| 1.000 | 9 | 1.5000 ± 0.0100 | 1.2500 ± 0.0100 |{' -0.2500 ± 0.0100 |' * 3}" in lines
    assert lines[-4:-2] == ["gate: it uses its neighbours", "- ON < OFF"]
    assert "wins against the GPT twin" in lines[-2] and "does not win against the GPT of as many" in lines[-1]


def test_the_settings_of_a_run_are_loaded(tmp_path: Path, modules: tuple[ModuleType, ModuleType]) -> None:
    language, _ = modules
    for name in language.MODELS:
        for quick in (True, False):
            given = language._settings(tmp_path, name, quick)
            path = ROOT / "examples" / "train" / f"evidence-{name}.yaml"
            config, _ = load_train_config(path, [each for each in given if each != "--set"])
            assert config.out == tmp_path / name
            assert (config.steps == 6) is quick
            assert (config.retrieval is not None) is (name == "retro")


def test_a_training_keeps_its_curve_and_says_not_where_it_lay(
    tmp_path: Path, modules: tuple[ModuleType, ModuleType]
) -> None:
    language, _ = modules
    lines = [{"step": 20, "loss": 5.0, "tokens_per_s": 1.0}, {"step": 40, "loss": 4.5}, {"step": 40, "loss_off": 4.4}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"steps": 40, "loss_off": 4.4, "loss_on": None, "loss_shuffled": None, "snapshot": "s"}
    found = language.trained(tmp_path, {**summary, "checkpoint": "/somewhere/c", "model": "/somewhere/m"})
    assert found == {
        "steps": 40,
        "snapshot": "s",
        "held_out_nats_per_token": {"off": 4.4, "on": None, "shuffled": None},
        "curve": {"step": [20, 40], "nats_per_token": [5.0, 4.5]},
    }
    result = {
        "parameters": dict.fromkeys(language.MODELS, 9),
        "raw": {"training": dict.fromkeys(language.MODELS, found)},
    }
    language.draw_curves(result, tmp_path / "pictures" / "curves.png")
    assert (tmp_path / "pictures" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_says_what_the_run_found(modules: tuple[ModuleType, ModuleType]) -> None:
    """The committed figures are their own trainings', the table is theirs, and the verdict is the one they allow."""
    language, _ = modules
    result = json.loads((ROOT / "docs" / "results" / "language.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "guides" / "perplexity.md").read_text(encoding="utf-8")
    table = page.partition("<!-- docs/results/language.json -->\n")[2].partition("\n<!-- end -->")[0]
    assert table == "\n".join(language.table(result))
    steps = {training["steps"] for training in result["raw"]["training"].values()}
    assert steps == {load(name).steps for name in ("retro", "twin", "gpt")}, "the shipped configurations were run"
    assert result["raw"]["seconds"]["all"] <= 3600
    verdict = "passes the gate, but loses to both GPTs"
    loses = not any(found["wins"] for found in result["wins_at_the_lowest_overlap"].values())
    assert (verdict in page) == (loses and result["gate_passed"])
