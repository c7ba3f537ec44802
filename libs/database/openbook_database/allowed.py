"""What alone each query of a batch may get: masks of documents or rows, each held once, and which query has which.

Axes: Q queries, N documents or rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Allowed:
    """`mask_Q`: for each query the place of its mask among `masks`, -1 where it may get all."""

    masks: tuple[Mask, ...]
    mask_Q: NDArray[np.int64]

    @classmethod
    def of(cls, given: Allowed | Sequence[Mask | None]) -> Allowed:
        """From one mask for each query, None for all; the same array is one mask."""
        if isinstance(given, Allowed):
            return given
        return cls._of_places(given, np.arange(len(given)))

    @classmethod
    def none(cls, queries: int) -> Self:
        return cls((), np.full(queries, -1, dtype=np.int64))

    @classmethod
    def join(cls, parts: Sequence[Allowed]) -> Self:
        """The queries of one part after those of the other."""
        firsts = itertools.accumulate((len(part.masks) for part in parts), initial=0)
        places = [
            np.where(part.mask_Q < 0, -1, part.mask_Q + first) for part, first in zip(parts, firsts, strict=False)
        ]
        return cls._of_places([mask for part in parts for mask in part.masks], np.concatenate(places))

    def __len__(self) -> int:
        return len(self.mask_Q)

    def part(self, first: int, end: int) -> Allowed:
        """Those of queries [first, end)."""
        return Allowed(self.masks, self.mask_Q[first:end])

    def of_queries(self, query_Q: NDArray[np.int64]) -> Allowed:
        """Those of the given queries, in their order."""
        return Allowed(self.masks, self.mask_Q[query_Q])

    def mask(self, query: int) -> Mask | None:
        """What one query may get, None for all."""
        place = int(self.mask_Q[query])
        return None if place < 0 else self.masks[place]

    def each(self, mask_of: Callable[[Mask], Mask]) -> Allowed:
        """With another mask instead of each."""
        return Allowed(tuple(map(mask_of, self.masks)), self.mask_Q)

    def sums(self, count: Callable[[Mask], int]) -> NDArray[np.int64]:
        """For each query what `count` gives for its mask, 0 where it may get all."""
        return np.asarray([*map(count, self.masks), 0], dtype=np.int64)[self.mask_Q]

    @classmethod
    def _of_places(cls, given: Sequence[Mask | None], place_Q: NDArray[np.int64]) -> Self:
        """Queries that have the place of a mask in `given`, where the same array may stand more than once."""
        different = {id(mask): mask for mask in given if mask is not None}
        place_of = {name: place for place, name in enumerate(different)}
        places = [place_of.get(id(mask), -1) for mask in given]
        return cls(tuple(different.values()), np.asarray([*places, -1], dtype=np.int64)[place_Q])
