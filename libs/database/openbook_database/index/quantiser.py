"""What all shards of a snapshot share: rotation, lists' centroids and codebooks. Trained once, then mapped.

Axes: N rows, Q queries, D dimension, E dimension of the index, P probed lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import CorruptError
from openbook_database.index.base import faiss_write_errors, one_thread, read_mapped
from openbook_database.index.codec import BitCodec, codec_of
from openbook_database.index.flat import FlatReader
from openbook_database.index.gpu import Gpu
from openbook_database.index.hnsw import HNSWReader
from openbook_database.index.recipe import LIST_ITERATIONS, Recipe
from openbook_database.index.rotation import Rotation
from openbook_database.scoring import MISSING, exact_scores, norms
from openbook_database.search import search_rows

_LEAST_EF = 64
_EF_PER_PROBE = 2
# Lists fetched beyond those that are probed: within rounding of the last one lies seldom more than one other.
_SLACK = 8
_STEP = 1 << 16
_BLOCK = 1 << 13


def train_quantiser(
    recipe: Recipe,
    sample_ND: NDArray[np.float32],
    *,
    gpu: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> Any:
    """A trained Faiss index without rows. On one thread, or on the GPUs for the lists: either way the same bytes on the
    same machine with the same device.

    The bytes are those of Faiss' own `train`; the rotation, each iteration for the lists, and the codes are called one by one,
    and `progress` is told the share of the operations that is done, 0 to 1.
    """
    dimension = sample_ND.shape[1]
    index: Any = faiss.index_factory(dimension, recipe.factory, faiss.METRIC_INNER_PRODUCT)
    lists = _lists_of(index)
    # The sample was drawn at its size on purpose: all of it is used, and its size needs no warning.
    lists.cp.min_points_per_centroid, lists.cp.max_points_per_centroid = 1, len(sample_ND)
    kept = []
    if recipe.codec == "PQ":
        lists.pq.cp.min_points_per_centroid = 1
        lists.do_polysemous_training = (
            False  # only numbers the codewords anew, for a search that we do not use, at length
        )
    if recipe.opq:
        parts = faiss.ProductQuantizer(recipe.inner_dimension(dimension), recipe.opq, 8)
        parts.cp.min_points_per_centroid = 1
        rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.pq = parts
        kept.append(parts)
    assigner: faiss.Index = faiss.IndexFlatIP(lists.d)
    if gpu:
        assigner = faiss.index_cpu_to_all_gpus(assigner)
    rotation_work, list_work, code_work = recipe.training_work(dimension, len(sample_ND))
    total = rotation_work + LIST_ITERATIONS * list_work + code_work
    sample_NE = np.ascontiguousarray(sample_ND, dtype=np.float32)
    with one_thread():
        if recipe.opq:
            rotation.train(sample_NE)
            rotation.pq = None
            sample_NE = rotation.apply(sample_NE)
            progress(rotation_work / total)
        for number in _iterations(lists, assigner, sample_NE):
            progress((rotation_work + number * list_work) / total)
        if recipe.codec == "SQ8":
            _train_ranges(lists, sample_NE)
        else:
            lists.train(sample_NE)  # finds its lists trained
    index.is_trained = True
    progress(1.0)
    return index


def _iterations(lists: Any, assigner: Any, sample_NE: NDArray[np.float32]) -> Iterator[int]:
    """Train the centroids of an IVF index; yields the number of the iteration that is done."""
    parameters = lists.cp
    wanted, parameters.niter = parameters.niter, 1
    clustering = faiss.Clustering(lists.d, lists.nlist, parameters)
    parameters.niter = wanted
    assert wanted == LIST_ITERATIONS
    for number in range(1, wanted + 1):
        clustering.train(sample_NE, assigner)  # from the centroids that it has
        yield number
    lists.quantizer.reset()
    lists.quantizer.add(faiss.vector_to_array(clustering.centroids).reshape(lists.nlist, lists.d))
    lists.quantizer.is_trained = True


def _train_ranges(lists: Any, sample_NE: NDArray[np.float32]) -> None:
    """Least value and range of each element of the residuals: what Faiss computes, without its copies of the sample, of which
    it takes 100,000 rows at most."""
    centroids_LE = lists.quantizer.reconstruct_n(0, lists.nlist)
    least_E, most_E = np.full(lists.d, np.inf, np.float32), np.full(lists.d, -np.inf, np.float32)
    for first in range(0, len(sample_NE), _BLOCK):
        rows_NE = sample_NE[first : first + _BLOCK]
        residual_NE = rows_NE - centroids_LE[lists.quantizer.search(rows_NE, 1)[1][:, 0]]
        least_E = np.minimum(least_E, residual_NE.min(axis=0))
        most_E = np.maximum(most_E, residual_NE.max(axis=0))
    faiss.copy_array_to_vector(np.concatenate([least_E, most_E - least_E]), lists.sq.trained)
    lists.is_trained = True


def write_quantiser(path: Path, index: Any) -> None:
    """Write a trained index; OSError where it cannot."""
    with faiss_write_errors():
        faiss.write_index(index, str(path))


class Quantiser:
    """The trained part of an IVF index, mapped. `lists`: the empty Faiss index; `codec`: what its codes stand for."""

    def __init__(self, path: Path, *, dimension: int) -> None:
        """Raises CorruptError where the file is no quantiser of vectors of `dimension` elements."""
        self.path = path
        index = read_mapped(path)
        if index.d != dimension or index.ntotal or not index.is_trained:
            raise CorruptError(
                f"{path}: holds {index.ntotal} vectors of {index.d} elements, expected a trained quantiser of {dimension}"
            )
        self._kept = index
        self.lists = _lists_of(index)
        self.rotation: Rotation | None = None
        self._matrix_ED: NDArray[np.float32] | None = None
        if self.lists is not index:
            transform: Any = faiss.downcast_VectorTransform(index.chain.at(0))
            self._matrix_ED = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
            self.rotation = Rotation(self._matrix_ED)
        self.dimension: int = self.lists.d
        self.nlist: int = self.lists.nlist
        self.codec = codec_of(self.lists)
        coarse: Any = faiss.downcast_index(self.lists.quantizer)
        graph = isinstance(coarse, faiss.IndexHNSWFlat)
        self._flat = FlatReader(faiss.downcast_index(coarse.storage) if graph else coarse, 0.0)
        self.centroids_LE = self._flat.vectors_ND
        largest = (norms(self.centroids_LE[start : start + _STEP]).max() for start in range(0, self.nlist, _STEP))
        self.max_norm = self._flat.max_norm = float(max(largest)) * (1 + 1e-6)
        self._graph = HNSWReader(coarse, self.max_norm) if graph else None

    def require(self, recipe: Recipe) -> None:
        """Raises CorruptError where this is the quantiser of another recipe."""
        expected = faiss.index_factory(self._kept.d, recipe.factory, faiss.METRIC_INNER_PRODUCT)
        mine, other = (_describe(index) for index in (self._kept, expected))
        if mine != other:
            raise CorruptError(
                f"{self.path}: is a quantiser of another recipe than {recipe.factory}: {mine}, expected {other}"
            )

    def move_to_gpus(self) -> None:
        """Have all GPUs find the lists of rows: the same ones, as near calls are decided by exact scores."""
        self._flat.move_to_gpus()

    def move_to(self, gpu: Gpu) -> None:
        """The same with one GPU, where no graph finds them."""
        if self._graph is None:
            self._flat.move_to(gpu)

    def rotate(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors [n, e] as the lists see them."""
        return vectors_ND if self.rotation is None else self.rotation(vectors_ND)

    def rotate_back(self, vectors_NE: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors [n, d] of those that the lists see."""
        return vectors_NE if self._matrix_ED is None else Rotation(self._matrix_ED.T.copy())(vectors_NE)

    def assign(self, rows_NE: NDArray[np.float32]) -> NDArray[np.int64]:
        """The list [n] of each rotated row: a function of the row alone, whatever block it comes in.

        Faiss' products in blocks settle all rows whose best list leads by more than their rounding; the others are
        decided by exact scores.
        """
        if self._graph is not None:
            return self.nearest(rows_NE, 1)[0][:, 0]
        scores_N2, lists_N2 = self._flat.fetch(rows_NE, 2)
        if self.nlist == 1:
            return lists_N2[:, 0]
        lead_N = scores_N2[:, 0].astype(np.float64) - scores_N2[:, 1]
        open_ones = np.flatnonzero(~(lead_N > 2 * self._flat.margin(rows_NE)))
        lists_N = lists_N2[:, 0].copy()
        if len(open_ones):
            lists_N[open_ones] = search_rows(self._flat, rows_NE[open_ones], 1).ids_QK[:, 0]
        return lists_N

    def nearest(self, queries_QE: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `count` nearest lists [q, p] of rotated queries: exactly these, or those that the graph leads to.

        Their order and their scores may be off by `FlatReader.margin`; for RaBitQ they are exact.
        """
        count = min(count, self.nlist)
        if self._graph is None or 2 * count >= self.nlist:
            return self._nearest_of_all(queries_QE, count)
        scores_QP, lists_QP = self._graph.walk(queries_QE, count, max(_LEAST_EF, _EF_PER_PROBE * count))
        short = np.flatnonzero(lists_QP[:, -1] == MISSING)
        if len(short):
            lists_QP[short], scores_QP[short] = self._nearest_of_all(queries_QE[short], count)
        return lists_QP, scores_QP

    def _nearest_of_all(
        self, queries_QE: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Faiss' products settle the set where the last list leads the next by more than their rounding. Of the others the
        lists within rounding of the last are decided by exact scores; where these are many, or go on beyond what was
        fetched, all are."""
        if isinstance(self.codec, BitCodec):
            hits = search_rows(self._flat, queries_QE, count)
            return hits.ids_QK, hits.scores_QK
        fetched_QF, lists_QF = self._flat.fetch(queries_QE, count + _SLACK)
        scores_QP, lists_QP = fetched_QF[:, :count], lists_QF[:, :count]
        if count == self.nlist:
            return lists_QP, scores_QP
        rounding_Q = 2 * self._flat.margin(queries_QE)
        lead_Q = scores_QP[:, -1].astype(np.float64) - fetched_QF[:, count]
        some = np.flatnonzero(~(np.isfinite(lead_Q) & (lead_Q > rounding_Q)))
        if not len(some):
            return lists_QP, scores_QP
        over_QF = fetched_QF[some].astype(np.float64) - fetched_QF[some, count - 1, None]
        open_QF = ~(np.abs(over_QF) > rounding_Q[some, None])
        whole_Q = np.isfinite(over_QF).all(axis=1) & (open_QF.sum(axis=1) <= 2 * _SLACK)
        whole_Q &= (lists_QF.shape[1] == self.nlist) | ~open_QF[:, -1]
        near, rest = some[whole_Q], some[~whole_Q]
        if len(near):
            lists_QP[near], scores_QP[near] = self._decide(
                queries_QE[near], lists_QF[near], fetched_QF[near], over_QF[whole_Q], open_QF[whole_Q], count
            )
        if len(rest):
            hits = search_rows(self._flat, queries_QE[rest], count)
            lists_QP[rest], scores_QP[rest] = hits.ids_QK, hits.scores_QK
        return lists_QP, scores_QP

    def _decide(
        self,
        queries_QE: NDArray[np.float32],
        lists_QF: NDArray[np.int64],
        scores_QF: NDArray[np.float32],
        over_QF: NDArray[np.float64],
        open_QF: NDArray[np.bool_],
        count: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """`count` lists of each query: those that lie above the `open_QF`, and of these the best by exact score, then number."""
        columns = np.flatnonzero(open_QF.any(axis=0))
        span = slice(int(columns[0]), int(columns[-1]) + 1)
        exact_QC = exact_scores(queries_QE, self._flat.vectors(lists_QF[:, span])).astype(np.float64)
        exact_QC[~open_QF[:, span] & (over_QF[:, span] > 0)] = np.inf
        exact_QC[~open_QF[:, span] & (over_QF[:, span] < 0)] = -np.inf
        order_QC = np.lexsort((lists_QF[:, span], -exact_QC), axis=-1)[:, : count - span.start] + span.start
        places_QP = np.concatenate(
            [np.broadcast_to(np.arange(span.start), (len(queries_QE), span.start)), order_QC], axis=1
        )
        return np.take_along_axis(lists_QF, places_QP, axis=1), np.take_along_axis(scores_QF, places_QP, axis=1)


def _describe(index: Any) -> tuple[Any, ...]:
    lists = _lists_of(index)
    graph = isinstance(faiss.downcast_index(lists.quantizer), faiss.IndexHNSWFlat)
    return (
        type(index).__name__,
        type(lists).__name__,
        "HNSW" if graph else "Flat",
        lists.d,
        lists.nlist,
        lists.code_size,
    )


def _lists_of(index: Any) -> Any:
    """The IVF index inside of a Faiss index."""
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    if not isinstance(inner, faiss.IndexIVF):
        raise CorruptError(f"a quantiser of type {type(inner).__name__} is not known")
    return inner
