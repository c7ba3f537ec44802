"""The exact index: all vectors as they are.

Axes: Q queries, F fetched, C candidates, D dimension, N rows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import CorruptError
from openbook_database.index.base import read_mapped, selector_of
from openbook_database.index.gpu import Fetched, Gpu, Moved, flat_bytes
from openbook_database.scoring import UNDERFLOW, exact_scores, float32_error, norms

_faiss: Any = faiss  # its types lack some names
_ROWS_AT = 8  # after the four letters of the kind and the dimension (i32)


def write_flat(path: Path, dimension: int, blocks: Iterable[NDArray[np.float32]]) -> None:
    """Write the index over float32 vectors that come as blocks [n, d], row after row; OSError where it cannot.

    The file is Faiss' own: the head of an empty index with the number of rows (i64) and at its end that of elements (u64)
    put in, then the vectors. So they are copied once, from a block to the file, and no index is held in memory.
    """
    head = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dimension)).tobytes())
    rows = 0
    with path.open("wb") as stream:
        stream.write(head)
        for vectors_ND in blocks:
            stream.write(np.ascontiguousarray(vectors_ND, dtype="<f4").data)
            rows += len(vectors_ND)
        struct.pack_into("<q", head, _ROWS_AT, rows)
        struct.pack_into("<Q", head, len(head) - 8, rows * dimension)
        stream.seek(0)
        stream.write(head)


class FlatReader:
    """An exact Faiss index, in memory or mapped: then its vectors stay in the file and are read page by page."""

    golden_share = 1.0

    def __init__(self, index: Any, max_norm: float) -> None:
        self._index = index
        self._moved: Moved | None = None
        self.rows, dimension = int(index.ntotal), int(index.d)
        self.max_norm = max_norm
        self.vectors_ND: NDArray[np.float32] = faiss.rev_swig_ptr(index.get_xb(), self.rows * dimension).reshape(
            self.rows, dimension
        )
        self._error, self._underflow = float32_error(dimension), dimension * UNDERFLOW

    @classmethod
    def open(cls, path: Path, *, rows: int, dimension: int, max_norm: float) -> FlatReader:
        """Raises CorruptError where the file is no index or not the one that the manifest describes."""
        index = read_mapped(path)
        if not isinstance(index, faiss.IndexFlatIP):
            raise CorruptError(f"{path}: holds {type(index).__name__}, expected an exact inner-product index")
        require_shape(path, index, rows, dimension)
        return cls(index, max_norm)

    def begin(
        self, queries_QD: NDArray[np.float32], wanted_Q: NDArray[np.int64], effort: int | None = None
    ) -> FlatCandidates:
        """All rows, for every query."""
        return FlatCandidates(self, queries_QD)

    @property
    def gpu_bytes(self) -> int:
        return flat_bytes(self.rows, self.vectors_ND.shape[1])

    def move_to(self, gpu: Gpu) -> None:
        """Have a GPU compute the rough scores; it holds a copy."""
        self._moved = gpu.move(self._index)

    def move_to_gpus(self) -> None:
        """The same with all GPUs that there are."""
        self._moved = Moved(_faiss.index_cpu_to_all_gpus(self._index))

    def margin(self, queries_QD: NDArray[np.float32]) -> NDArray[np.float64]:
        """For each query, how far a rough and an exact score of one row can lie apart at most."""
        return self._error * self.max_norm * norms(queries_QD) + self._underflow

    def fetch(
        self, queries_QD: NDArray[np.float32], count: int, excluded_N: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As `Candidates.fetch`, for all of the queries."""
        count, moved = min(count, self.rows), self._moved
        if moved is None:
            return self._scan(queries_QD, count, excluded_N)
        return moved.fetch(
            lambda wanted: moved.index.search(queries_QD, wanted),
            lambda some: self._scan(queries_QD[some], count, excluded_N),
            len(queries_QD),
            count,
            excluded_N,
            self.rows,
        )

    def _scan(self, queries_QD: NDArray[np.float32], count: int, excluded_N: NDArray[np.bool_] | None) -> Fetched:
        if excluded_N is None:
            scores_QF, rows_QF = self._index.search(queries_QD, count)
        else:
            selector, _bits = selector_of(excluded_N)
            parameters: Any = faiss.SearchParameters()
            parameters.sel = selector
            scores_QF, rows_QF = self._index.search(queries_QD, count, params=parameters)
        return scores_QF, rows_QF

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Stored vectors, of the shape of `rows` and the dimension."""
        return self.vectors_ND[rows]


class FlatCandidates:
    """All rows of an index that holds the vectors as they are."""

    def __init__(self, reader: FlatReader, queries_QD: NDArray[np.float32]) -> None:
        self._reader, self._queries_QD = reader, queries_QD
        self.dimension = queries_QD.shape[1]
        self.margin_Q = reader.margin(queries_QD)

    def fetch(
        self, members: NDArray[np.intp], count: int, excluded_N: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self._reader.fetch(self._queries_QD[members], count, excluded_N)

    def scores(self, members: NDArray[np.intp], rows_QC: NDArray[np.int64]) -> NDArray[np.float32]:
        return exact_scores(self._queries_QD[members], self._reader.vectors(rows_QC))


def require_shape(path: Path, index: Any, rows: int, dimension: int) -> None:
    """CorruptError where the index holds other vectors than the manifest says."""
    if (index.ntotal, index.d) != (rows, dimension):
        raise CorruptError(
            f"{path}: holds {index.ntotal} vectors of {index.d} elements, the manifest says {rows} of {dimension}"
        )
