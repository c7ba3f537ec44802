"""Rough scores by a GPU, through Faiss. What is beyond its limits is the processor's, over the same mapped files.

Faiss' own GPU indexes give at most MAX_K rows of at most MAX_PROBES lists, and ignore selectors without a word. So rows
that are passed over are fetched too and dropped; where too few are left, the processor passes over them. Exact scores
are always the processor's: the answers are the same, whatever computed the rough ones.

Axes: Q queries, F fetched, N rows.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ConfigError, OpenbookError, Reason
from openbook_core.sizes import readable
from openbook_database.scoring import MISSING, exact_scores

MAX_K = MAX_PROBES = 2048
ON_GPU = "GPUs hold exact indexes (Flat) and IVF with Flat, SQ8 or PQ: build one of these, or use cpu"
# Bytes of a product code that Faiss has kernels for.
PRODUCT_CODES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
# Bytes of a product code: for longer ones only tables of float16 fit into what a block of threads shares.
WHOLE_TABLES = 48
DEFAULT_TEMPORARY = 256 << 20
# Handles, kernels and work space of CUDA's libraries, in the first copy.
_SLACK = 128 << 20
# Of each process that uses a device, before anything else.
CONTEXT = 512 << 20
# Rows of a list that a GPU holds side by side, and what 256 codewords take for each dimension.
_BLOCK, _CODEWORDS_BYTES = 32, 4 * 256
# Rows that one block of threads keeps in a walk. It keeps a multiple of _STEP, and _STEP more than are asked for, some of
# which may be none. A row's links are a multiple of it, too.
_WALK, _STEP, _MOST_LINKS = 512, 32, 128
# Of the host, for copies; Faiss takes four times as much.
_PINNED = 64 << 20
# More than as many as the passed over rows leave of a random choice.
_MORE, _LEAST_MORE = 1.25, 16
_WORST = np.float32(np.finfo(np.float32).min)
_GATHER_ELEMENTS = 1 << 23
_LIST_GRAIN, _LIST_HEAD = 512, 64

Fetched = tuple[NDArray[np.float32], NDArray[np.int64]]
_faiss: Any = faiss  # the names of GPU builds are not in the types


class Gpu:
    """One device with Faiss' resources on it, for one snapshot; they are freed with the last index that was moved.

    `passed`: is told the queries of which the processor passed over rows or had to give more than the GPU can.
    """

    def __init__(
        self,
        device: int,
        *,
        temporary_bytes: int = DEFAULT_TEMPORARY,
        passed: Callable[[int], None] = lambda queries: None,
    ) -> None:
        """Raises ConfigError where Faiss was built without GPUs or finds no such device."""
        require_device(device)
        self.device, self.passed = device, passed
        self.lock = Lock()  # Faiss' resources are for one thread at a time
        self._temporary_bytes = temporary_bytes
        self._resources = _faiss.StandardGpuResources()
        self._resources.setTempMemory(temporary_bytes)
        self._resources.setPinnedMemory(_PINNED)

    def __str__(self) -> str:
        return f"cuda:{self.device}"

    def require(self, index_bytes: int, what: str) -> None:
        """Raises OpenbookError with the numbers where `what` takes more than is free."""
        needed = needed_bytes(index_bytes, self._temporary_bytes)
        free, total = device_memory(self.device)
        if needed > free:
            raise OpenbookError(
                f"{what} takes {readable(needed)} on {self} ({readable(index_bytes)} for its index, the rest to work with), "
                f"{readable(free)} of {readable(total)} are free: take another GPU, more members that share the shards, an "
                "index of smaller codes, or retire a snapshot",
                reason=Reason.OUT_OF_MEMORY,
                field="device",
            )

    def move(self, index: Any, *, half_tables: bool = False) -> Moved:
        """A copy of a Faiss index on the device; OpenbookError where it cannot be made. `half_tables`: product codes are
        looked up as float16."""
        options = _faiss.GpuClonerOptions()
        options.indicesOptions = _faiss.INDICES_64_BIT
        options.useFloat16 = half_tables
        options.allowCpuCoarseQuantizer = True
        options.use_cuvs = False  # cuVS scans no given lists
        with self._copying():
            moved = _faiss.index_cpu_to_gpu(self._resources, self.device, index, options)
        return Moved(moved, self.lock, self.passed)

    def graph(self, vectors_ND: NDArray[np.float32], links: int) -> Moved:
        """A graph over vectors that is built on the device, for `walk`, of about as many links as an HNSW of `links`."""
        require_graphs()
        config = _faiss.GpuIndexCagraConfig()
        config.device = self.device
        config.graph_degree, config.intermediate_graph_degree = graph_degrees(links)
        with self._copying():
            index = _faiss.GpuIndexCagra(self._resources, vectors_ND.shape[1], faiss.METRIC_INNER_PRODUCT, config)
            index.train(vectors_ND)
        return Moved(index, self.lock, self.passed, most=_WALK - _STEP)

    @contextmanager
    def _copying(self) -> Iterator[None]:
        try:
            with self.lock:
                yield
        except (RuntimeError, MemoryError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[-1]
            memory = "memory" in said.lower() or "alloc" in said.lower()
            raise OpenbookError(
                f"{self}: the index could not be copied: {said}",
                reason=Reason.OUT_OF_MEMORY if memory else Reason.INTERNAL,
            ) from error


class Moved:
    """An index on a GPU."""

    def __init__(
        self,
        index: Any,
        lock: Lock | None = None,
        passed: Callable[[int], None] = lambda queries: None,
        *,
        most: int | None = None,
    ) -> None:
        """`most`: rows that it gives of a query, by default MAX_K."""
        self.index = index
        self.passed = passed
        self._most = most
        self._lock = lock or Lock()

    def fetch(
        self,
        scan: Callable[[int], Fetched],
        processor: Callable[[NDArray[np.intp]], Fetched],
        queries: int,
        count: int,
        excluded_N: NDArray[np.bool_] | None,
        rows: int,
    ) -> Fetched:
        """As `Candidates.fetch`, of an index of `rows` rows.

        `scan`: all queries and so many of their rows by the index; `processor`: `count` of some queries, without the
        excluded ones.
        """
        everyone = np.arange(queries)
        wanted = _wanted(count, excluded_N, rows, self._most or MAX_K)
        if wanted is None or not queries:
            self.passed(queries)
            return processor(everyone)
        with self._lock:
            rough_QF, rows_QF = scan(wanted)
        ended_Q = (rows_QF[:, -1] == MISSING) | (wanted == rows)
        if excluded_N is not None:
            rows_QF[(rows_QF != MISSING) & excluded_N[rows_QF]] = MISSING
            order_QF = np.argsort(rows_QF == MISSING, axis=1, kind="stable")[:, :count]
            rough_QF = np.take_along_axis(rough_QF, order_QF, axis=1)
            rows_QF = np.take_along_axis(rows_QF, order_QF, axis=1)
        rough_QF[rows_QF == MISSING] = _WORST
        short = np.flatnonzero((rows_QF[:, -1] == MISSING) & ~ended_Q)
        if len(short):
            self.passed(len(short))
            rough_QF[short], rows_QF[short] = processor(short)
        return rough_QF, rows_QF


def walk(
    index: Any, queries_QD: NDArray[np.float32], count: int, effort: int, vectors_ND: NDArray[np.float32]
) -> Fetched:
    """The `count` best rows that a graph over `vectors_ND` leads to, by their exact scores, each once, -1 where there are no
    more. A walk is one block of threads', so it does not depend on others."""
    parameters = _faiss.SearchParametersCagra()
    parameters.itopk_size = min(_WALK, -(-max(effort, count + _STEP) // _STEP) * _STEP)
    parameters.algo = _faiss.search_algo_SINGLE_CTA
    rows_QF = np.sort(index.search(queries_QD, count + _STEP, params=parameters)[1], axis=1)
    none_QF = (rows_QF < 0) | (rows_QF >= len(vectors_ND))
    none_QF[:, 1:] |= rows_QF[:, 1:] == rows_QF[:, :-1]
    rows_QF[none_QF] = MISSING
    scores_QF = np.empty(rows_QF.shape, np.float32)
    step = max(1, _GATHER_ELEMENTS // (rows_QF.shape[1] * vectors_ND.shape[1]))
    for start in range(0, len(rows_QF), step):
        some = slice(start, start + step)
        scores_QF[some] = exact_scores(queries_QD[some], vectors_ND[np.maximum(rows_QF[some], 0)])
    scores_QF[none_QF] = _WORST
    order_QF = np.lexsort((rows_QF, -scores_QF, none_QF), axis=-1)
    best_QF = order_QF[:, :count]
    return np.take_along_axis(scores_QF, best_QF, axis=1), np.take_along_axis(rows_QF, best_QF, axis=1)


def _wanted(count: int, excluded_N: NDArray[np.bool_] | None, rows: int, most: int) -> int | None:
    """How many rows to have the GPU fetch, which gives at most `most`; None where it cannot give enough."""
    if excluded_N is None:
        return count if count <= most else None
    left = rows - int(np.count_nonzero(excluded_N))
    most = min(most, rows)
    if most < rows and most * left < count * rows:
        return None
    wanted = math.ceil(_MORE * count * rows / left) + _LEAST_MORE if left else most
    return min(max(count, wanted), most) if count <= most else None


def require_graphs() -> None:
    """Raises ConfigError where Faiss builds no graphs on GPUs."""
    if not hasattr(faiss, "GpuIndexCagra"):
        raise ConfigError(
            f"device: this Faiss has no graphs on GPUs: install one with cuVS (faiss-gpu-cuvs); {ON_GPU}",
            field="device",
        )


def require_device(device: int) -> None:
    """Raises ConfigError where Faiss has no GPU of this number."""
    found = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else None
    if found is None or device >= found:
        why = "was built without GPUs" if found is None else f"finds {found or 'no'} GPU{'s' * (found != 1)}"
        raise ConfigError(
            f"device: cuda:{device} was asked for, but this Faiss {why}: install faiss-gpu on a machine that has one, name "
            "another device, or use cpu",
            field="device",
        )


def device_memory(device: int) -> tuple[int, int]:
    """Free and total bytes of a device, by CUDA's driver; OpenbookError where it does not tell."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise OpenbookError(f"cuda:{device}: its memory cannot be read: {error}", reason=Reason.INTERNAL) from error
    handle, context, previous = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()

    def call(name: str, *arguments: Any) -> None:
        code = getattr(cuda, name)(*arguments)
        if code:
            raise OpenbookError(f"cuda:{device}: its memory cannot be read: {name} gave {code}", reason=Reason.INTERNAL)

    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(handle), device)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    try:
        call("cuCtxPushCurrent_v2", context)
        try:
            call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        finally:
            call("cuCtxPopCurrent_v2", ctypes.byref(previous))
    finally:
        call("cuDevicePrimaryCtxRelease_v2", handle)
    return free.value, total.value


def needed_bytes(index_bytes: int, work_bytes: int) -> int:
    """What a process needs to copy an index, beside its CONTEXT."""
    return index_bytes + work_bytes + _SLACK


def flat_bytes(rows: int, dimension: int) -> int:
    """Vectors and their norms."""
    return 4 * rows * dimension + 4 * rows


def graph_degrees(links: int) -> tuple[int, int]:
    """Links of each row in the graph, and in the one that it is made of."""
    degree = min(_MOST_LINKS, -(-2 * links // _STEP) * _STEP)
    return degree, 2 * degree


def graph_bytes(rows: int, dimension: int, links: int) -> int:
    """At most, while the graph is built: the vectors, product codes of up to as much, and both graphs."""
    return 2 * flat_bytes(rows, dimension) + 4 * rows * sum(graph_degrees(links))


def ivf_bytes(sizes_L: NDArray[np.int64], code_size: int, dimension: int, codec: str) -> int:
    """Lists of these sizes with what finds them, for vectors of `dimension` in the index; `codec` as in a recipe. ConfigError
    where no GPU scans them."""
    coded = codec == "PQ"
    if codec == "RaBitQ" or (coded and code_size not in PRODUCT_CODES):
        kind = f"product codes of {code_size} bytes" if coded else codec
        raise ConfigError(f"device: no GPU scans lists of {kind}; {ON_GPU}", field="device")
    lists = list_bytes(sizes_L, code_size, blocks=1 if coded else _BLOCK)
    tables = 4 * _CODEWORDS_BYTES * dimension if coded else 0
    return lists + tables + 2 * flat_bytes(len(sizes_L), dimension)


def list_bytes(sizes_L: NDArray[np.int64], code_size: int, *, blocks: int) -> int:
    """What inverted lists take on a GPU: codes in blocks of so many rows, rows as int64, each in allocations of their own."""
    held_L = sizes_L[sizes_L > 0]
    codes_L = -(-held_L // blocks) * blocks * code_size
    grains = -(-codes_L // _LIST_GRAIN) + -(-8 * held_L // _LIST_GRAIN)
    return int(grains.sum()) * _LIST_GRAIN + _LIST_HEAD * len(sizes_L)
