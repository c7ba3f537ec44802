"""Inverted lists over codes: the lists of one shard with the quantiser that all shards share.

Which lists a query probes follows from the query, the quantiser and the sizes of the lists in the whole snapshot; a score
is the product of the query with the decoded row. So any split into shards gives the same answer (docs/adr/0003).

Axes: Q queries, F fetched, C candidates, P probed lists, N rows, D dimension, E dimension of the index.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import CorruptError
from openbook_database.files import map_array
from openbook_database.index.base import selector_of
from openbook_database.index.codec import BitCodec, FlatCodec, ProductCodec
from openbook_database.index.gpu import MAX_PROBES, WHOLE_TABLES, Fetched, Gpu, Moved, ivf_bytes
from openbook_database.index.lists import Lists, map_places, write_lists
from openbook_database.index.quantiser import Quantiser
from openbook_database.scoring import UNDERFLOW, exact_scores, norms

_globals: Any = faiss.cvar
_UNIT = 2.0**-24
_BLAS_PART = 16
# Faiss shares the queries of a scan of given lists among threads in this mode alone.
_BY_QUERY = 3


def write_ivf(
    path: Path,
    quantiser_path: Path,
    rows: int,
    dimension: int,
    blocks: Iterable[NDArray[np.float32]],
    *,
    gpu: bool = False,
) -> None:
    """Write the lists of one shard over `rows` float32 vectors that come as blocks [n, d]; OSError where it cannot.

    A row's list and code do not depend on the blocks. Memory holds the codes, once, and 16 bytes for each row.
    """
    quantiser = Quantiser(quantiser_path, dimension=dimension)
    if gpu:
        quantiser.move_to_gpus()
    index = quantiser.lists
    lists_N, codes_NB = np.empty(rows, np.int64), np.empty((rows, index.code_size), np.uint8)
    first = 0
    for vectors_ND in blocks:
        rows_NE = np.ascontiguousarray(quantiser.rotate(vectors_ND))
        end = first + len(rows_NE)
        lists_N[first:end] = quantiser.assign(rows_NE)
        arrays: tuple[NDArray[Any], ...] = rows_NE, lists_N[first:end], codes_NB[first:end]
        with _codes_one_by_one(index):
            index.encode_vectors(len(rows_NE), *(faiss.swig_ptr(array) for array in arrays))
        first = end
    write_lists(path, lists_N, codes_NB, quantiser.nlist)


class _codes_one_by_one:  # noqa: N801
    """Have Faiss encode parts of 16 elements and more row by row: in blocks it multiplies matrices, whose last bits
    depend on the block."""

    def __init__(self, index: Any) -> None:
        self._needed = isinstance(index, faiss.IndexIVFPQ) and index.pq.dsub >= _BLAS_PART

    def __enter__(self) -> None:
        self._before = _globals.product_quantizer_compute_codes_bs
        if self._needed:
            _globals.product_quantizer_compute_codes_bs = 1

    def __exit__(self, *error: object) -> None:
        _globals.product_quantizer_compute_codes_bs = self._before


def list_reach(path: Path, quantiser: Quantiser, max_norm: float) -> float:
    """Bound on the norm of what a row adds to its list's centroid when it is decoded."""
    if isinstance(quantiser.codec, BitCodec):
        lists = Lists(path)
        largest = (
            float(np.abs(quantiser.codec.factors(lists.list_codes(number))[:, 1]).max())
            for number in np.flatnonzero(lists.sizes).tolist()
        )
        return max(largest, default=0.0)
    return max_norm if quantiser.codec.reach is None else quantiser.codec.reach


class IVFReader:
    """The lists of one shard, mapped, with the shared quantiser (an object of its own, which it changes)."""

    golden_share = 1.0

    def __init__(
        self, quantiser: Quantiser, lists: Lists, places_N2: NDArray[np.uint32],
        sizes_L: NDArray[np.int64], *, max_norm: float, reach: float, nprobe: int,
    ) -> None:  # fmt: skip
        self.rows = len(places_N2)
        self.quantiser, self.lists = quantiser, lists
        self.sizes_L = sizes_L
        self.nprobe = nprobe
        self._places_N2 = places_N2
        self._moved: Moved | None = None
        self._half_tables = False
        self._max_norm, self._reach = max_norm * 1.0001, reach * 1.0001
        self._scanned = quantiser.lists
        self._scanned.replace_invlists(lists.faiss, False)
        self._scanned.ntotal = self.rows
        self._scanned.parallel_mode = _BY_QUERY

    @classmethod
    def open(
        cls, folder: Path, snapshot: Path, *, rows: int, dimension: int, max_norm: float, reach: float, nprobe: int
    ) -> IVFReader:
        """Raises CorruptError where a file is missing or is not the one that the manifest describes."""
        quantiser = Quantiser(snapshot / "quantiser.faiss", dimension=dimension)
        lists = Lists(folder / "lists.faiss")
        found = (lists.rows, len(lists.sizes), lists.code_size)
        expected = (rows, quantiser.nlist, quantiser.lists.code_size)
        if found != expected:
            raise CorruptError(
                f"{lists.path}: holds {found[0]} rows in {found[1]} lists of codes of {found[2]} bytes, the manifest and the "
                f"quantiser say {expected[0]}, {expected[1]} and {expected[2]}"
            )
        places_N2 = map_places(folder / "places.bin", rows)
        sizes_L = map_array(snapshot / "list_sizes.bin", "i8", (quantiser.nlist,))
        return cls(
            quantiser, lists, places_N2, sizes_L,
            max_norm=max_norm, reach=reach, nprobe=nprobe,
        )  # fmt: skip

    @property
    def gpu_bytes(self) -> int:
        """What `move_to` takes on the device; ConfigError where no GPU scans such lists."""
        codec = {BitCodec: "RaBitQ", ProductCodec: "PQ"}.get(type(self.quantiser.codec), "")
        return ivf_bytes(self.lists.sizes, self.lists.code_size, self.quantiser.dimension, codec)

    def move_to(self, gpu: Gpu) -> None:
        """Have a GPU scan the lists, and find those of a query where no graph does; it holds copies."""
        self._half_tables = isinstance(self.quantiser.codec, ProductCodec) and self.lists.code_size > WHOLE_TABLES
        self._moved = gpu.move(self._scanned, half_tables=self._half_tables)
        self.quantiser.move_to(gpu)

    def begin(
        self, queries_QD: NDArray[np.float32], wanted_Q: NDArray[np.int64], effort: int | None = None
    ) -> IVFCandidates:
        """The rows of the nearest lists: nprobe of them, or twice as many until they hold `wanted_Q` rows in the whole
        snapshot."""
        return IVFCandidates(self, queries_QD, wanted_Q, effort or self.nprobe)

    def scan(
        self,
        queries_QE: NDArray[np.float32],
        count: int,
        lists_QP: NDArray[np.int64],
        scores_QP: NDArray[np.float32],
        excluded_N: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Rough scores and rows of the `count` best rows in lists."""
        moved = self._moved
        if moved is not None and lists_QP.shape[1] > MAX_PROBES:
            moved.passed(len(queries_QE))
            moved = None
        if moved is None:
            return self._scan(self._scanned, queries_QE, count, lists_QP, scores_QP, excluded_N)
        return moved.fetch(
            lambda wanted: self._scan_moved(moved.index, queries_QE, wanted, lists_QP, scores_QP),
            lambda some: self._scan(
                self._scanned, queries_QE[some], count, lists_QP[some], scores_QP[some], excluded_N
            ),
            len(queries_QE),
            count,
            excluded_N,
            self.rows,
        )

    def _scan_moved(
        self,
        index: Any,
        queries_QE: NDArray[np.float32],
        count: int,
        lists_QP: NDArray[np.int64],
        scores_QP: NDArray[np.float32],
    ) -> Fetched:
        """In tables of float16 queries are at most 1 long, by powers of two, which changes no other digit."""
        if not self._half_tables:
            return self._scan(index, queries_QE, count, lists_QP, scores_QP, None)
        exponents_Q1 = np.frexp(norms(queries_QE))[1][:, None]
        scaled_QE, scaled_QP = np.ldexp(queries_QE, -exponents_Q1), np.ldexp(scores_QP, -exponents_Q1)
        rough_QF, rows_QF = self._scan(index, scaled_QE, count, lists_QP, scaled_QP, None)
        with np.errstate(over="ignore"):  # of what there is not
            return np.ldexp(rough_QF, exponents_Q1), rows_QF

    def _scan(
        self,
        index: Any,
        queries_QE: NDArray[np.float32],
        count: int,
        lists_QP: NDArray[np.int64],
        scores_QP: NDArray[np.float32],
        excluded_N: NDArray[np.bool_] | None,
    ) -> Fetched:
        bits = isinstance(self.quantiser.codec, BitCodec)
        parameters: Any = faiss.IVFRaBitQSearchParameters() if bits else faiss.SearchParametersIVF()
        if bits:
            parameters.qb = 0  # the query as it is, or no bound would hold
        parameters.nprobe = lists_QP.shape[1]
        if excluded_N is not None:
            selector, _bits = selector_of(excluded_N)
            parameters.sel = selector
        rough_QF = np.empty((len(queries_QE), count), dtype=np.float32)
        rows_QF = np.empty((len(queries_QE), count), dtype=np.int64)
        arrays = [np.ascontiguousarray(array) for array in (queries_QE, lists_QP, scores_QP)]
        pointers = [faiss.swig_ptr(array) for array in (*arrays, rough_QF, rows_QF)]
        index.search_preassigned_c(len(queries_QE), pointers[0], int(count), *pointers[1:], False, parameters, None)
        return rough_QF, rows_QF

    def decode(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Decoded rows of the shape of `rows`, as the lists see them, with the offset of the score where there is one."""
        places_N2 = self._places_N2[rows.reshape(-1)].astype(np.int64)
        lists_N = places_N2[:, 0]
        codes_NB = self.lists.codes(lists_N, places_N2[:, 1])
        decoded = self.quantiser.codec.decode(codes_NB, self.quantiser.centroids_LE[lists_N])
        return decoded.reshape(*rows.shape, -1)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Decoded vectors, rotated back."""
        decoded = self.decode(rows)[..., : self.quantiser.dimension]
        back = self.quantiser.rotate_back(np.ascontiguousarray(decoded.reshape(-1, self.quantiser.dimension)))
        return back.reshape(*rows.shape, -1)

    def margin(self, queries_QE: NDArray[np.float32]) -> NDArray[np.float64]:
        """As `Candidates.margin_Q`: bounds on float32 sums in any order (Higham 2002, (3.5)), with a few roundings more
        of the terms themselves, and what underflows."""
        operations = self.quantiser.dimension + 24
        error = operations * _UNIT / (1 - operations * _UNIT)
        margin_Q = operations * UNDERFLOW + error * self._magnitude(queries_QE)
        if self._half_tables:
            # Each entry of a table is rounded to 11 bits, or to steps of 2^-24 of a query of at most 1.
            margin_Q += norms(queries_QE) * (1.01 * 2.0**-11 * self._reach + self.lists.code_size * 2.0**-23)
        return margin_Q

    def _magnitude(self, queries_QE: NDArray[np.float32]) -> NDArray[np.float64]:
        """Bound on the sum of the magnitudes of the terms of a rough score."""
        norms_Q, centre = norms(queries_QE), self.quantiser.max_norm
        if isinstance(self.quantiser.codec, FlatCodec):
            return norms_Q * self._max_norm
        if isinstance(self.quantiser.codec, BitCodec):
            # Faiss forms |r|^2 - |o|^2 + |q - c|^2 - 2 p <q - c, s> / sqrt(d) - |q|^2 and halves it.
            apart_Q = norms_Q + centre
            squares_Q = np.square(apart_Q) + (self._max_norm + centre) ** 2 + self._max_norm**2 + np.square(norms_Q)
            return squares_Q + 6 * self._reach * apart_Q
        return norms_Q * (centre + self._reach)


class IVFCandidates:
    """The rows of the lists that each query probes."""

    def __init__(
        self, reader: IVFReader, queries_QD: NDArray[np.float32], wanted_Q: NDArray[np.int64], nprobe: int
    ) -> None:
        quantiser = reader.quantiser
        self._reader = reader
        self.dimension = max(quantiser.dimension, reader.lists.code_size)
        self._queries_QE = quantiser.rotate(queries_QD)
        self.margin_Q = reader.margin(self._queries_QE)
        self.compared_Q = np.zeros(len(queries_QD), dtype=np.int64)
        self._level_Q = np.zeros(len(queries_QD), dtype=np.int64)
        self._place_Q = np.zeros(len(queries_QD), dtype=np.int64)
        self._levels: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        pending, probes = np.arange(len(queries_QD)), nprobe
        while len(pending):
            lists_QP, scores_QP = quantiser.nearest(self._queries_QE[pending], probes)
            held_Q = reader.sizes_L[lists_QP].sum(axis=1)
            enough_Q = (held_Q >= wanted_Q[pending]) | (probes >= quantiser.nlist)
            done = pending[enough_Q]
            self._level_Q[done], self._place_Q[done] = len(self._levels), np.arange(len(done))
            self.compared_Q[done] = held_Q[enough_Q]
            self._levels.append((lists_QP[enough_Q], scores_QP[enough_Q]))
            pending, probes = pending[~enough_Q], 2 * probes

    def fetch(
        self, members: NDArray[np.intp], count: int, excluded_N: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if len(self._levels) == 1:
            lists_QP, scores_QP = self._levels[0]
            if len(members) == len(lists_QP):
                return self._reader.scan(self._queries_QE, count, lists_QP, scores_QP, excluded_N)
        rough_QF = np.empty((len(members), count), dtype=np.float32)
        rows_QF = np.empty((len(members), count), dtype=np.int64)
        for level, (lists_QP, scores_QP) in enumerate(self._levels):
            some = np.flatnonzero(self._level_Q[members] == level)
            if len(some):
                places = self._place_Q[members[some]]
                rough_QF[some], rows_QF[some] = self._reader.scan(
                    self._queries_QE[members[some]], count, lists_QP[places], scores_QP[places], excluded_N
                )
        return rough_QF, rows_QF

    def scores(self, members: NDArray[np.intp], rows_QC: NDArray[np.int64]) -> NDArray[np.float32]:
        queries_QE = self._queries_QE[members]
        decoded_QCE = self._reader.decode(rows_QC)
        if decoded_QCE.shape[2] > queries_QE.shape[1]:
            queries_QE = np.concatenate([queries_QE, np.ones((len(queries_QE), 1), np.float32)], axis=1)
        return exact_scores(queries_QE, decoded_QCE)
