"""What `openbook db plan` extrapolates from: rates of Faiss' parts on this machine, and what codes lose."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from database_child import add_in_turns
from numpy.typing import NDArray

from openbook_database.index.files import QUANTISER
from openbook_database.index.quantiser import train_quantiser, write_quantiser
from openbook_database.index.recipe import parse_recipe

K = 10
_TRAINED_ON = 32  # rows for each list


def measure_parts(dimension: int, lists: int, rows: int, seed: int) -> dict[str, Any]:
    """Rates on random unit vectors: assignment to `lists` centroids on one thread and on all, through a graph, PQ codes.

    `flops` are 2 lists d for each row. The graph has 32 links and walks with efSearch 64, as a coarse quantiser of builds.
    """
    random = np.random.default_rng(seed)
    centroids_LD, rows_ND = (_units(random, count, dimension) for count in (lists, rows))
    flat = faiss.IndexFlatIP(dimension)
    flat.add(centroids_LD)
    threads = faiss.omp_get_max_threads()
    flops = 2.0 * lists * dimension * rows
    every_s = _seconds(lambda: flat.search(rows_ND, 1))
    graph = faiss.IndexHNSWFlat(dimension, 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efSearch = 64
    graph.add(centroids_LD)
    graph_s = _seconds(lambda: graph.search(rows_ND, 1))
    codes = _quiet(faiss.ProductQuantizer(128, 64, 8))
    codes.train(rows_ND[:, :128].copy())
    codes_s = _seconds(lambda: codes.compute_codes(rows_ND[:, :128].copy()))
    try:
        faiss.omp_set_num_threads(1)
        single_s = _seconds(lambda: flat.search(rows_ND, 1))
    finally:
        faiss.omp_set_num_threads(threads)
    return {
        "dimension": dimension,
        "lists": lists,
        "rows": rows,
        "threads": threads,
        "assign_flops": flops / every_s,
        "assign_flops_one_thread": flops / single_s,
        "graph_assign_per_s": rows / graph_s,
        "codes_per_s": rows / codes_s,
    }


def measure_adding(
    vectors_ND: NDArray[np.float32], lists: int, rounds: int, work: Path
) -> dict[str, dict[str, list[float]]]:
    """Seconds of `database_child.add_in_turns` for each kind of index."""
    found = {}
    for factory in ("Flat", f"IVF{lists},Flat", f"IVF{lists},SQ8", f"IVF{lists},RaBitQ"):
        trained = work / factory
        trained.mkdir()
        recipe = parse_recipe(factory)
        if recipe.trained:
            step = max(1, len(vectors_ND) // (_TRAINED_ON * lists))
            write_quantiser(trained / QUANTISER, train_quantiser(recipe, vectors_ND[::step]))
        found[factory] = add_in_turns(factory, trained, vectors_ND, rounds)
    return found


def measure_codecs(vectors_ND: NDArray[np.float32], queries: int) -> dict[str, float]:
    """Recall@10 that is left when every row is compared, by its code: what no nprobe can pass. Some vectors are queries."""
    queries_QD, rows_ND = vectors_ND[-queries:], vectors_ND[:-queries]
    exact = faiss.IndexFlatIP(rows_ND.shape[1])
    exact.add(rows_ND)
    expected_QK = exact.search(queries_QD, K)[1]
    left, rotated = {}, min(128, rows_ND.shape[1])
    products = [f"OPQ{parts}_{rotated},PQ{parts}np" for parts in (64, 32) if rotated % parts == 0]
    for codec in ("SQ8", "RaBitQ", *products):
        index = faiss.index_factory(rows_ND.shape[1], codec, faiss.METRIC_INNER_PRODUCT)
        _train(index, rows_ND)
        index.add(rows_ND)
        found_QK = index.search(queries_QD, K)[1]
        pairs = zip(found_QK.tolist(), expected_QK.tolist(), strict=True)
        left[codec.removesuffix("np")] = float(
            np.mean([len(set(found) & set(expected)) / K for found, expected in pairs])
        )
    return left


def _train(index: Any, rows_ND: NDArray[np.float32]) -> None:
    """Train, with no warning for each of thousands of clusterings that quick runs give it few points."""
    if isinstance(index, faiss.IndexPreTransform):
        codes = faiss.downcast_index(index.index)
        rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
        parts = _quiet(faiss.ProductQuantizer(codes.d, codes.pq.M, 8))
        _quiet(codes.pq)
        rotation.pq = parts
        index.train(rows_ND)
        rotation.pq = None
        return
    index.train(rows_ND)


def _quiet(quantiser: Any) -> Any:
    quantiser.cp.min_points_per_centroid = 1
    return quantiser


def _units(random: np.random.Generator, count: int, dimension: int) -> NDArray[np.float32]:
    rows_ND = random.standard_normal((count, dimension), dtype=np.float32)
    return np.asarray(rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True), dtype=np.float32)


def _seconds(call: Any) -> float:
    """The best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
