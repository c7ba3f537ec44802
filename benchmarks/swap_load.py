"""Callers of the routers in a process of their own: many requests in flight from one event loop, none tried twice.

    python swap_load.py '{"routers": [...], "queries": "q.npy", "k": 2, "out": "calls.npz", "mode": "open", ...}'

mode "closed": `callers` that call again when answered, for `seconds`; prints {"per_s": ...}. mode "open": Poisson arrivals
of `per_s` until a line comes on standard input; writes what `read_calls` reads. It says "ready" before the first call.

Axes: N calls, K neighbours.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook_cli.demo.checker import ExactChecker
from openbook_core.clients.retriever import SearchResult
from openbook_core.clients.retriever_async import AsyncRetrieverClient
from openbook_core.errors import OpenbookError

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Calls:
    """What became of N calls. `due`: when each was to begin (monotonic seconds); `seconds`: from then to its end, so time
    that a late caller lost counts; `errors`: "" where it was answered."""

    due: NDArray[np.float64]
    seconds: NDArray[np.float64]
    queries: NDArray[np.int64]
    snapshots: Sequence[str]
    errors: Sequence[str]
    restarts: NDArray[np.int64]
    epochs: NDArray[np.int64]
    ids_NK: NDArray[np.int64]
    scores_NK: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.due)

    def failed(self) -> list[str]:
        """The errors of calls that were not answered."""
        return [error for error in self.errors if error]

    def mixed(self, checker: ExactChecker) -> NDArray[np.bool_]:
        """Which answered calls are not, in ids, order and scores, the answer of the snapshot that they name."""
        return np.asarray(
            [
                not error and checker.differs(snapshot, query, ids, scores)
                for error, snapshot, query, ids, scores in zip(
                    self.errors, self.snapshots, self.queries.tolist(), self.ids_NK, self.scores_NK, strict=True
                )
            ],
            dtype=np.bool_,
        )


def read_calls(path: Path) -> Calls:
    with np.load(path) as stored:
        found = {name: stored[name] for name in stored.files}
    texts = {name: found[name].tolist() for name in ("snapshots", "errors")}
    return Calls(**{**found, **texts})


class Caller:
    """Calls the routers in turn, one query a call."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._database, self._k = spec["database"], int(spec["k"])
        self._queries_QD = np.load(spec["queries"])
        self._clients = [AsyncRetrieverClient(address) for address in spec["routers"]]
        self._turns = itertools.count()
        self.rows: list[tuple[Any, ...]] = []

    async def call(self, due: float) -> None:
        turn = next(self._turns)
        query = turn % len(self._queries_QD)
        client = self._clients[turn % len(self._clients)]
        result, error = None, ""
        try:
            result = await client.search(
                self._database, self._queries_QD[query : query + 1], self._k, tokens=True, timeout_s=TIMEOUT_S
            )
        except (OpenbookError, OSError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        self._note(due, query, result, error)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()

    def _note(self, due: float, query: int, result: SearchResult | None, error: str) -> None:
        seconds = time.monotonic() - due
        if result is None:
            blank = np.full(self._k, -1), np.zeros(self._k, np.float32)
            self.rows.append((due, seconds, query, "", error, 0, 0, *blank))
        else:
            facts = result.snapshot, "", result.restarts, result.epoch
            self.rows.append((due, seconds, query, *facts, result.ids[0], result.scores[0]))

    def write(self, path: str) -> None:
        names = ("due", "seconds", "queries", "snapshots", "errors", "restarts", "epochs", "ids_NK", "scores_NK")
        columns = zip(*self.rows, strict=True)
        np.savez(path, **{name: np.asarray(column) for name, column in zip(names, columns, strict=True)})


async def closed_loop(caller: Caller, callers: int, seconds: float) -> float:
    """Calls a second."""
    begun = time.monotonic()

    async def run() -> None:
        while time.monotonic() - begun < seconds:
            await caller.call(time.monotonic())

    await asyncio.gather(*(run() for _ in range(callers)))
    return len(caller.rows) / (time.monotonic() - begun)


async def open_loop(caller: Caller, per_s: float, seed: int) -> None:
    """Poisson arrivals until a line comes on standard input; then what is under way is waited for."""
    rng = random.Random(seed)
    ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))
    under_way: set[asyncio.Task[None]] = set()
    due = time.monotonic()
    while not ended.done():
        due += rng.expovariate(per_s)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.ensure_future(caller.call(due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)


async def _run(spec: Mapping[str, Any]) -> None:
    caller = Caller(spec)
    await caller.call(time.monotonic())
    failed = [row[4] for row in caller.rows if row[4]]
    if failed:
        raise OpenbookError(f"the first call failed: {failed[0]}")
    caller.rows.clear()
    print("ready", flush=True)
    if spec["mode"] == "closed":
        print(json.dumps({"per_s": await closed_loop(caller, spec["callers"], spec["seconds"])}), flush=True)
    else:
        await open_loop(caller, spec["per_s"], spec["seed"])
        caller.write(spec["out"])
    await caller.close()


if __name__ == "__main__":
    asyncio.run(_run(json.loads(sys.argv[1])))
