"""Rough scores by a GPU, through Faiss. What is beyond its limits is the processor's, over the same mapped files.

Faiss' own GPU indexes give at most MAX_K rows of at most MAX_PROBES lists, and ignore selectors without a word. So rows
that are passed over are fetched too and dropped; where too few are left, the processor passes over them. Exact scores
are always the processor's: the answers are the same, whatever computed the rough ones.

Axes: Q queries, F fetched, N rows.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from threading import Lock
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from openbook_core.errors import ConfigError, OpenbookError, Reason
from openbook_core.sizes import readable
from openbook_database.scoring import MISSING

MAX_K = MAX_PROBES = 2048
ON_GPU = "GPUs hold exact indexes (Flat) and IVF with Flat, SQ8 or PQ: build one of these, or use cpu"
# Bytes of a product code that Faiss has kernels for.
PRODUCT_CODES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
# Bytes of a product code: for longer ones only tables of float16 fit into what a block of threads shares.
WHOLE_TABLES = 48
DEFAULT_TEMPORARY = 256 << 20
# Handles, kernels and work space of CUDA's libraries, in the first copy.
_SLACK = 128 << 20
# Of the host, for copies; Faiss takes four times as much.
_PINNED = 64 << 20
# More than as many as the passed over rows leave of a random choice.
_MORE, _LEAST_MORE = 1.25, 16
_WORST = np.float32(np.finfo(np.float32).min)
_LIST_GRAIN, _LIST_HEAD = 512, 64

Fetched = tuple[NDArray[np.float32], NDArray[np.int64]]
_faiss: Any = faiss  # the names of GPU builds are not in the types


class Gpu:
    """One device with Faiss' resources on it, for one snapshot; they are freed with the last index that was moved.

    `passed`: is told the queries of which the processor passed over rows or had to give more than the GPU can. `failed`: is
    told an error of a search on the GPU, which the processor then does; without it the error is raised.
    """

    def __init__(
        self,
        device: int,
        *,
        temporary_bytes: int = DEFAULT_TEMPORARY,
        passed: Callable[[int], None] = lambda queries: None,
        failed: Callable[[RuntimeError], None] | None = None,
    ) -> None:
        """Raises ConfigError where Faiss was built without GPUs or finds no such device."""
        require_device(device)
        self.device, self.passed, self.failed = device, passed, failed
        self.lock = Lock()  # Faiss' resources are for one thread at a time
        self._temporary_bytes = temporary_bytes
        self._resources = _faiss.StandardGpuResources()
        self._resources.setTempMemory(temporary_bytes)
        self._resources.setPinnedMemory(_PINNED)

    def __str__(self) -> str:
        return f"cuda:{self.device}"

    def require(self, index_bytes: int, what: str) -> None:
        """Raises OpenbookError with the numbers where `what` takes more than is free."""
        needed = index_bytes + self._temporary_bytes + _SLACK
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
        try:
            with self.lock:
                moved = _faiss.index_cpu_to_gpu(self._resources, self.device, index, options)
        except (RuntimeError, MemoryError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[-1]
            memory = "memory" in said.lower() or "alloc" in said.lower()
            raise OpenbookError(
                f"{self}: the index could not be copied: {said}",
                reason=Reason.OUT_OF_MEMORY if memory else Reason.INTERNAL,
            ) from error
        return Moved(moved, self.lock, self.passed, self.failed)


class Moved:
    """An index on a GPU."""

    def __init__(
        self,
        index: Any,
        lock: Lock | None = None,
        passed: Callable[[int], None] = lambda queries: None,
        failed: Callable[[RuntimeError], None] | None = None,
    ) -> None:
        self.index = index
        self.passed = passed
        self._lock, self._failed = lock or Lock(), failed

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
        wanted = _wanted(count, excluded_N, rows)
        if wanted is None or not queries:
            self.passed(queries)
            return processor(everyone)
        try:
            with self._lock:
                rough_QF, rows_QF = scan(wanted)
        except RuntimeError as error:
            if self._failed is None:
                raise
            self._failed(error)
            return processor(everyone)
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


def _wanted(count: int, excluded_N: NDArray[np.bool_] | None, rows: int) -> int | None:
    """How many rows to have the GPU fetch; None where it cannot give enough."""
    if excluded_N is None:
        return count if count <= MAX_K else None
    left = rows - int(np.count_nonzero(excluded_N))
    most = min(MAX_K, rows)
    if most < rows and most * left < count * rows:
        return None
    wanted = math.ceil(_MORE * count * rows / left) + _LEAST_MORE if left else most
    return min(max(count, wanted), most) if count <= most else None


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


def list_bytes(sizes_L: NDArray[np.int64], code_size: int, *, blocks: int) -> int:
    """What inverted lists take on a GPU: codes in blocks of so many rows, rows as int64, each in allocations of their own."""
    held_L = sizes_L[sizes_L > 0]
    codes_L = -(-held_L // blocks) * blocks * code_size
    grains = -(-codes_L // _LIST_GRAIN) + -(-8 * held_L // _LIST_GRAIN)
    return int(grains.sum()) * _LIST_GRAIN + _LIST_HEAD * len(sizes_L)
