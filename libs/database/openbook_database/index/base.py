"""What search asks of the index of one shard; Flat, HNSW and IVF each answer it.

Axes: Q queries, F fetched, C candidates, D dimension.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import CorruptError
from openbook_database.index.gpu import Gpu


class Candidates(Protocol):
    """The rows that may answer each query of one batch. `margin_Q`: how far a rough and an exact score of one row can
    lie apart at most. `dimension`: elements that are gathered for each row."""

    dimension: int
    margin_Q: NDArray[np.float64]

    def fetch(
        self, members: NDArray[np.intp], count: int, excluded_N: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Rough scores [m, f] and rows [m, f] of the `count` best rows of some of the queries, best first, -1 where there
        are no more. Rows marked in `excluded_N` are passed over. No candidate that is left out has a rough score above
        the last one."""

    def scores(self, members: NDArray[np.intp], rows_QC: NDArray[np.int64]) -> NDArray[np.float32]:
        """Exact scores [m, c] of rows for some of the queries: a function of query, row and quantiser alone."""


class IndexReader(Protocol):
    """The index of one shard, mapped from its files. Safe to use from several threads at once. `golden_share`: of the places
    of the golden queries' answers, those that must come out as well as when it was built."""

    rows: int
    golden_share: float

    def begin(
        self, queries_QD: NDArray[np.float32], wanted_Q: NDArray[np.int64], effort: int | None = None
    ) -> Candidates:
        """Candidates for the queries, at least `wanted_Q` in the whole snapshot where it has so many.

        effort: nprobe or efSearch, instead of the snapshot's default."""

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors [..., d] as the index holds them; decoded, where they are held as codes."""

    @property
    def gpu_bytes(self) -> int:
        """What `move_to` takes on the device; ConfigError where no GPU can hold such an index."""

    def move_to(self, gpu: Gpu) -> None:
        """Have a GPU compute the rough scores, before the first search. Answers stay as they are, but for a graph's, which the
        GPU makes another of."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Faiss on one thread, for this thread of the process: what it trains differs in its last bits with their number."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@contextmanager
def faiss_write_errors() -> Iterator[None]:
    """Turn Faiss' failure to write into an OSError; it tells the system's reason in words only."""
    try:
        yield
    except RuntimeError as error:
        reasons = (code for code in errno.errorcode if f"({os.strerror(code)})" in str(error))
        raise OSError(next(reasons, errno.EIO), str(error)) from error


def read_mapped(path: Path) -> Any:
    """The Faiss index in `path`, its arrays mapped; CorruptError where there is none."""
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as error:
        raise CorruptError(f"{path}: is not an index: {str(error).splitlines()[-1]}") from error


def selector_of(excluded_N: NDArray[np.bool_]) -> tuple[Any, Any]:
    """A Faiss selector of the rows that are not excluded, and the bits that it points to (keep both alive)."""
    bits = np.packbits(~excluded_N, bitorder="little")
    return faiss.IDSelectorBitmap(len(excluded_N), faiss.swig_ptr(bits)), bits
