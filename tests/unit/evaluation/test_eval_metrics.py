"""Exact match and F1 against NVIDIA's own numbers and an independent implementation of SQuAD's rules (62 pairs)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openbook_trainer.eval import metrics
from openbook_trainer.eval.intervals import bootstrap_mean, ratio
from openbook_trainer.eval.predictions import Prediction, score

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "metrics" / "megatron_f1_em.json").read_text(encoding="utf-8")
)


def test_the_file_has_all_pairs() -> None:
    assert len(GOLDEN["pairs"]) == GOLDEN["summary"]["count"] == 62


@pytest.mark.parametrize("pair", GOLDEN["pairs"], ids=lambda pair: repr(pair["prediction"])[:24])
def test_each_pair(pair: dict[str, Any]) -> None:
    prediction, answers = pair["prediction"], pair["answers"]
    assert metrics.normalise(prediction) == pair["squad_normalized"] == pair["megatron_normalized_em_style"]
    assert metrics.exact_match(prediction, answers) == pair["squad_em"] == pair["megatron_em"]
    assert metrics.f1(prediction, answers) == pytest.approx(pair["squad_f1"], abs=1e-12)
    assert metrics.nvidia_normalise(prediction) == pair["megatron_normalized_f1_style"]
    assert metrics.nvidia_clean(prediction) == pair["megatron_prediction_after_file_cleaning"]
    assert metrics.exact_match(metrics.nvidia_clean(prediction), answers) == pair["megatron_em_file"]
    overlap = metrics.nvidia_overlap(prediction, answers[0])
    if pair["megatron_f1"] is None:
        assert overlap is None
    else:
        assert overlap is not None
        found = (overlap.precision, overlap.recall, overlap.f1)
        wanted = tuple(pair[f"megatron_{name}"] for name in ("precision", "recall", "f1"))
        assert found == pytest.approx(wanted, abs=1e-12)


def test_means_of_the_file() -> None:
    rows = [
        Prediction(id=number, prediction=pair["prediction"], answers=tuple(pair["answers"]))
        for number, pair in enumerate(GOLDEN["pairs"])
    ]
    figures, wanted = score(rows), GOLDEN["summary"]
    nvidia = figures["nvidia"]
    assert figures["count"] == 62
    assert figures["exact_match"] == pytest.approx(wanted["squad_em"], abs=1e-12)
    assert figures["f1"] == pytest.approx(wanted["squad_f1"], abs=1e-12)
    assert nvidia["exact_match"] == pytest.approx(wanted["megatron_em"], abs=1e-12)
    assert nvidia["exact_match_cleaned"] == pytest.approx(wanted["megatron_em_file"], abs=1e-12)
    assert nvidia["precision"] == pytest.approx(wanted["megatron_precision"], abs=1e-12)
    assert nvidia["recall"] == pytest.approx(wanted["megatron_recall"], abs=1e-12)
    assert nvidia["f1"] == pytest.approx(wanted["megatron_f1"], abs=1e-12)
    assert nvidia["f1_count"] == sum(pair["megatron_f1"] is not None for pair in GOLDEN["pairs"])


def test_an_interval_is_the_normal_one_for_many_coins() -> None:
    values = np.repeat([1.0, 0.0], [600, 1400])
    found = bootstrap_mean(values)
    assert found is not None
    assert found.mean == pytest.approx(0.3)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 2000)
    assert (found.low, found.high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.002)
    assert bootstrap_mean(values) == found
    assert bootstrap_mean([]) is None


def test_a_ratios_error_is_what_repeated_draws_show() -> None:
    random = np.random.default_rng(7)

    def draw() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        sizes = random.integers(20, 200, 60)
        return sizes * (3.0 + random.normal(0, 0.5, 60)), sizes

    ratios = [ratio(*draw()) for _ in range(2000)]
    spread = np.std([found.value for found in ratios])
    mean_error = np.mean([found.standard_error or 0.0 for found in ratios])
    assert mean_error == pytest.approx(spread, rel=0.06)
    assert ratio(np.array([6.0]), np.array([3])).standard_error is None


def test_a_ratio_of_equal_clusters_has_the_error_of_a_mean() -> None:
    totals = np.array([1.0, 2.0, 4.0, 9.0])
    found = ratio(totals, np.ones(4))
    assert found.value == 4.0
    assert found.standard_error == pytest.approx(np.std(totals, ddof=1) / 2)
