"""Hashes of all runs of n tokens of a text, for any n, in one pass.

Axes: N tokens, G = N - n + 1 runs (n-grams).

A run's hash is a polynomial in mixed token ids modulo 2^64, mixed once more. Two runs with equal hashes are taken to be
equal: for 10^8 runs against 10^6 the chance of one error is about 10^-5. Equal on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class _Powers:
    """Powers of the base and of its inverse, grown as longer texts come."""

    def __init__(self) -> None:
        self._up = self._down = np.ones(1, np.uint64)

    def upto(self, count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        if count > len(self._up):
            size = max(count, 2 * len(self._up))
            self._up, self._down = (_powers(base, size) for base in (_BASE, _INVERSE))
        return self._up[:count], self._down[:count]


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


_POWERS = _Powers()


class Grams:
    """The runs of one text's tokens [N]."""

    def __init__(self, tokens: NDArray[Any]) -> None:
        self.tokens = len(tokens)
        up, self._down = _POWERS.upto(self.tokens + 1)
        mixed = _mix(tokens.astype(np.uint64) + np.uint64(1))
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * up[: self.tokens], dtype=np.uint64)])

    def hashes(self, n: int) -> NDArray[np.uint64]:
        """Hash of each run of `n` tokens, uint64 [G]; empty for a shorter text."""
        if self.tokens < n:
            return np.empty(0, np.uint64)
        return _mix((self._sums[n:] - self._sums[:-n]) * self._down[: self.tokens - n + 1])

    def distinct(self, n: int) -> NDArray[np.uint64]:
        """The set of `hashes`, sorted; a shorter text that is not empty is one run."""
        return np.unique(self.hashes(min(n, self.tokens))) if self.tokens else np.empty(0, np.uint64)


def common(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> int:
    """Size of the intersection of two sorted sets."""
    return len(np.intersect1d(left, right, assume_unique=True))


def jaccard(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> float:
    """Jaccard index of two sorted sets, 0 for two empty ones."""
    both = common(left, right)
    total = len(left) + len(right) - both
    return both / total if total else 0.0


def longest_common_run(left: Grams, right: Grams) -> int:
    """Tokens of the longest run that is in both texts: bisection, since the parts of a shared run are shared."""
    least, most = 0, min(left.tokens, right.tokens)
    while least < most:
        middle = (least + most + 1) // 2
        if len(np.intersect1d(left.hashes(middle), right.hashes(middle))):
            least = middle
        else:
            most = middle - 1
    return least
