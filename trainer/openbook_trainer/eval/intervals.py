"""How sure a figure is: bootstrap intervals of means, and standard errors of ratios over clusters.

Axes: N values, C clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
BOOTSTRAP = f"{LEVEL:.0%} percentile bootstrap over questions, {RESAMPLES} resamples, seed {SEED}"


@dataclass(frozen=True)
class Interval:
    """A mean with the two ends of its interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: Sequence[float] | NDArray[np.float64]) -> Interval | None:
    """The mean and its percentile interval; equal values give equal intervals. None for no values."""
    values_N = np.asarray(values, dtype=np.float64)
    if not len(values_N):
        return None
    generator = np.random.Generator(np.random.PCG64(SEED))
    count = len(values_N)
    means = [values_N[generator.integers(count, size=count)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values_N.mean()), float(low), float(high))


def figure(name: str, values: Sequence[float]) -> dict[str, Any]:
    """`name` and `name_interval` as they stand in figures; both None for no values."""
    found = bootstrap_mean(values)
    return {
        name: None if found is None else found.mean,
        f"{name}_interval": None if found is None else [found.low, found.high],
    }


@dataclass(frozen=True)
class Ratio:
    """A ratio of two sums with its standard error; None where there is one cluster only."""

    value: float
    standard_error: float | None


def ratio(totals_C: NDArray[Any], sizes_C: NDArray[Any]) -> Ratio:
    """sum(totals) / sum(sizes) over clusters that are drawn independently of one another.

    The error is the linearised one of a ratio estimator: sqrt(C / (C - 1) * sum((total - value * size)^2)) / sum(size);
    tokens within a cluster may depend on one another as they like.
    """
    size = float(sizes_C.sum())
    value = float(totals_C.sum()) / size
    clusters = len(totals_C)
    if clusters < 2:
        return Ratio(value, None)
    squares = float(((totals_C - value * sizes_C) ** 2).sum())
    return Ratio(value, float(np.sqrt(clusters / (clusters - 1) * squares)) / size)
