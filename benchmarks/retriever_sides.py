"""What is measured: bare Faiss, the retriever's processes, the baselines; each behind one kind of caller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from embedder_process import end, tail
from measure import processor_s
from numpy.typing import NDArray
from retriever_baselines import GrpcCaller, HttpCaller, PickleCaller
from retriever_data import DATABASE, Work

from openbook_core.clients import AdminClient, RetrieverClient
from openbook_core.errors import OpenbookError, PreconditionError, UnavailableError

K = 2
_HERE = Path(__file__).parent


class Caller(Protocol):
    """Queries [q, d] and k to ids [q, k]."""

    def __call__(self, queries_QD: NDArray[np.float32], k: int) -> NDArray[np.int64]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Side:
    """`connect` makes a caller; `pids`: processes whose time counts, none: this one."""

    connect: Callable[[], Caller]
    pids: tuple[int, ...] = ()

    def cpu_s(self) -> float:
        return sum(map(processor_s, self.pids)) if self.pids else processor_s()


class BareCaller:
    """Faiss in this process, on all cores as it likes."""

    def __init__(self, index: Any, threads: int) -> None:
        self._index, self._threads = index, threads

    def __call__(self, queries_QD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        faiss.omp_set_num_threads(self._threads)
        ids: NDArray[np.int64] = self._index.search(queries_QD, k)[1]
        return ids

    def close(self) -> None:
        """Nothing is open."""


class RetrieverCaller:
    """Our client, tokens and continuations asked for."""

    def __init__(self, address: str) -> None:
        self._client = RetrieverClient(address)

    def __call__(self, queries_QD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        return self._client.search(DATABASE, queries_QD, k, tokens=True).ids

    def close(self) -> None:
        self._client.close()


def trial(side: Side, queries_QD: NDArray[np.float32], per_call: int, callers: int) -> dict[str, Any]:
    """All queries once, in calls of `per_call` from `callers` at once, each calling again when answered."""
    calls = [queries_QD[start : start + per_call] for start in range(0, len(queries_QD), per_call)]
    made = [side.connect() for _ in range(callers)]

    def work(number: int) -> list[float]:
        latencies = []
        for call in calls[number::callers]:
            begun = time.perf_counter()
            ids_QK = made[number](call, K)
            latencies.append(1e3 * (time.perf_counter() - begun))
            if ids_QK.shape != (len(call), K):
                raise OpenbookError(f"{len(call)} queries were answered by ids of shape {ids_QK.shape}")
        return latencies

    try:
        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(lambda caller: caller(calls[0], K), made))
            cpu_s, begun = side.cpu_s(), time.perf_counter()
            latencies = [latency for part in pool.map(work, range(callers)) for latency in part]
            seconds, cpu_s = time.perf_counter() - begun, side.cpu_s() - cpu_s
    finally:
        for caller in made:
            caller.close()
    return {"queries": len(queries_QD), "seconds": seconds, "cpu_s": cpu_s, "latencies_ms": latencies}


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[tuple[int, str]]:
    """A server's pid and the first line that it prints."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise UnavailableError(f"{command[0]} did not start; the end of its log:\n{tail(log)}")
        yield process.pid, line
    finally:
        end(process)


@contextmanager
def retriever(work: Work, folder: Path, device: str = "cpu") -> Iterator[Side]:
    """A router and a shard with their defaults but the shard's device, the snapshot live."""
    registry = folder / "registry"
    common = ["-m", "openbook_retriever", "--registry", str(registry)]
    with ExitStack() as stack:
        addresses, pids = [], []
        for role, options in (("router", []), ("shard", ["--device", device])):
            pid, line = stack.enter_context(started([*common, "--role", role, *options], folder / f"{role}.log"))
            addresses.append(json.loads(line)["address"])
            pids.append(pid)
        with AdminClient(addresses[0]) as admin:
            snapshot = admin.register(DATABASE, str(work.snapshot)).snapshot
            admin.prepare(DATABASE, snapshot)
            deadline = time.monotonic() + 300
            while True:
                try:
                    admin.activate(DATABASE, snapshot)
                    break
                except PreconditionError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
        yield Side(lambda: RetrieverCaller(addresses[0]), tuple(pids))


@contextmanager
def baselines(work: Work, folder: Path, threads: int) -> Iterator[dict[str, Side]]:
    """Pickled calls, FastAPI, and gRPC with a process in front."""
    kinds: dict[str, Callable[[int], Caller]] = {"pickle": PickleCaller, "http": HttpCaller, "grpc": GrpcCaller}
    with ExitStack() as stack:
        sides = {}
        for kind, caller in kinds.items():
            command = [str(_HERE / "retriever_baselines.py"), kind, str(work.bare), str(work.tokens), str(threads)]
            pid, line = stack.enter_context(started(command, folder / f"{kind}.log"))
            pids = [pid]
            if kind == "grpc":
                pid, line = stack.enter_context(started([command[0], "front", line.strip()], folder / "front.log"))
                pids.append(pid)
            sides[kind] = Side(lambda caller=caller, port=int(line): caller(port), tuple(pids))  # type: ignore[misc]
        yield sides
