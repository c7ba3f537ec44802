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
