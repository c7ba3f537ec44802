"""Search in one shard: fetch more candidates than asked by rough scores, rescore, and go on until none that was left out could
matter.

Axes: Q queries, K neighbours, F fetched, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError
from openbook_database.allowed import Allowed
from openbook_database.exclusions import RangeTable, RowRanges
from openbook_database.index.base import Candidates, IndexReader
from openbook_database.scoring import MISSING, Hits, merge, norms

MAX_K = 4096
# The square of a longer one may be more than a float32 holds, and Faiss forms squares.
MAX_NORM = 1e18
_SLACK = 6
_GROWTH = 8
_FEW, _OVERFETCH_LIMIT = 256, 1024
_GATHER_ELEMENTS = 1 << 23
_RESULT_ELEMENTS = 1 << 24

# For all queries, or for each one [q] (-inf: none).
MinScore = float | NDArray[np.float32] | None


@dataclass(frozen=True)
class _Group:
    """Queries that are searched together: rows are passed over by the index (`passed_over_N`, the same for all), and
    more of them, at most `largest` for each query, are dropped from what was fetched."""

    queries: NDArray[np.intp]
    dropped: RangeTable | None = None
    largest: int = 0
    passed_over_N: NDArray[np.bool_] | None = None


def check_query(queries_QD: NDArray[np.float32], k: int, dimension: int) -> NDArray[np.float32]:
    """The queries as contiguous float32; ArgumentError naming the field for a wrong shape, value or k."""
    queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
    if queries_QD.ndim != 2 or queries_QD.shape[1] != dimension:
        raise ArgumentError(
            f"queries: the database holds vectors of {dimension} elements, given an array of shape {queries_QD.shape}",
            field="queries",
        )
    # The squares of finite float32 have finite sums in float64.
    largest = float(norms(queries_QD).max(initial=0.0))
    if not np.isfinite(largest):
        raise ArgumentError("queries: hold values that are not finite", field="queries")
    if largest > MAX_NORM:
        raise ArgumentError(
            f"queries: a vector is {largest:.3g} long, at most {MAX_NORM:g} may be: scale it down", field="queries"
        )
    if not 1 <= k <= MAX_K:
        raise ArgumentError(f"k: must be from 1 to {MAX_K}, given {k}", field="k")
    return queries_QD


def search_rows(
    index: IndexReader,
    queries_QD: NDArray[np.float32],
    k: int,
    *,
    excluded: RowRanges | None = None,
    allowed: Allowed | Sequence[NDArray[np.bool_] | None] | None = None,
    min_score: MinScore = None,
    wanted_Q: NDArray[np.int64] | None = None,
    effort: int | None = None,
) -> Hits:
    """The k best of each query's candidates by exact score, then row (all rows are, for an exact index). -1 where fewer
    qualify.

    `excluded`: the rows of each query that must not come back. `allowed`: for each query which rows
    [n] alone may, None for all; queries that share the array are searched together. `wanted_Q`: how many candidates
    there should be in the whole snapshot; by default k and as many as may not come back here. `effort`: nprobe or
    efSearch, instead of the default.
    """
    allowed = None if allowed is None else Allowed.of(allowed)
    if wanted_Q is None:
        wanted_Q = np.full(len(queries_QD), k, dtype=np.int64)
        if excluded is not None:
            wanted_Q += excluded.sizes_Q
        if allowed is not None:
            wanted_Q += allowed.sums(lambda allowed_N: len(allowed_N) - int(np.count_nonzero(allowed_N)))
    least_Q = np.full(len(queries_QD), -np.inf if min_score is None else min_score, dtype=np.float32)
    candidates = index.begin(queries_QD, wanted_Q, effort)
    hits = Hits(
        np.full((len(queries_QD), k), MISSING, dtype=np.int64), np.zeros((len(queries_QD), k), dtype=np.float32)
    )
    for group in _groups(excluded, allowed, len(queries_QD), index.rows):
        _search_group(candidates, index.rows, k, group, least_Q, hits)
    low_QK = hits.scores_QK < least_Q[:, None]
    hits.ids_QK[low_QK] = MISSING
    hits.scores_QK[low_QK] = 0
    return hits


def _groups(excluded: RowRanges | None, allowed: Allowed | None, queries: int, rows: int) -> list[_Group]:
    """Queries of one filter with few, with more, and with one and the same large set of excluded rows."""
    if not queries:
        return []
    if excluded is None and allowed is None:
        return [_Group(np.arange(queries))]
    sizes_Q = np.zeros(queries, dtype=np.int64) if excluded is None else excluded.sizes_Q
    table = None if excluded is None else excluded.table(rows)
    kind_Q = (sizes_Q > _FEW).astype(np.int64)
    if excluded is not None:
        large: dict[bytes, int] = {}
        for query in np.flatnonzero(sizes_Q > _OVERFETCH_LIMIT).tolist():
            kind_Q[query] = 2 + large.setdefault(excluded.key(query), len(large))
    if allowed is not None:
        kind_Q += (int(kind_Q.max()) + 1) * (allowed.mask_Q + 1)
    groups = []
    for kind in np.unique(kind_Q):
        some = np.flatnonzero(kind_Q == kind)
        first, largest = int(some[0]), int(sizes_Q[some].max())
        allowed_N = None if allowed is None else allowed.mask(first)
        passed_over_N = None if allowed_N is None else ~allowed_N
        if excluded is not None and largest > _OVERFETCH_LIMIT:
            excluded_N = excluded.mask(first, rows)
            passed_over_N = excluded_N if passed_over_N is None else passed_over_N | excluded_N
            largest = 0
        groups.append(_Group(some, table if largest else None, largest, passed_over_N))
    return groups


def _search_group(
    candidates: Candidates,
    rows: int,
    k: int,
    group: _Group,
    least_Q: NDArray[np.float32],
    hits: Hits,
) -> None:
    """Fill the group's rows of `hits`: fetch more and more until what was left out scores strictly less than the k-th,
    by more than the rounding of the rough scores."""
    margin_Q = candidates.margin_Q[group.queries]
    pending = np.arange(len(group.queries))
    count = k + group.largest + _SLACK
    while len(pending):
        count = min(count, rows)
        unsettled = []
        step = max(1, _RESULT_ELEMENTS // count)
        for start in range(0, len(pending), step):
            some = pending[start : start + step]
            queries = group.queries[some]
            rough_QF, rows_QF = candidates.fetch(queries, count, group.passed_over_N)
            last_Q = np.where(rows_QF[:, -1] == MISSING, -np.inf, rough_QF[:, -1].astype(np.float64))
            if group.dropped is not None:
                kept = count if count == rows else count - group.largest
                rows_QF[group.dropped.holds(queries, rows_QF)] = MISSING
                rows_QF, rough_QF, last_Q = _keep(rows_QF, rough_QF, last_Q, kept)
            found = _rescore(candidates, queries, _contenders(rows_QF, rough_QF, k, margin_Q[some]), k)
            kth_Q = np.where(found.ids_QK[:, -1] == MISSING, -np.inf, found.scores_QK[:, -1].astype(np.float64))
            kth_Q = np.maximum(kth_Q, least_Q[queries])
            settled_Q = (last_Q + margin_Q[some] < kth_Q) | (count == rows) | np.isneginf(last_Q)
            hits.ids_QK[queries[settled_Q]] = found.ids_QK[settled_Q]
            hits.scores_QK[queries[settled_Q]] = found.scores_QK[settled_Q]
            unsettled.append(some[~settled_Q])
        pending = np.concatenate(unsettled)
        count *= _GROWTH


def _keep(
    rows_QF: NDArray[np.int64], rough_QF: NDArray[np.float32], last_Q: NDArray[np.float64], kept: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]:
    """The first `kept` fetched rows of each query that were not dropped (-1) with their rough scores, and the new bound on
    what was left out."""
    dropped_QF = rows_QF == MISSING
    order_QF = np.argsort(dropped_QF, axis=1, kind="stable")[:, :kept]
    left_over_Q = (~dropped_QF).sum(axis=1) > kept
    rough_QF = np.take_along_axis(rough_QF, order_QF, axis=1)
    last_Q = np.where(left_over_Q, rough_QF[:, -1].astype(np.float64), last_Q)
    return np.take_along_axis(rows_QF, order_QF, axis=1), rough_QF, last_Q


def _contenders(
    rows_QF: NDArray[np.int64], rough_QF: NDArray[np.float32], k: int, margin_Q: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The first columns of `rows_QF`, best first: as many as hold each row that can still be among the k of its query."""
    if rows_QF.shape[1] <= k:
        return rows_QF
    bound_Q = rough_QF[:, k - 1].astype(np.float64) - 2 * margin_Q
    out_QF = (rough_QF[:, k:] < bound_Q[:, None]) | (rows_QF[:, k:] == MISSING)
    return rows_QF[:, : k + int((~out_QF).any(axis=0).sum())]


def _rescore(candidates: Candidates, queries: NDArray[np.intp], rows_QF: NDArray[np.int64], k: int) -> Hits:
    """The k best of the fetched rows (-1: none) by their exact scores, in blocks of bounded memory."""
    dimension = candidates.dimension
    fetched = rows_QF.shape[1]
    columns = min(fetched, max(k, _GATHER_ELEMENTS // dimension))
    step = max(1, _GATHER_ELEMENTS // (columns * dimension))
    parts = []
    for start in range(0, len(queries), step):
        some = slice(start, start + step)
        found = []
        for column in range(0, fetched, columns):
            rows_QC = rows_QF[some, column : column + columns]
            scores_QC = candidates.scores(queries[some], np.maximum(rows_QC, 0))
            found.append((rows_QC, scores_QC))
        parts.append(merge(found, k))
    return Hits(np.concatenate([part.ids_QK for part in parts]), np.concatenate([part.scores_QK for part in parts]))
