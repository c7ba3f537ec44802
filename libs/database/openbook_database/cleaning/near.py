"""Near-duplicates: documents whose sets of token 5-grams have a Jaccard index of at least the threshold.

MinHash with locality-sensitive hashing (rensa) finds candidates among the documents that are kept; each is then compared
by the true Jaccard index over the tokens in the finished blocks, so none is removed that is below the threshold. A pair
at the threshold is missed with a chance below 0.001, a more similar one with a smaller one. A document is compared with
kept ones only: of A like B like C, where A is not like C, B goes and C stays.

Memory: about MEMORY_BYTES for a document that is kept, mostly tables of the index; tokens stay in their mapped files.
Everything follows from the documents and their order, so a build that is gone on with finds the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import UnavailableError
from openbook_database.cleaning.grams import Grams, jaccard

GRAM = 5
MEMORY_BYTES = 4_000
_PERMUTATIONS = 128
_SEED = 5
_MISSED = 0.001
# Four standard deviations of the MinHash estimate, which is widest at 0.5.
_MARGIN = 4 * (0.25 / _PERMUTATIONS) ** 0.5


def bands_and_rows(threshold: float) -> tuple[int, int]:
    """The longest bands with which a pair at `threshold` is missed with a chance below _MISSED."""
    rows = _PERMUTATIONS
    while rows > 1 and (1 - threshold**rows) ** (_PERMUTATIONS // rows) > _MISSED:
        rows -= 1
    return _PERMUTATIONS // rows, rows


def near_versions() -> dict[str, str]:
    """The library that finds candidates, with its version; raises UnavailableError where it is not installed."""
    try:
        return {"rensa": version("rensa")}
    except PackageNotFoundError:
        raise UnavailableError(
            "near-duplicates need the package rensa: pip install 'openbook-database[near]'", field="dedup"
        ) from None


@dataclass(frozen=True)
class Sketch:
    """Distinct 5-grams uint64 [G], sorted, their MinHash, and its values uint32 [permutations]."""

    grams: NDArray[np.uint64]
    minhash: Any
    signature: NDArray[np.uint32]


class NearDuplicates:
    """Signatures of the documents that are kept, numbered from 0 in order."""

    def __init__(self, threshold: float, tokens: Callable[[int], NDArray[Any]]) -> None:
        """`tokens`: those of a kept document."""
        from rensa import RMinHash, RMinHashLSH

        self._threshold, self._tokens = threshold, tokens
        self._bands, self._rows = bands_and_rows(threshold)
        self._minhash = RMinHash
        self._index = RMinHashLSH(threshold, self._bands * self._rows, self._bands)
        self._signatures = np.empty((1024, self._bands * self._rows), np.uint32)
        self._sizes = np.empty(1024, np.int64)
        self._count = 0

    def sketch(self, tokens: NDArray[Any]) -> Sketch:
        """What `find` and `keep` need of a document."""
        grams = Grams(tokens).distinct(GRAM)
        minhash = self._minhash(self._bands * self._rows, _SEED)
        minhash.update(grams.astype("<u8").view("V8").tolist())
        return Sketch(grams, minhash, np.asarray(minhash.digest(), dtype=np.uint32))

    def find(self, sketch: Sketch) -> tuple[int, float] | None:
        """The first kept document that is as similar as the threshold or more, and its Jaccard index."""
        candidates = np.unique(np.asarray(self._index.query(sketch.minhash), dtype=np.int64))
        size = len(sketch.grams)
        sizes = self._sizes[candidates]
        ratio = np.minimum(sizes, size) / np.maximum(sizes, size)
        estimate = (self._signatures[candidates] == sketch.signature).mean(axis=1)
        for number in candidates[(ratio >= self._threshold) & (estimate >= self._threshold - _MARGIN)].tolist():
            found = jaccard(sketch.grams, Grams(self._tokens(number)).distinct(GRAM))
            if found >= self._threshold:
                return number, found
        return None

    def keep(self, sketch: Sketch) -> None:
        """Add the next document."""
        if self._count == len(self._sizes):
            self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
            self._sizes = np.concatenate([self._sizes, np.empty_like(self._sizes)])
        self._signatures[self._count], self._sizes[self._count] = sketch.signature, len(sketch.grams)
        self._index.insert(self._count, sketch.minhash)
        self._count += 1
