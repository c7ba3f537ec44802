"""The retriever's benchmark in its smallest size: its figures follow from `raw`, and all sides answer alike."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_figures_follow_from_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark, figures = importlib.import_module("retriever"), importlib.import_module("retriever_figures")
    size = dataclasses.replace(
        benchmark.QUICK,
        rows=2000,
        dimension=32,
        lists=16,
        nprobe=4,
        queries_of_64=256,
        queries_of_1=16,
        queries_of_32_callers=64,
        rounds=1,
        growth=(1000, 4000),
    )
    result: dict[str, Any] = json.loads(json.dumps(benchmark.run(size, tmp_path)))
    raw = result["raw"]
    asked_for = {"cpu_ratio_64", "cpu_ratio_1", "throughput_ratio_64", "added_p50_ms", "singles_ratio_32_callers"}
    assert asked_for | {"raw", "index"} <= set(result)
    sides = {"bare", "bare_mapped", "fast_scan", "openbook", "pickle", "http"}
    assert set(raw["parts"]["calls_of_64"]) == set(raw["parts"]["calls_of_1"]) == sides
    same = raw["same_ids"]
    assert same.keys() == sides
    assert same["openbook"] > 0.99, "the same index; only ties of rough scores may differ"
    assert same["pickle"] == same["http"] == same["bare"] == 1
    trials = raw["parts"]["calls_of_64"]

    def rate(name: str) -> float:
        return median(trial["queries"] / trial["seconds"] for trial in trials[name])

    assert result["throughput_ratio_64"] == pytest.approx(rate("openbook") / rate("bare"), abs=1e-3)
    assert all(
        trial["queries"] == 256 and len(trial["latencies_ms"]) == 4 for each in trials.values() for trial in each
    )
    assert [line["rows"] for line in raw["growth"]] == [1000, 4000]
    assert figures.summarise(raw) == {name: value for name, value in result.items() if name != "raw"}
    assert any("cpu_ratio_64" in line for line in figures.report(result))
    picture = tmp_path / "result.png"
    figures.plot(result, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
