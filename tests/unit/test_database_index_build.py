"""Building with each index recipe: small and odd corpora, clear refusals, measured recall, any number of shards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openbook_core.errors import ArgumentError, CorruptError
from openbook_database.build import run
from openbook_database.build.device import uses_gpu
from openbook_database.build.progress import Update
from openbook_database.build.run import BuildResult, build_snapshot
from openbook_database.build.settings import BuildSettings
from openbook_database.build.train_stage import sample_rows
from openbook_database.index.quantiser import train_quantiser
from openbook_database.inspect import inspect
from openbook_database.snapshot import Snapshot
from openbook_database.testing import HashEncoder, build_tiny_snapshot, tiny_rows, tiny_tokenizer, tree, write_rows
from openbook_database.verify import verify


@pytest.fixture(autouse=True)
def without_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize("factory", ["IVF8,SQ8", "IVF12_HNSW4,Flat", "IVF8,RaBitQ", "OPQ4_8,IVF24_HNSW4,PQ4"])
def test_a_sharded_snapshot_answers_as_a_single_one(tmp_path: Path, factory: str) -> None:
    rows = [*tiny_rows(25, seed=4), *({**row, "id": f"again-{row['id']}"} for row in tiny_rows(9, seed=4))]
    queries_QD = np.random.default_rng(1).normal(size=(30, 16)).astype(np.float32)
    exclude = [{number, number + 3, 99_999} for number in range(30)]
    answers = []
    for shards in (1, 2, 3, 7):
        result = build_tiny_snapshot(tmp_path / str(shards), rows=rows, shards=shards, index=factory)
        verify(result.path)
        snapshot = Snapshot.open(result.path)
        index = snapshot.manifest.index
        assert (index.factory, index.exact, len(snapshot.shards)) == (factory, False, shards)
        assert index.trained_on == result.chunks
        hits = snapshot.search(queries_QD, 11, exclude, -0.2)
        answers.append((index.search, index.recall, hits.ids_QK.tolist(), hits.scores_QK.tolist()))
        assert (result.path / "quantiser.faiss").read_bytes() == (tmp_path / "1" / "quantiser.faiss").read_bytes()
    assert all(answer == answers[0] for answer in answers)


def test_what_is_trained_on_is_a_random_sample_of_all_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []

    def train(recipe: Any, sample_ND: Any, **named: Any) -> Any:
        trained.append(sample_ND)
        return train_quantiser(recipe, sample_ND, **named)

    monkeypatch.setattr("openbook_database.build.train_stage.train_quantiser", train)
    result = build_tiny_snapshot(tmp_path / "s", documents=40, shards=3, index="IVF8,Flat", train_sample=100)
    snapshot = Snapshot.open(result.path)
    parts = [shard.vectors(np.arange(shard.entry.first_row, shard.entry.end_row)) for shard in snapshot.shards]
    rows = sample_rows(result.chunks, 100)
    assert result.chunks > 500 and rows[0] < 50 and rows[-1] > result.chunks - 50
    np.testing.assert_array_equal(trained[0], np.concatenate(parts)[rows])
    assert snapshot.manifest.index.trained_on == 100


def test_a_graph_is_not_exact_and_says_so(tmp_path: Path) -> None:
    result = build_tiny_snapshot(tmp_path / "s", documents=30, shards=2, index="HNSW8")
    verify(result.path)
    index = inspect(result.path)["index"]
    assert (index["factory"], index["exact"]) == ("HNSW8", False)
    assert index["search"]["efSearch"] >= 16
    assert index["recall"]["chosen"] >= 0.95
    assert not (result.path / "quantiser.faiss").exists()


@pytest.mark.parametrize("documents", [1, 2, 10])
@pytest.mark.parametrize("factory", ["auto", "HNSW8", "IVF1,SQ8", "IVF2,RaBitQ"])
def test_from_one_document_up(tmp_path: Path, documents: int, factory: str) -> None:
    rows = [{"id": str(number), "text": f"word{number}"} for number in range(documents)]
    if factory == "IVF2,RaBitQ" and documents == 1:
        with pytest.raises(
            ArgumentError, match=r"2 lists need at least as many chunks, there are 1: give at most IVF1"
        ):
            build_tiny_snapshot(tmp_path / "s", rows=rows, index=factory)
        assert not (tmp_path / "s.building").exists()
        factory = "auto"
    result = build_tiny_snapshot(tmp_path / "s", rows=rows, shards=3, index=factory)
    verify(result.path)
    snapshot = Snapshot.open(result.path)
    assert snapshot.manifest.index.factory == ("Flat" if factory == "auto" else factory)
    hits = snapshot.search(np.ones((2, 16), np.float32), 4)
    assert ((hits.ids_QK != -1).sum(axis=1) == min(4, documents)).all()


@pytest.mark.parametrize("factory", ["IVF8,SQ8", "IVF8,RaBitQ", "IVF8_HNSW4,PQ4"])
def test_equal_documents(tmp_path: Path, factory: str) -> None:
    rows = [{"id": f"{number:03d}", "text": "the very same words"} for number in range(260)]
    result = build_tiny_snapshot(tmp_path / "s", rows=rows, shards=3, index=factory, chunk_length=64)
    verify(result.path)
    query_QD = HashEncoder().encode(["the very same words"])
    assert Snapshot.open(result.path).search(query_QD, 25, [{0, 5}]).ids_QK.tolist() == [
        [number for number in range(27) if number not in (0, 5)]
    ]
    assert Snapshot.open(result.path).manifest.index.recall["chosen"] == 1.0


def test_a_dimension_that_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="divisor of 16, for example PQ4") as caught:
        build_tiny_snapshot(tmp_path / "s", index="IVF8,PQ5")
    assert caught.value.field == "index"
    assert not (tmp_path / "s.building").exists()


def test_the_recall_in_the_manifest_is_that_of_the_default_search(tmp_path: Path) -> None:
    """Against numpy: the true neighbours by float64 products, and what `search` finds when the row itself is left out."""
    rows = [{**row, "text": row["text"][:60]} for row in tiny_rows(150, seed=8)]
    result = build_tiny_snapshot(tmp_path / "s", rows=rows, index="IVF16,Flat", target_recall=0.9, chunk_length=512)
    assert result.chunks == 150
    snapshot = Snapshot.open(result.path)
    index = snapshot.manifest.index
    vectors_ND = snapshot.shards[0].vectors(np.arange(150)).astype(np.float64)
    scores_NN = (vectors_ND @ vectors_ND.T).round(6)
    np.fill_diagonal(scores_NN, -9)
    tenth_N = np.sort(scores_NN, axis=1)[:, -10]
    hits = snapshot.search(vectors_ND.astype(np.float32), 10, [{row} for row in range(150)])
    recall = (np.take_along_axis(scores_NN, hits.ids_QK, axis=1) >= tenth_N[:, None]).mean()
    assert index.recall["chosen"] == pytest.approx(recall, abs=0.002)
    measured = {line["nprobe"]: line["recall"] for line in index.recall["measured"]}
    assert list(measured) == [2**step for step in range(len(measured))]
    chosen = index.search["nprobe"]
    assert measured[chosen] == index.recall["chosen"] >= 0.9
    assert all(value < 0.9 for nprobe, value in measured.items() if nprobe < chosen)
    assert index.recall["measured"][-1]["distances"] <= 150
    assert (index.recall["queries"], index.recall["k"], index.recall["target"]) == (150, 10, 0.9)
    assert result.notes == ()
    log = (tmp_path / "s.log.jsonl").read_text()
    assert log.count("milliseconds_per_query") == len(measured)
    assert b"milliseconds" not in (result.path / "manifest.json").read_bytes()


def test_a_recall_that_is_not_reached_is_told(tmp_path: Path) -> None:
    result = build_tiny_snapshot(tmp_path / "s", documents=30, index="IVF4,RaBitQ", target_recall=1.0)
    best = max(line["recall"] for line in Snapshot.open(result.path).manifest.index.recall["measured"])
    assert len(result.notes) == 1
    assert f"recall@10 of 1.0 was asked for, IVF4,RaBitQ reaches {best:.3f} at nprobe" in result.notes[0]


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faiss.get_num_gpus", lambda: 0)
    assert not uses_gpu("cpu")
    assert not uses_gpu("auto")
    with pytest.raises(ArgumentError, match="Faiss finds no GPU") as caught:
        uses_gpu("cuda")
    assert caught.value.field == "device"
    with pytest.raises(ArgumentError, match="'tpu' is not known; known: auto, cpu, cuda"):
        uses_gpu("tpu")
    monkeypatch.setattr("faiss.get_num_gpus", lambda: 2)
    assert uses_gpu("auto") and uses_gpu("cuda") and not uses_gpu("cpu")


def test_what_runs_on_gpus_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that hands the index back, the lines for GPUs run: training, lists of rows, and nothing else."""
    source = write_rows(tmp_path / "input.jsonl", tiny_rows(20))
    expected = tree(build(source, tmp_path / "cpu", device="cpu").path)
    moved: list[str] = []

    def to_gpus(index: Any) -> Any:
        moved.append(type(index).__name__)
        return index

    monkeypatch.setattr("faiss.get_num_gpus", lambda: 2)
    monkeypatch.setattr("faiss.index_cpu_to_all_gpus", to_gpus, raising=False)
    assert tree(build(source, tmp_path / "cuda", device="cuda").path) == expected
    assert moved == ["IndexFlatIP"] * 3  # for training, and for each shard
    events = [json.loads(line) for line in (tmp_path / "cuda.log.jsonl").read_text().splitlines()]
    assert {"start": "cuda", "index": "cuda"}.items() <= {
        event["event"]: event.get("device") for event in events
    }.items()


def build(source: Path, out: Path, **changes: Any) -> BuildResult:
    settings = BuildSettings(chunk_length=16, embed_block=32, index="IVF8,SQ8", shards=2)
    return build_snapshot([source], out, database="tiny", tokenizer=tiny_tokenizer(), encoder=HashEncoder(),
                          settings=settings, **changes)  # fmt: skip


def test_a_quantiser_that_is_there_is_used_and_another_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(tmp_path / "input.jsonl", tiny_rows(20))
    other = build_tiny_snapshot(tmp_path / "other", documents=30, index="IVF8,SQ8").path
    wrong = build_tiny_snapshot(tmp_path / "wrong", documents=30, index="IVF4,SQ8").path

    def given(path: Path) -> Any:
        def link(update: Update) -> None:
            target = tmp_path / "s.building" / "snapshot" / "quantiser.faiss"
            if update.stage == "embed" and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.hardlink_to(path / "quantiser.faiss")

        return link

    with pytest.raises(CorruptError, match="another recipe than IVF8,SQ8"):
        build(source, tmp_path / "s", progress=given(wrong))
    (tmp_path / "s.building" / "snapshot" / "quantiser.faiss").unlink()
    monkeypatch.setattr("openbook_database.build.train_stage.train_quantiser", None)
    result = build(source, tmp_path / "s", progress=given(other))
    verify(result.path)
    assert (result.path / "quantiser.faiss").samefile(other / "quantiser.faiss")
    assert run.recall_note(Snapshot.open(result.path).manifest.index) is None
