"""What each query of a batch must not get: documents by number, and the row ranges that these are in a shard.

Both are held for all queries together, one query's after another's: what belongs to query q is at [starts_Q[q],
starts_Q[q + 1]).

Axes: Q queries, E excluded documents of all queries, R ranges of all queries, F rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Exclusions:
    """Document numbers, in ascending order and each once within a query."""

    numbers_E: NDArray[np.int64]
    starts_Q: NDArray[np.int64]

    @classmethod
    def of_pairs(cls, queries_E: NDArray[np.int64], numbers_E: NDArray[np.int64], queries: int) -> Self:
        """From pairs of a query and a number in any order; numbers below 0 are none."""
        known_E = numbers_E >= 0
        queries_E, numbers_E = queries_E[known_E], numbers_E[known_E]
        stride = int(numbers_E.max(initial=0)) + 1
        keys_E = np.unique(queries_E * stride + numbers_E)
        starts_Q = np.searchsorted(keys_E, np.arange(queries + 1) * stride)
        return cls(keys_E % stride, starts_Q)

    @classmethod
    def of(cls, exclude: Exclusions | Sequence[Collection[int]]) -> Exclusions:
        """From one collection for each query."""
        if isinstance(exclude, Exclusions):
            return exclude
        counts_Q = np.fromiter(map(len, exclude), dtype=np.int64, count=len(exclude))
        numbers_E = np.fromiter(itertools.chain.from_iterable(exclude), dtype=np.int64, count=int(counts_Q.sum()))
        return cls.of_pairs(np.repeat(np.arange(len(exclude)), counts_Q), numbers_E, len(exclude))

    @classmethod
    def none(cls, queries: int) -> Self:
        return cls(np.empty(0, dtype=np.int64), np.zeros(queries + 1, dtype=np.int64))

    @classmethod
    def join(cls, parts: Sequence[Exclusions]) -> Self:
        """The queries of one part after those of the other."""
        counts_Q = np.concatenate([np.diff(part.starts_Q) for part in parts])
        return cls(np.concatenate([part.numbers_E for part in parts]), starts_of(counts_Q))

    def __len__(self) -> int:
        return len(self.starts_Q) - 1

    @property
    def queries_E(self) -> NDArray[np.int64]:
        """The query of each number."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts_Q))

    def part(self, first: int, end: int) -> Exclusions:
        """Those of queries [first, end)."""
        starts_Q = self.starts_Q[first : end + 1]
        return Exclusions(self.numbers_E[starts_Q[0] : starts_Q[-1]], starts_Q - starts_Q[0])


@dataclass(frozen=True)
class RowRanges:
    """Ranges [first, end) of rows, in ascending order and without overlap within a query."""

    first_R: NDArray[np.int64]
    end_R: NDArray[np.int64]
    starts_Q: NDArray[np.int64]

    @classmethod
    def of(cls, ranges: Sequence[Sequence[tuple[int, int]]]) -> Self:
        """From one list of ranges for each query."""
        bounds_R2 = np.asarray([bound for each in ranges for bound in each], dtype=np.int64).reshape(-1, 2)
        counts_Q = np.asarray([len(each) for each in ranges], dtype=np.int64)
        return cls(bounds_R2[:, 0], bounds_R2[:, 1], starts_of(counts_Q))

    def __len__(self) -> int:
        return len(self.starts_Q) - 1

    @property
    def sizes_Q(self) -> NDArray[np.int64]:
        """Rows of each query's ranges."""
        return sums_of(self.end_R - self.first_R, self.starts_Q)

    def key(self, query: int) -> bytes:
        """Equal for two queries where their ranges are."""
        mine = slice(self.starts_Q[query], self.starts_Q[query + 1])
        return self.first_R[mine].tobytes() + self.end_R[mine].tobytes()

    def mask(self, query: int, rows: int) -> NDArray[np.bool_]:
        """Which of the rows [n] are in the ranges of one query."""
        mine = slice(self.starts_Q[query], self.starts_Q[query + 1])
        steps_N = np.zeros(rows + 1, dtype=np.int32)
        np.add.at(steps_N, self.first_R[mine], 1)
        np.add.at(steps_N, self.end_R[mine], -1)
        return np.cumsum(steps_N[:-1]) > 0

    def table(self, rows: int) -> RangeTable:
        """To look up rows below `rows`."""
        return RangeTable(self, rows)


class RangeTable:
    """The ranges of all queries in one ascending table."""

    def __init__(self, ranges: RowRanges, rows: int) -> None:
        self._stride = rows + 1
        held_R = ranges.first_R < ranges.end_R
        begins_R = np.repeat(np.arange(len(ranges)), np.diff(ranges.starts_Q)) * self._stride
        self._first_R = (begins_R + ranges.first_R)[held_R]
        self._end_R = (begins_R + ranges.end_R)[held_R]

    def holds(self, queries: NDArray[np.intp], rows_QF: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows [q, f] are in a range of their query; rows may be -1."""
        if not len(self._first_R):
            return np.zeros(rows_QF.shape, dtype=np.bool_)
        keys_QF = np.asarray(queries, dtype=np.int64)[:, None] * self._stride + rows_QF
        place_QF = np.searchsorted(self._first_R, keys_QF, side="right") - 1
        return (rows_QF >= 0) & (place_QF >= 0) & (keys_QF < self._end_R[np.maximum(place_QF, 0)])


def starts_of(counts_Q: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the entries of each query begin, and where the last one's end, [q + 1]."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts_Q)])


def sums_of(values_E: NDArray[np.int64], starts_Q: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of each query's values [q]."""
    sums = starts_of(values_E)
    return sums[starts_Q[1:]] - sums[starts_Q[:-1]]
