"""Snapshots on a GPU answer as they do without, on a stand-in that refuses what Faiss' GPU indexes cannot do, and on the
first real GPU where this Faiss has one."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from openbook_core.errors import ConfigError, OpenbookError, Reason
from openbook_database.gpu_size import gpu_bytes_of
from openbook_database.index import gpu as gpu_module
from openbook_database.index import hnsw, ivf
from openbook_database.index.gpu import Gpu, Moved, list_bytes
from openbook_database.scoring import exact_scores
from openbook_database.snapshot import Snapshot
from openbook_database.testing import build_tiny_snapshot, tiny_rows
from openbook_retriever.config import RetrieverConfig
from openbook_retriever.placement import Placement, device_number

sys.path.insert(0, str(Path(__file__).parent))
from fake_gpus import FakeDevices, install

DIMENSION = 16
RECIPES = ["Flat", "IVF8,Flat", "IVF16,SQ8", "IVF8,PQ4", "OPQ4_8,IVF8,PQ4", "IVF24_HNSW4,SQ8"]
NO_GPU = not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus()
NEEDS_GPU = pytest.mark.skipif(NO_GPU, reason="there is no GPU here that Faiss could use")
Build = Callable[[str], Path]


def build_here(path: Path, **options: Any) -> Path:
    """A snapshot that the processor builds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss, "get_num_gpus", lambda: 0)
        return build_tiny_snapshot(path, **options).path


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Snapshots by recipe: more rows than a GPU gives of one query, many of them equal, one document of more than half of all."""
    root, built = tmp_path_factory.mktemp("gpu"), dict[str, Path]()
    rows = tiny_rows(160, seed=4, words=40)
    for number in range(80, 160):
        rows[number]["text"] = rows[number % 40]["text"]
    rows[7]["text"] = " ".join(f"long{number % 1900}" for number in range(3500))

    def make(recipe: str) -> Path:
        if recipe not in built:
            built[recipe] = root / str(len(built))
            build_here(built[recipe], rows=rows, dimension=DIMENSION, index=recipe)
        return built[recipe]

    return make


@pytest.fixture(params=["fake", pytest.param("real", marks=NEEDS_GPU)])
def devices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeDevices | None:
    """None: the real ones."""
    return install(monkeypatch) if request.param == "fake" else None


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDevices:
    return install(monkeypatch)


def move(path: Path, passed: Callable[[int], None] = lambda queries: None, **options: Any) -> Snapshot:
    opened = Snapshot.open(path, "sizes")
    opened.move_to(Gpu(0, passed=passed, **options))
    return opened


def some_queries(opened: Snapshot, random: np.random.Generator) -> NDArray[np.float32]:
    queries_QD = random.normal(size=(6, DIMENSION)).astype(np.float32)
    queries_QD[:3] = opened.shards[0].vectors(random.integers(0, opened.manifest.chunks, 3))
    queries_QD[4] = 0
    queries_QD[5] *= 1e-42
    return queries_QD


@pytest.mark.parametrize("recipe", RECIPES)
def test_answers_are_those_of_the_processor(build: Build, devices: FakeDevices | None, recipe: str) -> None:
    plain, moved = Snapshot.open(build(recipe), "sizes"), move(build(recipe))
    assert plain.manifest.chunks > 2300
    documents = plain.manifest.documents
    random = np.random.default_rng(1)
    for k, left_out, share, min_score in (
        (1, 0, 1.0, None),
        (7, 3, 1.0, None),
        (40, 60, 1.0, 0.1),
        (1000, 0, 1.0, None),
        (2300, 2, 1.0, None),
        (7, 0, 0.7, None),
        (7, 3, 0.2, None),
        (100, 0, 0.05, None),
        (7, 120, 0.5, None),
        (7, 0, 0.0, None),
    ):
        queries_QD = some_queries(plain, random)
        exclude = [set(random.choice(documents, left_out, replace=False).tolist()) for _ in queries_QD]
        exclude[0] |= {plain.documents.number("doc/0433-7") or 0} if left_out else set()
        mask_N = random.random(documents) < share
        allowed = None if share == 1 else [mask_N, None, mask_N, None, mask_N, mask_N]
        expected = plain.search(queries_QD, k, exclude if left_out else None, min_score, allowed)
        found = moved.search(queries_QD, k, exclude if left_out else None, min_score, allowed)
        np.testing.assert_array_equal(found.ids_QK, expected.ids_QK)
        np.testing.assert_array_equal(found.scores_QK, expected.scores_QK)
    if devices is not None:
        assert devices.searched > 20


@pytest.mark.parametrize("recipe", ["Flat", "IVF16,SQ8"])
def test_what_is_passed_over_is_dropped_and_only_what_is_short_is_the_processor_s(
    build: Build, devices: FakeDevices | None, recipe: str
) -> None:
    passed: list[int] = []
    opened = move(build(recipe), passed.append)
    passed.clear()  # the golden queries
    queries_QD = np.random.default_rng(2).normal(size=(4, DIMENSION)).astype(np.float32)
    documents = opened.manifest.documents
    long = int(opened.documents.rows.argmax())
    half_N = np.arange(documents) % 2 == long % 2
    opened.search(queries_QD, 5, [set(range(3)) - {long}] * 4)
    opened.search(queries_QD, 5, None, None, [half_N] * 4)
    assert sum(passed) == 0
    few_N = np.arange(documents) < 2
    opened.search(queries_QD, 5, None, None, [few_N] * 4)
    assert sum(passed) > 0
    passed.clear()
    opened.search(queries_QD, 2100)
    assert sum(passed) >= 4


def test_more_lists_than_a_gpu_takes_are_the_processor_s(
    build: Build, fake: FakeDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fake_gpus.MOST", 9)
    monkeypatch.setattr(ivf, "MAX_PROBES", 9)
    monkeypatch.setattr(gpu_module, "MAX_K", 9)
    path = build("IVF16,SQ8")
    plain, opened = Snapshot.open(path, "sizes"), Snapshot.open(path, "sizes")
    opened.shards[0].move_to(Gpu(0))
    queries_QD = some_queries(plain, np.random.default_rng(3))
    for k in (1, 2, 50):
        many = [set(range(150))] * len(queries_QD)
        for exclude in (None, many):
            found, expected = (each.search(queries_QD, k, exclude) for each in (opened, plain))
            np.testing.assert_array_equal(found.ids_QK, expected.ids_QK)
            np.testing.assert_array_equal(found.scores_QK, expected.scores_QK)


def test_rows_that_a_selection_leaves_few_of_are_found_all_the_same() -> None:
    """The best rows are the excluded ones, so that a random choice is no guide."""
    scores_N = np.arange(5000, 0, -1, dtype=np.float32)

    def scan(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return np.tile(scores_N[:count], (2, 1)), np.tile(np.arange(count), (2, 1))

    asked: list[list[int]] = []

    def processor(some: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        asked.append(some.tolist())
        return np.full((len(some), 3), 7, np.float32), np.full((len(some), 3), 7)

    excluded_N = np.arange(5000) < 2500
    rough_QF, rows_QF = Moved(None).fetch(scan, processor, 2, 3, excluded_N, 5000)
    assert asked == [[0, 1]] and (rows_QF == 7).all() and (rough_QF == 7).all()
    excluded_N = np.arange(5000) % 2 == 0
    _, rows_QF = Moved(None).fetch(scan, processor, 2, 3, excluded_N, 5000)
    assert asked == [[0, 1]] and rows_QF.tolist() == [[1, 3, 5]] * 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_memory_is_asked_for_before_and_given_back_after(build: Build, fake: FakeDevices, recipe: str) -> None:
    opened = move(build(recipe))
    taken = fake.used[0]
    assert taken <= opened.shards[0].gpu_bytes + (256 << 20)
    del opened
    gc.collect()
    assert fake.used == {0: 0}
    fake.total = 300 << 20
    opened = Snapshot.open(build(recipe), "sizes")
    with pytest.raises(OpenbookError, match=r"takes .* on cuda:0 \(.* for its index, .* are free") as caught:
        opened.move_to(Gpu(0))
    assert caught.value.reason is Reason.OUT_OF_MEMORY
    assert fake.used == {0: 0}


def test_lists_are_counted_in_blocks_and_grains() -> None:
    assert list_bytes(np.asarray([0, 0]), 10, blocks=32) == 2 * 64
    assert list_bytes(np.asarray([0, 33]), 16, blocks=32) == 1024 + 512 + 2 * 64
    assert list_bytes(np.asarray([65]), 4, blocks=1) == 512 + 1024 + 64


@pytest.mark.parametrize(
    ("recipe", "dimension", "named"),
    [("IVF4,RaBitQ", 16, "RaBitQ"), ("IVF4,PQ5", 15, "product codes of 5 bytes")],
)
def test_what_no_gpu_holds_is_refused_before_anything_is_moved(
    fake: FakeDevices, tmp_path: Path, recipe: str, dimension: int, named: str
) -> None:
    build_here(tmp_path / "s", documents=60, index=recipe, dimension=dimension)
    with pytest.raises(ConfigError, match=f"{named}.*build one of these, or use cpu") as caught:
        move(tmp_path / "s")
    assert caught.value.field == "device"
    assert not fake.moved


def test_long_codes_are_looked_up_in_tables_of_float16_and_answered_exactly(
    devices: FakeDevices | None, tmp_path: Path
) -> None:
    path = build_here(tmp_path / "s", documents=60, index="IVF2,PQ64", dimension=128)
    plain, moved = Snapshot.open(path, "sizes"), move(path)
    lengths_Q1 = np.asarray([1e-40, 1e-6, 1, 30, 1e17], dtype=np.float32)[:, None]
    queries_QD = (plain.shards[0].vectors(np.arange(5)) + np.float32(0.01)) * lengths_Q1
    for k in (1, 9, 200):
        found, expected = (each.search(queries_QD, k) for each in (moved, plain))
        np.testing.assert_array_equal(found.ids_QK, expected.ids_QK)
        np.testing.assert_array_equal(found.scores_QK, expected.scores_QK)


def test_a_gpu_that_computes_something_else_serves_nothing(build: Build, fake: FakeDevices) -> None:
    fake.skewed = True
    with pytest.raises(OpenbookError, match="cuda:0 does not compute what it should: .*golden queries") as caught:
        move(build("Flat"))
    assert caught.value.reason is Reason.INTERNAL


def test_a_search_that_fails_on_the_gpu_is_an_error(build: Build, fake: FakeDevices) -> None:
    opened = move(build("IVF16,SQ8"))
    fake.broken = "CUDA error 719"
    with pytest.raises(RuntimeError, match="719"):
        opened.search(some_queries(opened, np.random.default_rng(5)), 4)


# --- a graph ---


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch, build: Build) -> Path:
    """An HNSW of more rows than a GPU compares one by one."""
    monkeypatch.setattr(hnsw, "GPU_GRAPH_ROWS", 1000)
    return build("HNSW32")


def test_a_gpu_makes_a_graph_of_its_own_whose_scores_are_exact(graph: Path, fake: FakeDevices) -> None:
    plain, moved = Snapshot.open(graph, "sizes"), move(graph)
    vectors_ND = plain.shards[0].vectors(np.arange(plain.manifest.chunks))
    random, documents = np.random.default_rng(1), plain.manifest.documents
    half_N = random.random(documents) < 0.5
    for k, exclude, allowed in (
        (1, None, None),
        (10, None, None),
        (10, [{int(number) for number in random.choice(documents, 5)}] * 6, None),
        (10, None, [half_N] * 6),
        (600, None, None),
        (10, None, [np.zeros(documents, np.bool_)] * 6),
    ):
        queries_QD = some_queries(plain, random)
        found = moved.search(queries_QD, k, exclude, None, allowed)
        held_QK = found.ids_QK != -1
        rows_QK = np.maximum(found.ids_QK, 0)
        exact_QK = np.where(held_QK, exact_scores(queries_QD, vectors_ND[rows_QK]), 0)
        np.testing.assert_array_equal(found.scores_QK, exact_QK)
        left = documents if allowed is None else int(allowed[0].sum())
        assert held_QK.all() or not left
        assert all(len(set(row[held].tolist())) == held.sum() for row, held in zip(found.ids_QK, held_QK, strict=True))
        documents_QK = plain.shards[0].document_numbers(rows_QK.reshape(-1)).reshape(rows_QK.shape)
        for query in range(len(queries_QD)):
            of_hits = set(documents_QK[query, held_QK[query]].tolist())
            assert exclude is None or not of_hits & exclude[query]
            assert allowed is None or half_N[list(of_hits)].all()
        best_QK = plain.search(queries_QD, k, exclude, None, allowed).scores_QK
        assert (found.scores_QK >= best_QK).mean() > 0.5
    assert fake.searched >= 5


def test_a_graph_answers_each_query_as_if_it_were_alone(graph: Path, fake: FakeDevices) -> None:
    moved = move(graph)
    queries_QD = np.random.default_rng(2).normal(size=(9, DIMENSION)).astype(np.float32)
    together = moved.search(queries_QD, 5)
    for number, query_D in enumerate(queries_QD):
        alone = moved.search(query_D[None], 5)
        np.testing.assert_array_equal(alone.ids_QK[0], together.ids_QK[number])


def test_a_graph_that_leads_elsewhere_serves_nothing(graph: Path, fake: FakeDevices) -> None:
    fake.skewed = True
    with pytest.raises(OpenbookError, match="cuda:0 does not compute what it should: .*golden queries"):
        move(graph)


def test_a_graph_of_few_rows_is_compared_row_by_row(build: Build, fake: FakeDevices) -> None:
    path = build("HNSW32")
    moved, exact = move(path), Snapshot.open(build("Flat"), "sizes")
    queries_QD = some_queries(exact, np.random.default_rng(3))
    np.testing.assert_array_equal(moved.search(queries_QD, 7).scores_QK, exact.search(queries_QD, 7).scores_QK)


def test_a_faiss_without_graphs_says_what_to_install(
    graph: Path, fake: FakeDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(faiss, "GpuIndexCagra")
    with pytest.raises(ConfigError, match="install one with cuVS"):
        move(graph)


# --- a plan ---


@pytest.mark.parametrize("recipe", [*RECIPES, "HNSW32"])
def test_what_a_plan_counts_is_what_a_load_asks_for(build: Build, fake: FakeDevices, recipe: str) -> None:
    opened = Snapshot.open(build(recipe), "sizes")
    assert gpu_bytes_of(opened.path, opened.manifest, (0,)) == opened.shards[0].gpu_bytes


# --- the shard process's side ---


def config(**options: Any) -> RetrieverConfig:
    return RetrieverConfig.parse({"role": "shard", "registry": "unused", **options})


def test_devices_are_named_by_number() -> None:
    assert [device_number(name) for name in ("cpu", "cuda", "cuda:0", "cuda:3")] == [None, 0, 0, 3]
    for wrong in ("gpu", "cuda:", "cuda:-1", "cuda:1x", "CUDA"):
        with pytest.raises(ConfigError, match="device"):
            config(device=wrong)


@pytest.mark.skipif(not NO_GPU, reason="this Faiss has a GPU")
def test_a_device_that_is_not_there_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="this Faiss was built without GPUs: install faiss-gpu"):
        Placement(config(device="cuda:1"))


def test_a_number_that_there_is_not_is_refused_at_once(fake: FakeDevices) -> None:
    Placement(config(device="cuda:1"))
    with pytest.raises(ConfigError, match="this Faiss finds 2 GPUs"):
        Placement(config(device="cuda:2"))
