"""Exact scores and their order: what makes an answer independent of batch mates, threads and shard count.

A score is the inner product summed in float64 by a fixed tree of additions, then rounded to float32. Each product
of two float32 is exact in float64 and each addition is one IEEE operation on a pair that depends on the position
alone, so equal inputs give equal bits in any batch and on any processor.

Axes: Q queries, K neighbours, C candidates, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MISSING = -1
# What a float32 product and an addition may lose where they underflow, flushed to zero or not.
UNDERFLOW = 2.0**-125
_BLOCK_ELEMENTS = 1 << 19


class Hits(NamedTuple):
    """Neighbours of each query, best first, ties by id: ids int64 (-1 where missing), scores float32 (0 there)."""

    ids_QK: NDArray[np.int64]
    scores_QK: NDArray[np.float32]


def exact_scores(queries_QD: NDArray[np.float32], candidates_QCD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores [q, c] of c candidates for each query."""
    queries, candidates, dimension = candidates_QCD.shape
    scores_QC = np.empty((queries, candidates), dtype=np.float32)
    step = max(1, _BLOCK_ELEMENTS // max(1, candidates * dimension))
    for start in range(0, queries, step):
        block = slice(start, start + step)
        products: NDArray[np.float64] = candidates_QCD[block].astype(np.float64) * queries_QD[block, None, :]
        scores_QC[block] = tree_sum(products)
    return scores_QC


def tree_sum(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the last axis: its second half is added to its first until one is left. Overwrites `terms`."""
    length = terms.shape[-1]
    while length > 1:
        half = (length + 1) // 2
        terms[..., : length - half] += terms[..., half:length]
        length = half
    return terms[..., 0] + 0.0


def norms(vectors_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean norm of each row."""
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64)))


def float32_error(dimension: int) -> float:
    """Bound on |float32 sum in any order - exact| of an inner product, for vectors of norm 1 (Higham 2002, (3.5)),
    with the rounding of the exact score to float32 on top."""
    unit = 2.0**-24
    return dimension * unit / (1 - dimension * unit) + 2 * unit


def best(ids_QC: NDArray[np.int64], scores_QC: NDArray[np.float32], k: int) -> Hits:
    """The k best of each row by score, then id; entries with id -1 are none."""
    if ids_QC.shape[1] < k:
        padding = ((0, 0), (0, k - ids_QC.shape[1]))
        ids_QC = np.pad(ids_QC, padding, constant_values=MISSING)
        scores_QC = np.pad(scores_QC, padding)
    missing_QC = ids_QC == MISSING
    order_QK = np.lexsort((ids_QC, np.where(missing_QC, np.inf, -scores_QC)), axis=-1)[:, :k]
    rows_Q1 = np.arange(len(ids_QC))[:, None]
    ids_QK, scores_QK = ids_QC[rows_Q1, order_QK], scores_QC[rows_Q1, order_QK].astype(np.float32, copy=False)
    scores_QK[ids_QK == MISSING] = 0
    return Hits(ids_QK, scores_QK)


def merge(parts: Sequence[Hits | tuple[NDArray[np.int64], NDArray[np.float32]]], k: int) -> Hits:
    """One answer from those of several shards to the same queries: the k best by score, then id."""
    ids_QC = np.concatenate([part[0] for part in parts], axis=1)
    scores_QC = np.concatenate([part[1] for part in parts], axis=1)
    return best(ids_QC, scores_QC, k)
