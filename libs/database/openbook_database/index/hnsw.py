"""An HNSW graph over the vectors of one shard (Malkov and Yashunin 2018, arXiv:1603.09320), by Faiss.

The graph is the shard's own, so what is found may differ with the number of shards; scores are exact all the same.

Axes: Q queries, F fetched, C candidates, D dimension, N rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import CorruptError
from openbook_database.index.base import faiss_write_errors, one_thread, read_mapped, selector_of
from openbook_database.index.flat import FlatCandidates, FlatReader, require_shape
from openbook_database.index.gpu import Fetched, Gpu, Moved, graph_bytes, require_graphs, walk
from openbook_database.scoring import MISSING

_faiss: Any = faiss  # its types lack some names
DEFAULT_EF = 64
_EF_CONSTRUCTION = 100
# Of fewer rows a GPU compares all.
GPU_GRAPH_ROWS = 1 << 14
# Another graph leads to other rows; what is worse at more places of the golden answers is no graph of these rows.
_GOLDEN_SHARE = 0.8


def make_graph(dimension: int, links: int) -> Any:
    """An empty index over inner products."""
    index = faiss.IndexHNSWFlat(dimension, links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _EF_CONSTRUCTION
    return index


def write_hnsw(path: Path, dimension: int, links: int, blocks: Iterable[NDArray[np.float32]]) -> None:
    """Write the index over float32 vectors that come as blocks [n, d]; OSError where it cannot.

    On one thread: with more of them the order of insertion, and so the graph, would be another each time.
    """
    index = make_graph(dimension, links)
    with one_thread():
        for vectors_ND in blocks:
            index.add(np.ascontiguousarray(vectors_ND, dtype=np.float32))
    with faiss_write_errors():
        faiss.write_index(index, str(path))


class HNSWReader(FlatReader):
    """A graph over vectors as they are, mapped."""

    def __init__(self, index: Any, max_norm: float, effort: int = DEFAULT_EF) -> None:
        super().__init__(faiss.downcast_index(index.storage), max_norm)
        self._graph, self._links = index, int(index.hnsw.nb_neighbors(1))
        self._moved_graph: Moved | None = None
        self.effort = effort

    @classmethod
    def open(cls, path: Path, *, rows: int, dimension: int, max_norm: float, effort: int = DEFAULT_EF) -> HNSWReader:
        """Raises CorruptError where the file is no index or not the one that the manifest describes."""
        index = read_mapped(path)
        if not isinstance(index, faiss.IndexHNSWFlat):
            raise CorruptError(f"{path}: holds {type(index).__name__}, expected an HNSW graph")
        require_shape(path, index, rows, dimension)
        return cls(index, max_norm, effort)

    @property
    def gpu_bytes(self) -> int:
        """ConfigError where Faiss builds no graphs on GPUs."""
        if self.rows < GPU_GRAPH_ROWS:
            return super().gpu_bytes
        require_graphs()
        return graph_bytes(self.rows, self.vectors_ND.shape[1], self._links)

    def move_to(self, gpu: Gpu) -> None:
        """Have a GPU lead to rows: by a graph of its own over the same vectors (CAGRA, Ootomo et al. 2023, arXiv:2308.15136),
        or, of few rows, by comparing all."""
        self.golden_share = _GOLDEN_SHARE
        if self.rows < GPU_GRAPH_ROWS:
            super().move_to(gpu)
        else:
            self._moved_graph = gpu.graph(self.vectors_ND, self._links)

    def begin(
        self, queries_QD: NDArray[np.float32], wanted_Q: NDArray[np.int64], effort: int | None = None
    ) -> FlatCandidates:
        if self._moved is not None:
            return FlatCandidates(self, queries_QD)
        return HNSWCandidates(self, queries_QD, effort or self.effort)

    def walk(
        self, queries_QD: NDArray[np.float32], count: int, effort: int, excluded_N: NDArray[np.bool_] | None = None
    ) -> Fetched:
        """The `count` best that a graph leads to, -1 where it leads to no more: a function of the query alone."""
        moved = self._moved_graph
        if moved is None:
            return self._walk(queries_QD, count, effort, excluded_N)
        return moved.fetch(
            lambda wanted: walk(moved.index, queries_QD, wanted, effort, self.vectors_ND),
            lambda some: self._walk(queries_QD[some], count, effort, excluded_N),
            len(queries_QD),
            count,
            excluded_N,
            self.rows,
        )

    def _walk(
        self, queries_QD: NDArray[np.float32], count: int, effort: int, excluded_N: NDArray[np.bool_] | None
    ) -> Fetched:
        parameters = _faiss.SearchParametersHNSW()
        parameters.efSearch = max(effort, count)
        if excluded_N is not None:
            selector, _bits = selector_of(excluded_N)
            parameters.sel = selector
        scores_QF, rows_QF = self._graph.search(queries_QD, count, params=parameters)
        return scores_QF, rows_QF


class HNSWCandidates(FlatCandidates):
    """Rows that the graph leads to; all rows, for a query that wants half of them or is led to too few."""

    def __init__(self, reader: HNSWReader, queries_QD: NDArray[np.float32], effort: int) -> None:
        super().__init__(reader, queries_QD)
        self._graph, self._effort = reader, effort

    def fetch(
        self, members: NDArray[np.intp], count: int, excluded_N: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if 2 * count >= self._graph.rows:
            return super().fetch(members, count, excluded_N)
        scores_QF, rows_QF = self._graph.walk(self._queries_QD[members], count, self._effort, excluded_N)
        short = np.flatnonzero(rows_QF[:, -1] == MISSING)
        if len(short):
            scores_QF[short], rows_QF[short] = super().fetch(members[short], count, excluded_N)
        return scores_QF, rows_QF
