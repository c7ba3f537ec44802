"""The benchmark of training on a tiny model: its figures follow from `raw`; a peer's protocol with a side of our own."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from openbook_database.testing import tiny_rows, tiny_tokenizer, write_rows
from openbook_model import RetroConfig, RetroModel
from openbook_model.accounting import training_flops

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODEL = {"size": "tiny", "vocab_size": 512, "hidden_size": 32, "num_layers": 2, "cross_attention_layers": [2]}


def peer_trials(raw: dict[str, Any]) -> dict[str, Any]:
    """What a peer that takes three times as long would have given."""
    retro, own = raw["twin"]["retro"], {"prefill_s": 0.1, "step_s": 0.9}
    slow = {**retro, "seconds": [3 * each for each in retro["seconds"]]}
    quick = {**retro, "seconds": [each / 2 for each in retro["seconds"]]}
    decode = {"ours": [own], "retro_pytorch": [8.0, 9.0, 7.0]}
    return {
        "ours": {"float32": retro, "float32, compiled": quick},
        "retro_pytorch": {"float32": slow},
        "decode": decode,
    }


def test_the_figures_follow_from_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    training, figures = (importlib.import_module(name) for name in ("training", "training_figures"))
    tiny_tokenizer().save(tmp_path / "tokenizer")
    rows = write_rows(tmp_path / "rows.jsonl", tiny_rows(40, words=900))
    size = dataclasses.replace(
        training.QUICK,
        model={**MODEL, "encoder": {"hidden_size": 16, "num_heads": 2, "num_layers": 1}},
        sequences=1,
        chunks=2,
        rounds=2,
        documents=30,
        live_steps=2,
        live_rounds=1,
        decode_sequences=(1, 2),
        prompt=65,
        decode_tokens=4,
    )
    (tmp_path / "work").mkdir()
    found = training.run(size, rows, str(tmp_path / "tokenizer"), tmp_path / "work", peers=False, compiled=False)
    result: dict[str, Any] = json.loads(json.dumps(found))
    raw = result["raw"]
    retro, twin = raw["twin"]["retro"], raw["twin"]["twin"]
    config = RetroConfig.parse(size.model)
    assert retro["parameters"] == sum(
        weight.numel() for weight in RetroModel.allocate(config, device="meta").parameters()
    )
    assert twin["parameters"] < retro["parameters"]
    assert retro["flops"] == training_flops(config, 128)
    assert twin["flops"] == training_flops(config, 128, neighbors=0)
    assert len(retro["seconds"]) == len(twin["seconds"]) == 2
    ratio = median(retro["seconds"]) / median(twin["seconds"])
    assert result["step_over_twin"] == pytest.approx(ratio, abs=1e-4)
    by_cpu_time = median(retro["cpu_s"]) / median(twin["cpu_s"])
    assert result["step_over_twin_by_cpu_time"] == pytest.approx(by_cpu_time, abs=1e-4)
    assert result["flops_over_twin"] == pytest.approx(retro["flops"] / twin["flops"], abs=1e-4)
    assert result["step_over_flops"] == pytest.approx(ratio * twin["flops"] / retro["flops"], abs=1e-3)
    assert result["memory_over_twin"] == pytest.approx(retro["peak_mb"] / twin["peak_mb"], abs=1e-4)
    assert retro["peak_mb"] > 0
    live = raw["live"]["live"]
    assert raw["live"]["queries_per_step"] == 2 and len(live) == len(raw["live"]["cache"]) == 1
    assert result["live_wait_share"] == pytest.approx(live[0]["waited_s"] / live[0]["seconds"], abs=1e-5)
    assert 0 <= live[0]["waited_s"] < live[0]["seconds"]
    ratios = [trials[0]["twin"]["step_s"] / trials[0]["retro"]["step_s"] for trials in raw["decode"].values()]
    assert result["decode_over_twin"] == pytest.approx(min(ratios), abs=1e-4)
    assert result["mfu"] is None and "GPU" in result["mfu_reason"]
    assert result["vs_retro_pytorch_train"] is None and result["recompiles"] is None
    assert figures.summarise(raw) == {name: value for name, value in result.items() if name != "raw"}

    raw["retro_pytorch"] = peer_trials(raw)
    result |= figures.summarise(raw)
    assert result["vs_retro_pytorch_train_same_dtype"] == pytest.approx(3)
    assert result["vs_retro_pytorch_train"] == pytest.approx(6)
    assert result["vs_retro_pytorch_decode"] == pytest.approx(8)
    raw["mfu"] = {"peak_flops": 1e12, "sizes": {"125m": {"flops": 2e11, "seconds": [0.5, 0.4, 0.6]}}}
    assert figures.summarise(raw)["mfu"] == {"125m": 0.4}
    assert any("step_over_twin" in line for line in figures.report(result))
    figures.plot(result, tmp_path / "result.png")
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


def test_the_shapes_of_the_peer_are_those_of_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    steps = importlib.import_module("training_steps")
    config = RetroConfig.parse({"size": "125m"})
    equal = steps.equal_to_peer(config)
    assert (equal.num_heads * equal.head_dim, equal.rotary_dim) == (768, 32)
    assert (equal.num_layers, equal.cross_attention_layers) == (config.num_layers, config.cross_attention_layers)
    decoders = [training_flops(each, 1024, neighbors=0) for each in (equal, config)]
    assert decoders[0] == pytest.approx(decoders[1], rel=0.001)
    assert steps.peer_arguments(equal)["dim_head"] == equal.head_dim
