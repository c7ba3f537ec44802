"""The embedder's benchmark, fuzz and soak on a tiny random encoder: its figures follow from `raw`, its oracles hold."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from openbook_core.errors import ArgumentError
from openbook_embedder.config import EncoderOptions
from openbook_embedder.engine import EncoderEngine

sys.path.insert(0, str(Path(__file__).parent))
from embedder_support import MODEL, running_embedder, write_modules, write_tiny_encoder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PARTS = {"calls_of_32", "calls_of_1", "mixed_calls_of_4"}
PEERS = {
    "vs_sentence_transformers_same_dtype",
    "vs_sentence_transformers_fp32",
    "vs_sentence_transformers_fp32_best",
    "vs_infinity",
    "vs_infinity_default",
    "cosine_min",
    "cosine_min_served",
}


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        check=False,
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_modules(write_tiny_encoder(tmp_path_factory.mktemp("benchmark") / "tiny"))


def rate(trials: list[dict[str, float]]) -> float:
    return median(trial["texts"] / trial["seconds"] for trial in trials)


def ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    assert len(ours) == len(theirs)
    return median(rate([our]) / rate([their]) for our, their in zip(ours, theirs, strict=True))


def test_the_figures_follow_from_the_trials(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    embedder, figures = importlib.import_module("embedder"), importlib.import_module("embedder_figures")
    size = dataclasses.replace(embedder.QUICK, chunks=64, mixed=32, singles=32, part_seconds=2, open_seconds=0.5)
    result: dict[str, Any] = json.loads(json.dumps(embedder.run(size, str(encoder), False, 0, tmp_path)))
    raw = result["raw"]
    assert {name: result[name] for name in PEERS} == dict.fromkeys(PEERS)
    assert set(raw["served"]) == PARTS and set(raw["offline"]) == {"chunks", "mixed"}
    assert {"model", "dtype", "batch", "cpu", "cores", "versions", "commit", "date"} <= set(raw)
    served = raw["served"]
    for figure, part, side in (
        ("grpc_over_bare", "calls_of_32", "grpc"),
        ("grpc_singles_over_bare", "calls_of_1", "grpc"),
        ("http_over_bare", "calls_of_32", "http"),
    ):
        assert result[figure] == pytest.approx(ratio(served[part][side], served[part]["bare"]), abs=1e-4)
    assert result["grpc_chunks_per_s"] == pytest.approx(rate(served["calls_of_32"]["grpc"]), abs=0.01)
    assert raw["texts"]["chunks"] == {"texts": 64, "tokens": 64 * 64, "shortest": 64, "median": 64, "longest": 64}
    assert all(trial["padded_tokens"] >= trial["tokens"] for sides in served.values() for trial in sides["grpc"])
    assert result["padding_share"] == 0 < result["padding_share_mixed"] < 1
    assert [part["share"] for part in raw["open_loop"]] == [0.3, 0.6, 0.9]
    assert all(part["failures"] == 0 and len(part["latencies_ms"]) == part["calls"] for part in raw["open_loop"])
    assert figures.summarise(raw) == {name: value for name, value in result.items() if name != "raw"}
    assert any("grpc_over_bare" in line for line in figures.report(result))
    rows = importlib.import_module("embedder_tables").table(result)
    assert f"| {result['grpc_over_bare']:.2f} |" in next(row for row in rows if "bare loop" in row)
    assert not any("infinity" in row for row in rows)
    picture = tmp_path / "result.png"
    figures.plot(result, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_row_is_left_out_where_the_side_that_it_names_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier program compared with the library at its best under the name of the default."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    tables = importlib.import_module("embedder_tables")
    trials = [{"texts": 4, "seconds": 2.0}]
    offline = {"chunks": {"ours": trials, "sentence_transformers_float32": trials}}
    raw: dict[str, Any] = dict.fromkeys(("model", "dtype", "cores", "cpu", "date", "commit"), "x")
    raw |= {"served": {}, "batch": {}, "offline": offline}
    result = {"vs_sentence_transformers_same_dtype": 1.5, "vs_sentence_transformers_fp32": 1.25, "raw": raw}
    shown = "\n".join(tables.table(result))
    assert "| 1.50 |" in shown and "nothing set" not in shown
    offline["chunks"]["sentence_transformers_default"] = trials
    assert "nothing set (float32, 32 a batch), chunks | 1.25 |" in "\n".join(tables.table(result))


def test_rounds_are_compared_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other work that slows one round of both sides leaves their ratio as it is."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    figures = importlib.import_module("embedder_figures")
    slow = (1.0, 5.0, 1.0, 3.0, 2.0)
    trials = {
        side: [{"texts": 8, "seconds": factor * each, "cpu_s": factor} for each in slow]
        for side, factor in (("ours", 2.0), ("theirs", 3.0))
    }
    assert figures._ratio(trials, "ours", "theirs") == 1.5
    assert figures._ratio(trials, "ours", "theirs", "cpu_s") == 1.5
    assert figures._ratio(trials, "ours", "absent") is None


def test_memory_that_grows_or_swings_is_not_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    memory_figures = importlib.import_module("embedder_figures").memory_figures

    def flat(size: Callable[[int], float]) -> bool:
        samples = [[second, 1e6 * size(second), 0] for second in range(0, 1201, 5)]
        return bool(memory_figures(samples)["resident_flat"])

    assert flat(lambda second: 800.0)
    assert flat(lambda second: 500 + min(second, 400))  # the allocator fills
    assert flat(lambda second: 800 + 50 * (second % 10 == 0))
    assert flat(lambda second: 800 - second / 60)
    assert not flat(lambda second: 800 + second / 12)  # 50 MB over the second half
    assert not flat(lambda second: 800 + 200 * (second == 900))
    found = memory_figures([[second, 1e6 * (800 + second / 12)] for second in range(0, 1201, 5)])
    assert found["resident_slope_mb_per_hour"] == 300 and found["resident_growth_mb"] == 50


def test_the_library_s_threads_wait_as_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sides = importlib.import_module("embedder_sides")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    found = {policy: sides.peer_environment(policy).get("OMP_WAIT_POLICY") for policy in sides.POLICIES}
    assert found == {"default": None, "active": "ACTIVE", "passive": "PASSIVE"}


def test_the_fuzz_finds_nothing_wrong(encoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "fuzz.json"
    done = run("embedder_fuzz.py", "--requests", "120", "--model", str(encoder), "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr + file.read_text()
    result = json.loads(file.read_text())
    outcomes = result["raw"]["outcomes"]
    assert result["requests"] == 120 == sum(outcomes.values())
    assert {"grpc texts: OK", "http texts: OK", "grpc stream: OK"} <= set(outcomes)


def test_the_fuzz_notices_wrong_vectors_and_wrong_fields(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    requests = importlib.import_module("embedder_requests")
    engine = EncoderEngine.load(encoder, dtype="float32", options=EncoderOptions(normalize=True))
    oracle = requests.Oracle(engine, ["one", "two words", "three more words"], model=MODEL, max_texts=8)
    with running_embedder(engine, max_texts=8) as running:
        grpc_side, http_side = (
            requests.GrpcRequests(running.address, oracle),
            requests.HttpRequests(running.http, oracle),
        )
        kinds = [(side, name) for side in (grpc_side, http_side) for name in ("texts", "refused")]
        for side, name in kinds:
            getattr(side, name)(random.Random(1))
        encode = engine.encode_batch
        monkeypatch.setattr(engine, "encode_batch", lambda ids: encode(ids) + 0.02)
        for side in (grpc_side, http_side):
            with pytest.raises(requests.Violation, match="vectors differ"):
                side.texts(random.Random(1))
        monkeypatch.setattr(running.intake, "tokenize", lambda call: refuse())
        for side, name in kinds:
            with pytest.raises(requests.Violation, match="was due|a valid request met|for a valid request"):
                make_several(getattr(side, name))  # some are refused before
        grpc_side.close()
        http_side.close()


def refuse() -> None:
    raise ArgumentError("nothing: is right", field="nothing")


def make_several(make: Callable[[random.Random], str]) -> None:
    for seed in range(8):
        make(random.Random(seed))
