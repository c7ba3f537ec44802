"""Indexes of codes against plain Python over what the codes stand for, for any split into shards and any batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError, CorruptError
from openbook_database.build.train_stage import sample_rows
from openbook_database.exclusions import RowRanges
from openbook_database.index.base import one_thread
from openbook_database.index.files import index_writers, open_index, write_index, write_list_sizes
from openbook_database.index.flat import FlatReader
from openbook_database.index.hnsw import HNSWReader
from openbook_database.index.ivf import IVFReader, list_reach, write_ivf
from openbook_database.index.quantiser import Quantiser, train_quantiser, write_quantiser
from openbook_database.index.recipe import choose_recipe, parse_recipe, resolve_recipe
from openbook_database.index.rotation import Rotation
from openbook_database.scoring import Hits, exact_scores, merge
from openbook_database.search import search_rows

Ranges = Sequence[tuple[int, int]]

ROWS, DIMENSION = 600, 16
RECIPES = [
    "IVF8,Flat",
    "IVF8,SQ8",
    "IVF8,RaBitQ",
    "IVF8,PQ4",
    "OPQ4_8,IVF8,PQ4",
    "IVF24_HNSW4,SQ8",
]


@dataclass(frozen=True)
class Case:
    """One recipe over the same rows in 1, 2, 3 and 7 shards."""

    quantiser: Path
    shards: dict[int, list[tuple[IVFReader, int]]]


def some_vectors() -> NDArray[np.float32]:
    """Rows in groups, some of them equal, not all of length 1."""
    random = np.random.default_rng(5)
    vectors_ND = (
        random.normal(size=(ROWS, DIMENSION)) + 2 * random.normal(size=(9, DIMENSION))[random.integers(0, 9, ROWS)]
    )
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True) * random.choice([1, 1, 0.5], (ROWS, 1))
    vectors_ND[400:] = vectors_ND[random.integers(0, 60, ROWS - 400)]
    return vectors_ND.astype(np.float32)


VECTORS = some_vectors()


def open_shards(folder: Path, factory: str, quantiser: Path, cuts: list[int]) -> list[tuple[IVFReader, int]]:
    recipe = parse_recipe(factory)
    folder.mkdir()
    (folder / "quantiser.faiss").hardlink_to(quantiser)
    folders = []
    for first, end in itertools.pairwise(cuts):
        shard = folder / str(first)
        shard.mkdir()
        for name, write in index_writers(
            recipe, folder, shard, end - first, DIMENSION, lambda a=first, b=end: [VECTORS[a:b]]
        ).items():
            write(shard / name)
        folders.append(shard)
    write_list_sizes(folder / "list_sizes.bin", folders)
    opened = []
    for shard, (first, end) in zip(folders, itertools.pairwise(cuts), strict=True):
        norm = float(np.linalg.norm(VECTORS[first:end].astype(np.float64), axis=1).max()) * (1 + 1e-6)
        reach = list_reach(shard / "lists.faiss", Quantiser(quantiser, dimension=DIMENSION), norm)
        reader = open_index(
            recipe,
            folder,
            shard,
            rows=end - first,
            dimension=DIMENSION,
            max_norm=norm,
            reach=reach,
            search={"nprobe": 2},
        )
        assert isinstance(reader, IVFReader)
        opened.append((reader, first))
    return opened


@pytest.fixture(scope="module", params=RECIPES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("case")
    path = folder / "quantiser.faiss"
    write_quantiser(path, train_quantiser(parse_recipe(request.param), VECTORS[:300]))
    shards = {
        count: open_shards(
            folder / f"in-{count}", request.param, path, np.linspace(0, ROWS, count + 1).astype(int).tolist()
        )
        for count in (1, 2, 3, 7)
    }
    return Case(path, shards)


def search(
    shards: list[tuple[IVFReader, int]],
    queries_QD: NDArray[np.float32],
    k: int,
    excluded: list[Ranges],
    min_score: float | None = None,
    effort: int | None = None,
) -> Hits:
    """As `Snapshot.search` does it."""
    wanted_Q = k + np.asarray([sum(end - first for first, end in ranges) for ranges in excluded])
    parts = []
    for reader, start in shards:
        local = [
            [
                (max(a - start, 0), min(b - start, reader.rows))
                for a, b in ranges
                if a < start + reader.rows and b > start
            ]
            for ranges in excluded
        ]
        hits = search_rows(
            reader, queries_QD, k, excluded=RowRanges.of(local), min_score=min_score, wanted_Q=wanted_Q, effort=effort
        )
        parts.append(Hits(np.where(hits.ids_QK == -1, -1, hits.ids_QK + start), hits.scores_QK))
    return merge(parts, k)


def product(left: NDArray[np.floating], right: NDArray[np.floating]) -> float:
    return float(np.float32(math.fsum(a * b for a, b in zip(left.tolist(), right.tolist(), strict=True))))


def oracle(
    reader: IVFReader, query_D: NDArray[np.float32], k: int, excluded: Ranges, min_score: float | None, nprobe: int
) -> list[tuple[int, float]]:
    """Lists by exact products, twice as many until they hold enough, then all their rows by exact products."""
    quantiser = reader.quantiser
    query_E = quantiser.rotate(query_D[None])[0]
    centres = sorted(
        range(quantiser.nlist), key=lambda number: (-product(query_E, quantiser.centroids_LE[number]), number)
    )
    wanted = min(ROWS, k + sum(end - first for first, end in excluded))
    lists = {number: reader.lists.list_rows(number) for number in range(quantiser.nlist)}
    while sum(len(lists[number]) for number in centres[:nprobe]) < wanted:
        nprobe *= 2
    decoded_NE = reader.decode(np.arange(ROWS))
    if decoded_NE.shape[1] > len(query_E):
        query_E = np.append(query_E, np.float32(1))
    found = []
    for row in itertools.chain.from_iterable(lists[number].tolist() for number in centres[:nprobe]):
        score = product(query_E, decoded_NE[row])
        if not any(a <= row < b for a, b in excluded) and (min_score is None or score >= np.float32(min_score)):
            found.append((-score, row))
    return [(row, -negative) for negative, row in sorted(found)[:k]]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_number_of_shards_and_any_batch_give_what_the_codes_say(case: Case, data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    queries_QD = random.normal(size=(5, DIMENSION)).astype(np.float32)
    own = random.integers(0, ROWS, 3)
    queries_QD[:3] = VECTORS[own]
    k, nprobe = data.draw(st.sampled_from([1, 7, 40])), data.draw(st.sampled_from([1, 2, 5, 30]))
    width = data.draw(st.sampled_from([0, 5, 300, ROWS]))
    excluded: list[Ranges] = [
        [],
        *([(max(0, row - width), min(ROWS, row + width))] if width else [] for row in own),
        [],
    ]
    min_score = data.draw(st.none() | st.sampled_from([-0.5, 0.4]))
    whole = search(case.shards[1], queries_QD, k, excluded, min_score, nprobe)
    ((reader, _),) = case.shards[1]
    graph = reader.quantiser._graph is not None
    for query in range(5):
        pairs = list(zip(whole.ids_QK[query].tolist(), whole.scores_QK[query].tolist(), strict=True))
        if not graph:  # which lists a graph leads to is the graph's own affair
            expected = oracle(reader, queries_QD[query], k, excluded[query], min_score, nprobe)
            assert [pair for pair in pairs if pair[0] != -1] == expected
        alone = search(case.shards[1], queries_QD[query : query + 1], k, excluded[query : query + 1], min_score, nprobe)
        assert alone.ids_QK[0].tolist() == whole.ids_QK[query].tolist()
        assert alone.scores_QK[0].tolist() == whole.scores_QK[query].tolist()
    for count in (2, 3, 7):
        parts = search(case.shards[count], queries_QD, k, excluded, min_score, nprobe)
        np.testing.assert_array_equal(parts.ids_QK, whole.ids_QK)
        np.testing.assert_array_equal(parts.scores_QK, whole.scores_QK)


def test_as_many_as_there_are_come_back_however_few_lists_are_probed(case: Case) -> None:
    for shards in case.shards.values():
        hits = search(shards, VECTORS[:4], ROWS, [[], [(0, 30)], [(0, 599)], [(0, ROWS)]], effort=1)
        assert (hits.ids_QK != -1).sum(axis=1).tolist() == [ROWS, ROWS - 30, 1, 0]
        assert hits.ids_QK[2, 0] == 599


def test_codes_stand_for_what_faiss_decodes(case: Case) -> None:
    ((reader, _),) = case.shards[1]
    bare = faiss.read_index(str(case.quantiser))
    inner = faiss.extract_index_ivf(bare)
    inner.make_direct_map()
    bare.add(VECTORS)
    expected_ND = np.stack([bare.reconstruct(row) for row in range(ROWS)])
    np.testing.assert_allclose(reader.vectors(np.arange(ROWS)), expected_ND, atol=2e-5)


def test_rough_and_exact_scores_lie_within_the_margin(case: Case) -> None:
    random = np.random.default_rng(8)
    queries_QD = (random.normal(size=(40, DIMENSION)) * random.choice([0.1, 1, 30], (40, 1))).astype(np.float32)
    for reader, _ in case.shards[2]:
        candidates = reader.begin(queries_QD, np.full(40, 1), reader.quantiser.nlist)
        members = np.arange(40)
        rough_QF, rows_QF = candidates.fetch(members, reader.rows, None)
        assert (np.sort(rows_QF, axis=1) == np.arange(reader.rows)).all()
        apart_QF = np.abs(rough_QF.astype(np.float64) - candidates.scores(members, rows_QF))
        assert (apart_QF <= candidates.margin_Q[:, None]).all()
        assert (candidates.margin_Q < 0.01 * np.maximum(1, np.square(queries_QD).sum(axis=1))).all()


def test_bytes_depend_neither_on_blocks_nor_on_threads(case: Case, tmp_path: Path) -> None:
    ((reader, _),) = case.shards[1]
    expected = reader.lists.path.read_bytes()
    random = np.random.default_rng(3)
    lists = [len(np.unique(reader.quantiser.assign(reader.quantiser.rotate(VECTORS[[row]])))) for row in range(5)]
    assert lists == [1] * 5
    alone = np.concatenate(
        [reader.quantiser.assign(reader.quantiser.rotate(VECTORS[row : row + 1])) for row in range(ROWS)]
    )
    np.testing.assert_array_equal(reader.quantiser.assign(reader.quantiser.rotate(VECTORS)), alone)
    for threads in (1, 3):
        cuts = [0, *sorted(random.integers(0, ROWS, 9).tolist()), ROWS]
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(threads)
        try:
            blocks = [VECTORS[a:b] for a, b in itertools.pairwise(cuts)]
            write_index(tmp_path / "lists", parse_recipe("IVF8,Flat"), ROWS, DIMENSION, blocks, case.quantiser)
        finally:
            faiss.omp_set_num_threads(before)
        assert (tmp_path / "lists").read_bytes() == expected


@pytest.mark.parametrize("rows", [ROWS, 2], ids=["full", "sparse"])
def test_the_lists_are_those_that_faiss_adds_and_writes(case: Case, rows: int, tmp_path: Path) -> None:
    quantiser = Quantiser(case.quantiser, dimension=DIMENSION)
    rotated_NE = np.ascontiguousarray(quantiser.rotate(VECTORS[:rows]))
    lists_N, ids_N = quantiser.assign(rotated_NE), np.arange(rows)
    index = quantiser.lists
    index.add_core(rows, *(faiss.swig_ptr(array) for array in (rotated_NE, ids_N, lists_N)))
    writer = faiss.FileIOWriter(str(tmp_path / "of-faiss"))
    faiss.write_InvertedLists(index.invlists, writer)
    del writer
    write_ivf(tmp_path / "ours", case.quantiser, rows, DIMENSION, [VECTORS[:rows]])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "of-faiss").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["of-faiss", "ours"]


def test_training_gives_the_same_bytes_on_any_number_of_threads(tmp_path: Path) -> None:
    sample_ND = np.random.default_rng(2).normal(size=(2000, 64)).astype(np.float32)
    before = faiss.omp_get_max_threads()
    found = set()
    for threads in (1, 2, 3):
        faiss.omp_set_num_threads(threads)
        try:
            write_quantiser(tmp_path / "quantiser", train_quantiser(parse_recipe("OPQ2_8,IVF4,SQ8"), sample_ND))
        finally:
            faiss.omp_set_num_threads(before)
        found.add((tmp_path / "quantiser").read_bytes())
    assert len(found) == 1


def test_wide_product_codes_do_not_depend_on_the_block(tmp_path: Path) -> None:
    vectors_ND = np.random.default_rng(6).normal(size=(700, 96)).astype(np.float32)
    recipe = parse_recipe("IVF2,PQ4")
    write_quantiser(tmp_path / "quantiser", train_quantiser(recipe, vectors_ND))
    found = set()
    for step in (700, 1, 33):
        blocks = [vectors_ND[start : start + step] for start in range(0, 700, step)]
        write_index(tmp_path / "lists", recipe, 700, 96, blocks, tmp_path / "quantiser")
        found.add((tmp_path / "lists").read_bytes())
    assert len(found) == 1


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_rotation_is_exact_to_its_bits_in_any_batch(rows: int, dimension: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix_ED = random.normal(size=(5, dimension)).astype(np.float32)
    vectors_ND = (random.normal(size=(rows, dimension)) * 10.0 ** random.integers(-6, 6, (rows, 1))).astype(np.float32)
    vectors_ND[0] = 0
    rotated_NE = Rotation(matrix_ED)(vectors_ND)
    expected_NE = vectors_ND.astype(np.float64) @ matrix_ED.T.astype(np.float64)
    scale_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True) * np.linalg.norm(matrix_ED)
    assert (np.abs(rotated_NE - expected_NE) <= 2e-6 * scale_N1 + 1e-30).all()
    alone_NE = np.concatenate([Rotation(matrix_ED)(vectors_ND[row : row + 1]) for row in range(rows)])
    np.testing.assert_array_equal(alone_NE, rotated_NE)


def test_a_graph_finds_the_nearest_and_scores_exactly(tmp_path: Path) -> None:
    recipe, path = parse_recipe("HNSW8"), tmp_path / "lists.faiss"
    write_index(path, recipe, ROWS, DIMENSION, [VECTORS[:100], VECTORS[100:]])
    again = tmp_path / "again.faiss"
    write_index(again, recipe, ROWS, DIMENSION, [VECTORS])
    assert path.read_bytes() == again.read_bytes()
    graph = HNSWReader.open(path, rows=ROWS, dimension=DIMENSION, max_norm=1.001, effort=64)
    write_index(tmp_path / "flat", parse_recipe("Flat"), ROWS, DIMENSION, [VECTORS])
    flat = FlatReader.open(tmp_path / "flat", rows=ROWS, dimension=DIMENSION, max_norm=1.001)
    excluded: list[Ranges] = [[(row, row + 1)] for row in range(50)]
    found, expected = (search_rows(index, VECTORS[:50], 5, excluded=RowRanges.of(excluded)) for index in (graph, flat))
    assert (found.scores_QK == expected.scores_QK).mean() > 0.95
    all_but_few: list[Ranges] = [[(0, 590)]] * 2
    few = search_rows(graph, VECTORS[:2], 20, excluded=RowRanges.of(all_but_few))
    assert (few.ids_QK != -1).sum(axis=1).tolist() == [10, 10]
    with pytest.raises(CorruptError, match="600 vectors of 16"):
        HNSWReader.open(path, rows=599, dimension=DIMENSION, max_norm=1.001)
    with pytest.raises(CorruptError, match="expected an HNSW graph"):
        HNSWReader.open(tmp_path / "flat", rows=ROWS, dimension=DIMENSION, max_norm=1.001)


def test_damaged_lists_are_found(case: Case, tmp_path: Path) -> None:
    ((reader, _),) = case.shards[1]
    data = reader.lists.path.read_bytes()
    (tmp_path / "quantiser.faiss").hardlink_to(case.quantiser)
    (tmp_path / "list_sizes.bin").write_bytes(bytes(8 * reader.quantiser.nlist))
    for broken, message in (
        (data[:-1], "bytes are not those"),
        (b"x" * 80, "no inverted lists"),
        (data[:9], "9 bytes"),
    ):
        (tmp_path / "lists.faiss").write_bytes(broken)
        with pytest.raises(CorruptError, match=rf"lists\.faiss: .*{message}"):
            IVFReader.open(tmp_path, tmp_path, rows=ROWS, dimension=DIMENSION, max_norm=1, reach=1, nprobe=1)
    (tmp_path / "lists.faiss").write_bytes(data)
    with pytest.raises(CorruptError, match="holds 600 rows"):
        IVFReader.open(tmp_path, tmp_path, rows=ROWS + 1, dimension=DIMENSION, max_norm=1, reach=1, nprobe=1)


@pytest.mark.parametrize(
    ("factory", "rows", "dimension", "message"),
    [
        ("IVF16", 100, 16, "is not known; known: Flat, HNSW32"),
        ("IVF16,PQ4x4", 100, 16, "is not known"),
        ("IVF0,Flat", 100, 16, "at least 1"),
        ("HNSW1", 100, 16, "is not known"),
        ("IVF16,SQ8", 10, 16, "16 lists need at least as many chunks, there are 10: give at most IVF10, or auto"),
        ("IVF4,PQ5", 1000, 16, "parts of equal length.*a divisor of 16, for example PQ4"),
        ("OPQ3_12,IVF4,PQ5", 1000, 16, "divisor of 12, for example PQ4"),
        ("OPQ4_32,IVF4,PQ4", 1000, 16, "OPQ makes 32 dimensions of 16"),
        ("IVF4,PQ4", 200, 16, "at least 256 chunks, there are 200: give SQ8"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(factory: str, rows: int, dimension: int, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        resolve_recipe(factory, rows, dimension)
    assert caught.value.field == "index"


@pytest.mark.parametrize(
    ("chunks", "dimension", "factory"),
    [
        (1, 384, "Flat"),
        (170_000, 384, "Flat"),
        (1_250_000, 384, "IVF2048,SQ8"),
        (100_000_000, 384, "OPQ64_128,IVF131072_HNSW32,PQ64"),
        (5_000_000_000, 1024, "OPQ64_128,IVF262144_HNSW32,PQ64"),
        (10**9, 100, "OPQ50_100,IVF1048576_HNSW32,PQ50"),
    ],
)
def test_recipes_are_chosen_by_size_and_can_be_built(chunks: int, dimension: int, factory: str) -> None:
    recipe = choose_recipe(chunks, dimension)
    assert recipe.factory == factory
    assert resolve_recipe("auto", chunks, dimension) == recipe
    assert recipe.bytes_per_row(dimension) * chunks < 1 << 40
    if recipe.lists < 1 << 18:
        faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)


@pytest.mark.parametrize(
    ("memory", "shards", "factory"),
    [
        (1 << 30, 1, "OPQ64_128,IVF65536_HNSW32,PQ64"),
        (10**9, 40, "IVF65536_HNSW32,SQ8"),
        (40 * 10**9, 1, "IVF131072_HNSW32,SQ8"),
        (1 << 38, 1, "IVF131072_HNSW32,SQ8"),
    ],
)
def test_recipes_are_chosen_by_memory(memory: int, shards: int, factory: str) -> None:
    recipe = choose_recipe(10**8, 384, memory, shards)
    assert recipe.factory == factory
    rows = recipe.sample_size(10**8, None, 384, memory)
    assert 8 * recipe.lists <= rows <= 64 * recipe.lists
    assert rows * recipe.sample_row_bytes(384) <= memory
    assert choose_recipe(5 * 10**9, 1024, 1 << 40).factory == "OPQ64_128,IVF4194304_HNSW32,PQ64"


def test_a_sample_that_memory_does_not_hold_is_refused() -> None:
    recipe = parse_recipe("OPQ4_8,IVF1000,PQ4")
    assert recipe.sample_row_bytes(16) == 4 * (16 + 8)
    assert recipe.sample_size(10**6, None, 16, 200_000) == 200_000 // 96
    assert recipe.sample_size(10**6, 5000, 16, 200_000) == 5000
    message = "memory: .* do not hold the 1,000 vectors .*give 9.6e-05 GB, or fewer lists"
    with pytest.raises(ArgumentError, match=message) as raised:
        resolve_recipe("OPQ4_8,IVF1000,PQ4", 10**6, 16, 90_000)
    assert raised.value.field == "memory"


@pytest.mark.parametrize("factory", RECIPES)
def test_training_step_by_step_gives_the_bytes_of_faiss_own(factory: str) -> None:
    shares: list[float] = []
    recipe = parse_recipe(factory)
    index = train_quantiser(recipe, VECTORS[:300], progress=shares.append)
    assert len(shares) == 11 + bool(recipe.opq)
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == 1
    own: Any = faiss.index_factory(DIMENSION, factory, faiss.METRIC_INNER_PRODUCT)
    inner: Any = faiss.downcast_index(own.index) if recipe.opq else own
    inner.cp.min_points_per_centroid, inner.cp.max_points_per_centroid = 1, 300
    if recipe.codes:
        inner.pq.cp.min_points_per_centroid = 1
        inner.do_polysemous_training = False
    parts = None
    if recipe.opq:
        rotation: Any = faiss.downcast_VectorTransform(own.chain.at(0))
        parts = faiss.ProductQuantizer(recipe.inner_dimension(DIMENSION), recipe.opq, 8)
        parts.cp.min_points_per_centroid = 1
        rotation.pq = parts
    with one_thread():
        own.train(VECTORS[:300])
    np.testing.assert_array_equal(faiss.serialize_index(index), faiss.serialize_index(own))


def test_a_sample_is_drawn_from_all_rows() -> None:
    counts = np.zeros(50)
    for seed in range(400):
        rows = sample_rows(50, 10, seed)
        assert len(np.unique(rows)) == 10
        assert (np.diff(rows) > 0).all()
        counts[rows] += 1
    assert np.square(counts - 80).sum() / 80 < 90  # chi-squared with 49 degrees of freedom: 1 in 4,000
    np.testing.assert_array_equal(sample_rows(50, 10), sample_rows(50, 10))
    assert sample_rows(3, 3).tolist() == [0, 1, 2]
    assert len(sample_rows(10**9, 1000)) == 1000


def test_lists_that_tie_at_the_border_are_those_with_exact_scores(tmp_path: Path) -> None:
    """All centroids three times over, and copies that differ by a last bit: Faiss' products cannot order them."""
    random = np.random.default_rng(12)
    centres_ND = random.normal(size=(8, DIMENSION)).astype(np.float32)
    near_ND = np.nextafter(centres_ND, np.float32(9))
    flat = faiss.IndexFlatIP(DIMENSION)
    flat.add(np.concatenate([centres_ND, near_ND, centres_ND]))
    index = faiss.IndexIVFFlat(flat, DIMENSION, flat.ntotal, faiss.METRIC_INNER_PRODUCT)
    write_quantiser(tmp_path / "quantiser", index)
    quantiser = Quantiser(tmp_path / "quantiser", dimension=DIMENSION)
    queries_QD = np.concatenate([random.normal(size=(30, DIMENSION)), 1e20 * centres_ND]).astype(np.float32)
    for count in (1, 2, 3, 5, 12, 24, 90):
        lists_QP, scores_QP = quantiser.nearest(queries_QD, count)
        for query_D, lists, scores in zip(queries_QD, lists_QP, scores_QP, strict=True):
            exact = [product(query_D, centre_D) for centre_D in quantiser.centroids_LE]
            expected = sorted(range(24), key=lambda number: (-exact[number], number))[:count]
            assert sorted(lists.tolist()) == sorted(expected)
            np.testing.assert_allclose(scores, np.asarray(exact, np.float32)[lists], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("copies", [1, 3, 30])
def test_close_lists_are_decided_by_exact_scores_alone(tmp_path: Path, copies: int) -> None:
    """Centroids whose scores lie within rounding of each other, fewer and more of them than are fetched beyond the border."""
    random = np.random.default_rng(13)
    centres_ND = np.repeat(random.normal(size=(600 // copies, DIMENSION)), copies, axis=0).astype(np.float32)
    centres_ND *= 1 + 2e-8 * random.normal(size=(len(centres_ND), 1)).astype(np.float32)
    centres_ND = random.permutation(np.concatenate([centres_ND, np.nextafter(centres_ND, np.float32(9))]))
    flat = faiss.IndexFlatIP(DIMENSION)
    flat.add(centres_ND)
    index = faiss.IndexIVFFlat(flat, DIMENSION, flat.ntotal, faiss.METRIC_INNER_PRODUCT)
    write_quantiser(tmp_path / "quantiser", index)
    quantiser = Quantiser(tmp_path / "quantiser", dimension=DIMENSION)
    queries_QD = random.normal(size=(64, DIMENSION)).astype(np.float32)
    exact_QL = exact_scores(queries_QD, np.broadcast_to(centres_ND, (64, *centres_ND.shape)))
    for count in (1, 2, 17, 64, flat.ntotal - 3):
        lists_QP, scores_QP = quantiser.nearest(queries_QD, count)
        expected_QP = np.lexsort((np.broadcast_to(np.arange(flat.ntotal), exact_QL.shape), -exact_QL), axis=-1)[
            :, :count
        ]
        np.testing.assert_array_equal(np.sort(lists_QP, axis=1), np.sort(expected_QP, axis=1))
        np.testing.assert_allclose(scores_QP, np.take_along_axis(exact_QL, lists_QP, axis=1), rtol=1e-4, atol=1e-4)
