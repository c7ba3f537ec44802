"""Exact search against brute force: ties, duplicates, batches, shards, exclusions."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError, CorruptError
from openbook_database.exclusions import RowRanges
from openbook_database.index.flat import FlatReader, write_flat
from openbook_database.scoring import Hits, exact_scores, float32_error, merge
from openbook_database.search import check_query, search_rows

Ranges = Sequence[tuple[int, int]]
SLOW_OK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def make_index(vectors_ND: NDArray[np.float32]) -> FlatReader:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lists.faiss"
        write_flat(path, vectors_ND.shape[1], [vectors_ND[:3], vectors_ND[3:]])
        own = faiss.IndexFlatIP(vectors_ND.shape[1])
        own.add(vectors_ND)
        assert path.read_bytes() == faiss.serialize_index(own).tobytes()
        norm = float(np.linalg.norm(vectors_ND.astype(np.float64), axis=1).max())
        return FlatReader.open(path, rows=len(vectors_ND), dimension=vectors_ND.shape[1], max_norm=norm * 1.000001)


def brute_force(
    vectors_ND: NDArray[np.float32],
    query_D: NDArray[np.float32],
    k: int,
    excluded: Ranges = (),
    min_score: float | None = None,
) -> list[tuple[int, float]]:
    """(row, score) by exactly rounded sums in plain Python."""
    scored = []
    for row, vector in enumerate(vectors_ND.astype(np.float64)):
        if any(first <= row < end for first, end in excluded):
            continue
        score = float(np.float32(math.fsum(a * b for a, b in zip(query_D.astype(np.float64), vector, strict=True))))
        if min_score is None or score >= np.float32(min_score):
            scored.append((-score, row))
    return [(row, -negative) for negative, row in sorted(scored)[:k]]


def as_pairs(hits: Hits, query: int) -> list[tuple[int, float]]:
    row = zip(hits.ids_QK[query].tolist(), hits.scores_QK[query].tolist(), strict=True)
    return [(found, score) for found, score in row if found != -1]


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Small integer vectors (every sum is exact, ties are everywhere) or normal ones, with repeated rows in both."""
    rows, dimension, queries = draw(st.integers(1, 90)), draw(st.integers(1, 24)), draw(st.integers(1, 24))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        vectors_ND, queries_QD = random.integers(-2, 3, (rows, dimension)), random.integers(-2, 3, (queries, dimension))
    else:
        vectors_ND, queries_QD = random.normal(size=(rows, dimension)), random.normal(size=(queries, dimension))
        vectors_ND = vectors_ND[random.integers(0, max(1, rows // 3), rows)]
    return vectors_ND.astype(np.float32), queries_QD.astype(np.float32)


@SLOW_OK
@given(cases(), st.integers(1, 20), st.data())
def test_equals_brute_force(case: tuple[NDArray[np.float32], NDArray[np.float32]], k: int, data: st.DataObject) -> None:
    vectors_ND, queries_QD = case
    rows = len(vectors_ND)
    bounds = st.lists(st.integers(0, rows), max_size=4).map(sorted)
    excluded = [list(zip(b[::2], b[1::2], strict=False)) for b in (data.draw(bounds) for _ in queries_QD)]
    min_score = data.draw(st.none() | st.floats(-3, 3, width=32))
    index = make_index(vectors_ND)
    hits = search_rows(index, queries_QD, k, excluded=RowRanges.of(excluded), min_score=min_score)
    assert hits.ids_QK.shape == hits.scores_QK.shape == (len(queries_QD), k)
    for query, query_D in enumerate(queries_QD):
        assert as_pairs(hits, query) == brute_force(vectors_ND, query_D, k, excluded[query], min_score)
        missing = hits.ids_QK[query] == -1
        assert (hits.scores_QK[query][missing] == 0).all()
        assert (np.diff(missing.astype(int)) >= 0).all()


@SLOW_OK
@given(cases(), st.integers(1, 20), st.sampled_from([2, 3, 7]))
def test_any_number_of_shards_and_any_batch_give_the_same_bits(
    case: tuple[NDArray[np.float32], NDArray[np.float32]], k: int, shards: int
) -> None:
    vectors_ND, queries_QD = case
    whole = search_rows(make_index(vectors_ND), queries_QD, k)
    cuts = np.linspace(0, len(vectors_ND), min(shards, len(vectors_ND)) + 1).astype(int)
    parts = []
    for first, end in itertools.pairwise(cuts):
        part = search_rows(make_index(vectors_ND[first:end]), queries_QD, k)
        parts.append(Hits(np.where(part.ids_QK == -1, -1, part.ids_QK + first), part.scores_QK))
    merged = merge(parts[::-1], k)
    np.testing.assert_array_equal(merged.ids_QK, whole.ids_QK)
    np.testing.assert_array_equal(merged.scores_QK, whole.scores_QK)
    alone = [search_rows(make_index(vectors_ND), query_D[None], k) for query_D in queries_QD]
    np.testing.assert_array_equal(np.concatenate([hits.ids_QK for hits in alone]), whole.ids_QK)
    np.testing.assert_array_equal(np.concatenate([hits.scores_QK for hits in alone]), whole.scores_QK)


def test_thousands_of_equal_rows_come_back_by_id() -> None:
    random = np.random.default_rng(3)
    vectors_ND = np.repeat(random.normal(size=(1, 32)), 5000, axis=0).astype(np.float32)
    vectors_ND[4000:4010] *= 2
    queries_QD = np.concatenate([vectors_ND[:1], -vectors_ND[:1], random.normal(size=(30, 32)).astype(np.float32)])
    hits = search_rows(make_index(vectors_ND), queries_QD, 12)
    assert hits.ids_QK[0].tolist() == [*range(4000, 4010), 0, 1]
    assert hits.ids_QK[1].tolist() == list(range(12))


def test_large_exclusions_are_passed_over_exactly() -> None:
    random = np.random.default_rng(4)
    vectors_ND = random.normal(size=(4000, 8)).astype(np.float32)
    queries_QD = random.normal(size=(6, 8)).astype(np.float32)
    excluded: Sequence[Ranges] = [[(0, 3995)], [(10, 2000), (2100, 3000)], [], [(5, 300)], [(0, 4000)], [(0, 3995)]]
    hits = search_rows(make_index(vectors_ND), queries_QD, 9, excluded=RowRanges.of(excluded))
    for query, ranges in enumerate(excluded):
        assert as_pairs(hits, query) == brute_force(vectors_ND, queries_QD[query], 9, ranges)


@given(st.integers(1, 600), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_score_is_the_rounded_exact_sum_within_one_unit_and_float32_within_its_bound(dimension: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    query_D, vector_D = random.normal(size=(2, dimension)).astype(np.float32)
    exact = math.fsum(a * b for a, b in zip(query_D.astype(float), vector_D.astype(float), strict=True))
    score = exact_scores(query_D[None], vector_D[None, None])[0, 0]
    assert abs(float(score) - exact) <= np.spacing(np.float32(abs(exact)))
    bound = float32_error(dimension) * float(np.linalg.norm(query_D) * np.linalg.norm(vector_D)) * 1.00001
    assert abs(float(query_D @ vector_D) - exact) <= bound
    assert abs(float(np.cumsum(query_D * vector_D)[-1]) - exact) <= bound


@pytest.mark.parametrize("scale", [1e-44, 1e-42, 1e-38, 1e17])
def test_vectors_of_any_length_that_is_taken_are_answered_exactly(scale: float) -> None:
    """Products of the smallest ones underflow."""
    random = np.random.default_rng(6)
    vectors_ND = random.normal(size=(400, 24)).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    queries_QD = check_query((random.normal(size=(8, 24)) * scale).astype(np.float32), 7, 24)
    hits = search_rows(make_index(vectors_ND), queries_QD, 7)
    for query, query_D in enumerate(queries_QD):
        assert as_pairs(hits, query) == brute_force(vectors_ND, query_D, 7)


def test_merge_marks_what_is_missing() -> None:
    empty = Hits(np.full((1, 2), -1), np.zeros((1, 2), np.float32))
    one = Hits(np.asarray([[7, -1]]), np.asarray([[-5.0, 0.0]], np.float32))
    merged = merge([empty, one], 3)
    assert merged.ids_QK.tolist() == [[7, -1, -1]]
    assert merged.scores_QK.tolist() == [[-5.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("queries_QD", "k", "field"),
    [
        (np.zeros((1, 3), np.float32), 1, "queries"),
        (np.zeros(4, np.float32), 1, "queries"),
        (np.full((1, 4), np.nan, np.float32), 1, "queries"),
        (np.full((1, 4), np.inf, np.float32), 1, "queries"),
        (np.asarray([[0, 0, 0, 1], [1e19, 0, 0, 0]], np.float32), 1, "queries"),
        (np.full((1, 4), -3e38, np.float32), 1, "queries"),
        (np.zeros((1, 4), np.float32), 0, "k"),
        (np.zeros((1, 4), np.float32), 10**9, "k"),
    ],
)
def test_bad_queries_are_refused(queries_QD: NDArray[np.float32], k: int, field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_query(queries_QD, k, 4)
    assert caught.value.field == field


def test_no_queries_is_no_answer() -> None:
    hits = search_rows(make_index(np.ones((3, 4), np.float32)), np.empty((0, 4), np.float32), 2)
    assert hits.ids_QK.shape == (0, 2)


def test_a_file_that_is_no_index_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "lists.faiss"
    path.write_bytes(b"not an index at all")
    with pytest.raises(CorruptError, match=r"lists\.faiss"):
        FlatReader.open(path, rows=1, dimension=4, max_norm=1.0)
    write_flat(path, 4, [np.ones((2, 4), np.float32)])
    with pytest.raises(CorruptError, match="2 vectors of 4"):
        FlatReader.open(path, rows=3, dimension=4, max_norm=1.0)


def anonymous_mebibytes() -> float:
    """Memory of this process that is backed by no file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def test_the_index_is_mapped_and_not_copied(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    vectors_ND = random.normal(size=(80_000, 256)).astype(np.float32)
    queries_QD = vectors_ND[:8].copy()
    path = tmp_path / "lists.faiss"
    write_flat(path, 256, [vectors_ND])
    search_rows(make_index(vectors_ND[:100]), queries_QD, 5)
    del vectors_ND
    before = anonymous_mebibytes()
    index = FlatReader.open(path, rows=80_000, dimension=256, max_norm=30.0)
    hits = search_rows(index, queries_QD, 5)
    assert hits.ids_QK[:, 0].tolist() == list(range(8))
    assert path.stat().st_size > 78 << 20
    assert anonymous_mebibytes() - before < 16
