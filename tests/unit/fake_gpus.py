"""Faiss' GPU API where there is no GPU: devices of a given memory, indexes that refuse what Faiss' own ones cannot do.

Stricter than Faiss, which takes a selector and ignores it. Rough scores differ in their last bit from the processor's, and
ties come in another order.

`python fake_gpus.py MODULE ARGUMENTS` runs a module with devices that all processes share which have the same folder in
FAKE_GPUS: what a process took is free when it has ended. `settings.json` in the folder holds what `FakeDevices` takes, read
at each call.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from openbook_database.index import gpu

MOST = 2048
CONTEXT = 300 << 20


@dataclass
class FakeDevices:
    """`total` bytes of each; `used` by what lives. `broken`: the error of every search, if any; `skewed`: wrong scores."""

    total: int = 8 << 30
    count: int = 2
    broken: str = ""
    skewed: bool = False
    crashes: bool = False
    used: dict[int, int] = field(default_factory=dict)
    searched: int = 0
    moved: list[Any] = field(default_factory=list)
    folder: Path | None = None

    def free(self, device: int) -> tuple[int, int]:
        return self.total - CONTEXT - self.used.get(device, 0) - self._of_others(device), self.total

    def read(self) -> None:
        """Take what the folder says now."""
        if self.folder is not None:
            for name, value in json.loads((self.folder / "settings.json").read_text()).items():
                setattr(self, name, value)
            if self.crashes:
                os.abort()

    def _of_others(self, device: int) -> int:
        """What other processes that live have taken."""
        taken = 0
        for file in [] if self.folder is None else self.folder.glob("*.pid"):
            if file.stem != str(os.getpid()) and Path(f"/proc/{file.stem}").exists():
                taken += CONTEXT + json.loads(file.read_text()).get(str(device), 0)
        return taken

    def _write(self) -> None:
        if self.folder is not None:
            (self.folder / f"{os.getpid()}.pid").write_text(json.dumps(self.used))

    def take(self, device: int, size: int, owner: Any) -> None:
        if size > self.free(device)[0]:
            raise RuntimeError(f"StandardGpuResources: alloc fail size {size} (cudaMalloc error out of memory [2])")
        self.used[device] = self.used.get(device, 0) + size
        self._write()
        weakref.finalize(owner, self._give_back, device, size)

    def _give_back(self, device: int, size: int) -> None:
        self.used[device] -= size
        self._write()


def install(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakeDevices:
    """Put the devices into Faiss, until the test ends."""
    devices = FakeDevices(**options)

    class Resources:
        def setTempMemory(self, size: int) -> None:
            self.temporary = size

        def setPinnedMemory(self, size: int) -> None:
            pass

    def to_gpu(resources: Resources, device: int, index: Any, options: Options) -> FakeIndex:
        moved = FakeIndex(devices, faiss.downcast_index(index), options)
        moved.resources = resources
        if not hasattr(resources, "begun"):
            devices.take(device, resources.temporary, resources)
            resources.begun = True  # type: ignore[attr-defined]
        devices.take(device, moved.bytes, moved)
        devices.moved.append(weakref.ref(moved))
        return moved

    class Options:
        indicesOptions, useFloat16, allowCpuCoarseQuantizer, use_cuvs = 0, False, False, True

    def graph(resources: Resources, dimension: int, metric: int, config: Any) -> FakeGraph:
        assert metric == faiss.METRIC_INNER_PRODUCT
        return FakeGraph(devices, resources, dimension, config)

    for name, value in {
        "GpuIndexCagra": graph,
        "GpuIndexCagraConfig": SimpleNamespace,
        "SearchParametersCagra": SimpleNamespace,
        "search_algo_SINGLE_CTA": "single",
        "StandardGpuResources": Resources,
        "GpuClonerOptions": Options,
        "INDICES_64_BIT": 3,
        "index_cpu_to_gpu": to_gpu,
        "get_num_gpus": lambda: devices.count,
    }.items():
        monkeypatch.setattr(faiss, name, value, raising=False)
    monkeypatch.setattr(gpu, "device_memory", devices.free)
    return devices


class FakeIndex:
    """What a GPU index of Faiss does with the index that it was made from. It keeps its resources, as Faiss' do."""

    resources: Any = None

    def __init__(self, devices: FakeDevices, index: Any, options: Any) -> None:
        self._devices, self._index = devices, index
        assert not options.use_cuvs, "cuVS scans no given lists"
        lists = isinstance(index, faiss.IndexIVF)
        if not isinstance(
            index,
            faiss.IndexFlatIP | faiss.IndexFlat | faiss.IndexIVFFlat | faiss.IndexIVFScalarQuantizer | faiss.IndexIVFPQ,
        ):
            raise RuntimeError(f"This index type is not implemented on GPU: {type(index).__name__}")
        self._half = isinstance(index, faiss.IndexIVFPQ) and options.useFloat16
        if isinstance(index, faiss.IndexIVFPQ) and 256 * index.pq.M * (2 if self._half else 4) > 48 << 10:
            raise RuntimeError("Device 0 has 49152 bytes of shared memory. Consider useFloat16LookupTables")
        coarse = faiss.downcast_index(index.quantizer) if lists else None
        if lists and not isinstance(coarse, faiss.IndexFlat) and not options.allowCpuCoarseQuantizer:
            raise RuntimeError("the coarse quantizer is not implemented on GPU")
        self.bytes = (index.code_size + 8 * lists) * index.ntotal
        if coarse is not None:
            self.bytes += 4 * index.d * index.nlist

    def search(self, queries_QD: NDArray[np.float32], k: int, *, params: Any = None) -> Any:
        self._require(k, params)
        scores_QF, rows_QF = self._index.search(queries_QD, k)
        return self._shaken(scores_QF, rows_QF)

    def search_preassigned_c(
        self,
        n: int,
        x: Any,
        k: int,
        lists: Any,
        coarse: Any,
        scores: Any,
        rows: Any,
        pairs: bool,
        params: Any,
        stats: Any,
    ) -> None:
        self._require(k, params, params.nprobe)
        assert stats is None and not pairs, "not supported on GPUs"
        queries_QD = faiss.rev_swig_ptr(x, n * self._index.d).reshape(n, -1)
        assert not self._half or np.linalg.norm(queries_QD, axis=1).max() <= 1, "tables of float16 may overflow"
        self._index.search_preassigned_c(n, x, k, lists, coarse, scores, rows, pairs, params, stats)
        scores_QF, rows_QF = (faiss.rev_swig_ptr(array, n * k).reshape(n, k) for array in (scores, rows))
        scores_QF[:], rows_QF[:] = self._shaken(scores_QF.copy(), rows_QF.copy())

    def _require(self, k: int, params: Any, nprobe: int = 1) -> None:
        self._devices.read()
        if self._devices.broken:
            raise RuntimeError(self._devices.broken)
        if not 0 < k <= MOST:
            raise RuntimeError(f"GPU index only supports min/max-K selection up to {MOST} (requested {k})")
        if not 0 < nprobe <= MOST:
            raise RuntimeError(f"GPU IVF index only supports nprobe selection up to {MOST} (requested {nprobe})")
        if params is not None and params.sel is not None:
            raise AssertionError("a GPU index would ignore this selector")
        self._devices.searched += 1

    def _shaken(self, scores_QF: NDArray[np.float32], rows_QF: NDArray[np.int64]) -> Any:
        """The same rows with scores that another order of additions could give, sorted by these."""
        missing_QF = rows_QF == -1
        up_QF = np.where(rows_QF % 2 == 0, np.float32(np.inf), np.float32(-np.inf))
        with np.errstate(over="ignore"):
            shaken_QF = np.nextafter(scores_QF, up_QF, dtype=np.float32)
        if self._half:
            shaken_QF = scores_QF + np.copysign(2.0**-12 * np.abs(scores_QF), up_QF).astype(np.float32)
        scores_QF = np.where(missing_QF, scores_QF, shaken_QF)
        if self._devices.skewed:
            scores_QF = -scores_QF
        order_QF = np.lexsort((-rows_QF, np.where(missing_QF, np.inf, -scores_QF)), axis=-1)
        rows_QF = np.take_along_axis(rows_QF, order_QF, axis=1)
        return np.take_along_axis(scores_QF, order_QF, axis=1), rows_QF


class FakeGraph:
    """What Faiss does with cuVS' graphs, of which it makes another one than the processor's: it leads to nearly all rows, gives
    some twice or rows that there are not, and similarities of the wrong sign."""

    def __init__(self, devices: FakeDevices, resources: Any, dimension: int, config: Any) -> None:
        assert config.graph_degree < config.intermediate_graph_degree
        self._devices, self._resources, self._config = devices, resources, config
        self._rows = faiss.IndexFlatIP(dimension)

    def train(self, vectors_ND: NDArray[np.float32]) -> None:
        assert len(vectors_ND) > self._config.intermediate_graph_degree, "too few rows for such a graph"
        self._rows.add(vectors_ND)
        links = self._config.graph_degree + self._config.intermediate_graph_degree
        self._devices.take(self._config.device, 4 * vectors_ND.size + 4 * len(vectors_ND) * links, self)

    def search(self, queries_QD: NDArray[np.float32], k: int, *, params: Any) -> Any:
        self._devices.read()
        if self._devices.broken:
            raise RuntimeError(self._devices.broken)
        assert getattr(params, "sel", None) is None and params.algo == "single"
        assert k <= params.itopk_size <= 512 and params.itopk_size % 32 == 0
        self._devices.searched += 1
        scores_QF, rows_QF = self._rows.search(-queries_QD if self._devices.skewed else queries_QD, k)
        rows_QF[rows_QF % 50 == 7] = 0xFFFFFFFF
        rows_QF[:, -1] = rows_QF[:, 0]
        return -scores_QF, rows_QF


def main(module: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        devices = install(patch, folder=Path(os.environ["FAKE_GPUS"]))
        devices.read()
        with_fakes(patch)
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def with_fakes(patch: pytest.MonkeyPatch) -> None:
    """Have shard processes start theirs with fake devices, too."""
    from openbook_retriever import on_device

    patch.setattr(on_device, "COMMAND", (sys.executable, __file__, "openbook_retriever.device_process"))


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    main(sys.argv[0])
