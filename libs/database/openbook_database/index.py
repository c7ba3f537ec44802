"""The index of one shard: what is built, and what is read. Recipes other than "Flat" come here.

Axes: Q queries, F fetched, D dimension, N rows.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ArgumentError, CorruptError
from openbook_database.manifest import IndexEntry
from openbook_database.scoring import float32_error

FLAT = "Flat"


def check_recipe(factory: str) -> str:
    """`factory` where it can be built; else ArgumentError."""
    if factory != FLAT:
        raise ArgumentError(f"index recipe {factory!r} is not known; known: {FLAT!r} (exact)", field="index")
    return factory


def exact_entry() -> IndexEntry:
    """What the manifest says of an exact index: nothing is trained, recall is 1 by definition."""
    return IndexEntry(factory=FLAT, exact=True, trained_on=0, search={}, recall={"by_definition": 1.0})


def write_index(path: Path, dimension: int, blocks: Iterable[NDArray[np.float32]]) -> None:
    """Write the index over float32 vectors that come as blocks [n, d], row after row; OSError where it cannot."""
    index = faiss.IndexFlatIP(dimension)
    for vectors_ND in blocks:
        index.add(np.ascontiguousarray(vectors_ND, dtype=np.float32))
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        # Faiss tells the system's reason in words only.
        reasons = (code for code in errno.errorcode if f"({os.strerror(code)})" in str(error))
        raise OSError(next(reasons, errno.EIO), str(error)) from error


class IndexReader:
    """The index of one shard, mapped: its vectors stay in the file and are read page by page."""

    def __init__(self, path: Path, *, rows: int, dimension: int, max_norm: float) -> None:
        """Raises CorruptError where the file is no index or not the one that the manifest describes."""
        try:
            self._index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except (RuntimeError, MemoryError) as error:
            raise CorruptError(f"{path}: is not an index: {str(error).splitlines()[-1]}") from error
        index = self._index
        if not isinstance(index, faiss.IndexFlatIP):
            raise CorruptError(f"{path}: holds {type(index).__name__}, expected an exact inner-product index")
        if (index.ntotal, index.d) != (rows, dimension):
            raise CorruptError(
                f"{path}: holds {index.ntotal} vectors of {index.d} elements, the manifest says {rows} of {dimension}"
            )
        self.rows = rows
        self.max_norm = max_norm
        self._vectors_ND: NDArray[np.float32] = faiss.rev_swig_ptr(index.get_xb(), rows * dimension).reshape(
            rows, dimension
        )
        self._error = float32_error(dimension)

    def fetch(
        self, queries_QD: NDArray[np.float32], count: int, excluded_N: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Rough scores [q, f] and rows [q, f] of the `count` best rows, best first, -1 where there are no more.

        No row that is left out scores more than the last one by more than `margin`. Rows marked in `excluded_N`
        are passed over.
        """
        count = min(count, self.rows)
        if excluded_N is None:
            scores_QF, rows_QF = self._index.search(queries_QD, count)
        else:
            bits = np.packbits(~excluded_N, bitorder="little")
            selector = faiss.IDSelectorBitmap(self.rows, faiss.swig_ptr(bits))
            parameters: Any = faiss.SearchParameters()
            parameters.sel = selector
            scores_QF, rows_QF = self._index.search(queries_QD, count, params=parameters)
        return scores_QF, rows_QF

    def margin(self, queries_QD: NDArray[np.float32]) -> NDArray[np.float64]:
        """For each query, how far a rough and an exact score of one row can lie apart at most."""
        norms_Q = np.sqrt(np.square(queries_QD.astype(np.float64)).sum(axis=1))
        return np.asarray(self._error * self.max_norm * norms_Q)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Stored vectors, of the shape of `rows` and the dimension."""
        return self._vectors_ND[rows]
