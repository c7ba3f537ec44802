"""How the latency of one query and the memory of an index grow with its rows: IVF,PQ over clusters that are known.

Lists grow as the square root of the rows and the probed ones are a fixed number, so the rows that a query is compared
with, and what its lists cost to find, grow as the square root too: power 0.5. Memory grows with power 1.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np

from openbook_database.index.files import write_list_sizes
from openbook_database.index.ivf import IVFReader, list_reach
from openbook_database.index.lists import write_lists, write_places
from openbook_database.index.quantiser import Quantiser, write_quantiser
from openbook_database.search import search_rows

NPROBE = 32
_QUERIES, _ROUNDS, _BLOCK, _TRAINED = 200, 3, 1 << 16, 20_000
_LISTS_PER_ROOT = 4


def growth(sizes: Sequence[int], dimension: int, folder: Path, seed: int) -> list[dict[str, Any]]:
    """For each number of rows: lists, median milliseconds of a query alone, bytes of the index."""
    return [_measure(rows, dimension, folder / str(rows), seed) for rows in sizes]


def _measure(rows: int, dimension: int, folder: Path, seed: int) -> dict[str, Any]:
    shard = folder / "shard"
    shard.mkdir(parents=True)
    lists = int(_LISTS_PER_ROOT * rows**0.5)
    random = np.random.default_rng(seed)
    centres = random.normal(size=(lists, dimension)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)

    def block(count: int) -> tuple[Any, Any]:
        of = random.integers(0, lists, count)
        noise = random.normal(size=(count, dimension)).astype(np.float32) * (0.7 / dimension**0.5)
        return centres[of] + noise, of

    coarse = faiss.IndexFlatIP(dimension)
    coarse.add(centres)
    index: Any = faiss.IndexIVFPQ(coarse, dimension, lists, dimension // 8, 8, faiss.METRIC_INNER_PRODUCT)
    sample, of = block(_TRAINED)
    index.pq.train(sample - centres[of])
    index.is_trained = True
    write_quantiser(folder / "quantiser.faiss", index)
    queries = sample[:_QUERIES] + random.normal(size=(_QUERIES, dimension)).astype(np.float32) * (0.4 / dimension**0.5)
    lists_N, codes_NB = np.empty(rows, np.int64), np.empty((rows, index.code_size), np.uint8)
    for start in range(0, rows, _BLOCK):
        part, of = block(min(_BLOCK, rows - start))
        lists_N[start : start + len(part)] = of
        arrays = part, lists_N[start : start + len(part)], codes_NB[start : start + len(part)]
        index.encode_vectors(len(part), *map(faiss.swig_ptr, arrays))
    write_lists(shard / "lists.faiss", lists_N, codes_NB, lists)
    del index, lists_N, codes_NB
    write_places(shard / "places.bin", shard / "lists.faiss")
    write_list_sizes(folder / "list_sizes.bin", [shard])
    reach = list_reach(shard / "lists.faiss", Quantiser(folder / "quantiser.faiss", dimension=dimension), 2.0)
    reader = IVFReader.open(shard, folder, rows=rows, dimension=dimension, max_norm=2.0, reach=reach, nprobe=NPROBE)
    wanted = np.asarray([2])
    latencies = []
    for _ in range(_ROUNDS):
        for place in range(_QUERIES):
            begun = time.perf_counter()
            search_rows(reader, queries[place : place + 1], 2, wanted_Q=wanted)
            latencies.append(1e3 * (time.perf_counter() - begun))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"rows": rows, "lists": lists, "p50_ms": median(latencies), "bytes": size}
