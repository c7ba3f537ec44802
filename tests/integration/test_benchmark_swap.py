"""The benchmark of swaps on a tiny book: its figures follow from `raw`, and its checker fires without the guard."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_figures_follow_from_the_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    swap, figures = importlib.import_module("swap"), importlib.import_module("swap_figures")
    size = dataclasses.replace(
        swap.QUICK,
        chunks=160,
        index="Flat",
        routers=1,
        queries=16,
        swaps=2,
        requests=20,
        in_window=1,
        rest_s=0.4,
        rollback_every=2,
        capacity_s=0.4,
        callers=4,
        guardless_s=2,
    )
    (tmp_path / "work").mkdir()
    result: dict[str, Any] = json.loads(json.dumps(swap.run(size, tmp_path / "work")))
    raw = result["raw"]
    calls, swaps = raw["soak"]["calls"], raw["soak"]["swaps"]
    assert (result["failed"], result["mixed"]) == (0, 0)
    assert result["guard_off_mixed"] > 0
    assert result["requests"] == len(calls["due"]) == len(calls["ms"]) == sum(calls["by_snapshot"].values()) >= 20
    assert result["swaps"] == len(swaps) >= 2
    assert min(calls["by_snapshot"].values()) > 0
    assert calls["epochs"] >= 3
    assert result["rollback_s"] == swaps[1]["rollback_s"] > 0
    assert all(earlier["end"] <= later["start"] for earlier, later in itertools.pairwise(swaps))
    inside = [
        any(due <= each["end"] and due + ms / 1e3 >= each["start"] for each in swaps)
        for due, ms in zip(calls["due"], calls["ms"], strict=True)
    ]
    assert result["requests_in_window"] == sum(inside) > 0
    ms_N = np.asarray(calls["ms"])
    ratio = np.percentile(ms_N[inside], 99) / np.percentile(ms_N[np.logical_not(inside)], 99)
    assert result["p99_ratio"] == pytest.approx(ratio, abs=0.01)
    assert raw["soak"]["memory"]["mapped"] > 0
    assert {"private_memory_ratio", "activate_s", "restarts"} <= set(result)
    assert figures.summarise(raw) == {name: value for name, value in result.items() if name != "raw"}
    figures.plot(result, tmp_path / "result.png")
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


def test_missed_goals_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    swap, figures = importlib.import_module("swap"), importlib.import_module("swap_figures")
    calls = {"due": [0.0, 1.0, 2.0], "ms": [10.0, 20.0, 10.0], "errors": ["x"], "mixed": 1, "restarts": 0, "epochs": 1}
    raw = {
        "size": dataclasses.asdict(swap.QUICK),
        "soak": {
            "calls": calls,
            "swaps": [{"start": 0.9, "end": 1.5, "activate_s": 1.5, "rollback_s": 0.1}],
            "memory": {"one_snapshot": 100, "mapped": 1, "resident": 1, "samples": [[0.5, 130, 7], [1.0, 110, 0]]},
        },
        "guard_off": {"mixed": 0},
    }
    result = figures.summarise(raw)
    assert (result["p99_ratio"], result["requests_in_window"], result["private_memory_ratio"]) == (2.0, 1, 1.3)
    assert not figures.passed(result)
    assert set(result["goals_missed"]) == {
        "failed", "mixed", "swaps", "requests", "requests_in_window", "p99_ratio", "activate_s",
        "private_memory_ratio", "guard_off_mixed",
    }  # fmt: skip
