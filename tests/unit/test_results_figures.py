"""The figures of the committed benchmark runs follow from their raw trials, and the guides quote them as they are."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
IN_README = {
    "training": (
        "step_over_twin",
        "step_over_twin_by_cpu_time",
        "flops_over_twin",
        "decode_over_twin",
        "vs_retro_pytorch_train",
    ),
    "retriever": ("cpu_ratio_64", "cpu_ratio_1", "throughput_ratio_64", "added_p50_ms", "singles_ratio_32_callers"),
    "swap": ("swaps", "requests", "requests_in_window", "activate_s", "p99_ratio"),
}
PAGES = {"training": "pretrain", "retriever": "retriever", "swap": "live-swap"}


@pytest.fixture(params=PAGES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def result(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def test_the_figures_follow_from_the_trials(name: str, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    figures = importlib.import_module(f"{name}_figures").summarise(result["raw"])
    assert json.loads(json.dumps(figures)) == {key: value for key, value in result.items() if key != "raw"}
    assert re.fullmatch("[0-9a-f]{40}", result["raw"]["commit"]), "of a clean tree"


def test_the_guide_quotes_them(name: str, result: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "guides" / f"{PAGES[name]}.md").read_text(encoding="utf-8")
    table = page.partition(f"<!-- docs/results/{name}.json -->\n")[2].partition("\n<!-- end -->")[0]
    quoted = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", table, re.MULTILINE)
    assert len(quoted) > 4
    assert dict(quoted) == {key: f"{result[key]:,}" for key, _ in quoted}
    for word in (str(result["raw"]["commit"])[:12], str(result["raw"]["cpu"]).partition(" (")[0]):
        assert word in table


def test_the_readme_quotes_them(name: str, result: dict[str, Any]) -> None:
    rows = [
        row for row in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if f"benchmarks/{name}.py" in row
    ]
    for key in IN_README[name]:
        assert f"{result[key]:,}" in rows[0], key
