"""Requests while the book is swapped under them: none fails, none is mixed, and how late the latest are.

python benchmarks/swap.py [--quick] [--chunks N] [--json FILE] [--plot FILE]

Four shards in two replicas each, in processes of their own, two routers; an open loop of callers that never try again,
at half of the measured capacity; every reply is compared from outside with the exact answer of the snapshot that it
names. Each swap goes to an edition that no replica has loaded. A last run without the snapshot guard must be
caught by the same comparison.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from measure import environment, figure_lines, run_benchmark
from swap_figures import passed, plot, summarise

if TYPE_CHECKING:
    from swap_book import Book
    from swap_load import Calls

    from openbook_core.clients import AdminClient

EDITIONS, SEED = 3, 11
_STARTED = time.monotonic()


@dataclass(frozen=True)
class Size:
    """How much is measured. `rest_s`: without a swap, after each; `rollback_every`: swaps from one rollback (and the way
    forward again) to the next; `p99_goal`: for `p99_ratio`; a swap begins as long as there are less than `swaps` or less
    than `requests` requests, and none after `seconds`."""

    chunks: int
    index: str
    shards: int
    members: int
    routers: int
    queries: int
    k: int
    swaps: int
    requests: int
    in_window: int
    seconds: float
    rest_s: float
    rollback_every: int
    capacity_s: float
    callers: int
    guardless_s: float
    p99_goal: float
    limit_s: int


QUICK = Size(
    chunks=4000,
    index="IVF64,SQ8",
    shards=4,
    members=4,
    routers=2,
    queries=128,
    k=2,
    swaps=8,
    requests=1200,
    in_window=200,
    seconds=80,
    rest_s=1.5,
    rollback_every=4,
    capacity_s=4,
    callers=16,
    guardless_s=3,
    p99_goal=1.5,
    limit_s=900,
)
FULL = Size(
    chunks=1_000_000,
    index="IVF4096,SQ8",
    shards=4,
    members=4,
    routers=2,
    queries=512,
    k=2,
    swaps=100,
    requests=20_000,
    in_window=3000,
    seconds=2400,
    rest_s=3.0,
    rollback_every=5,
    capacity_s=10,
    callers=16,
    guardless_s=10,
    p99_goal=1.25,
    limit_s=5400,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where every goal is met; the figures are written all the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small book and few swaps, about three minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and what they follow from")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them as PNG")
    parser.add_argument("--chunks", type=int, help="of each edition, instead of the size's own")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    if options.chunks:
        size = replace(size, chunks=options.chunks)
    return run_benchmark(
        lambda work: run(size, work),
        figure_lines,
        limit_s=size.limit_s,
        json_file=options.json,
        plot=(lambda result: plot(result, options.plot)) if options.plot else None,
        passed=passed,
    )


def run(size: Size, work: Path) -> dict[str, Any]:
    """{figures, raw}."""
    from swap_book import build_book

    circumstances = environment()
    _say(f"building {EDITIONS} editions of {size.chunks} chunks")
    book = build_book(
        work,
        editions=EDITIONS,
        chunks=size.chunks,
        shards=size.shards,
        index=size.index,
        queries=size.queries,
        k=size.k,
    )
    np.save(work / "queries.npy", book.queries_QD)
    raw = {
        "command": _command(size),
        **circumstances,
        "size": asdict(size),
        "soak": soak(size, book, work),
        "guard_off": guardless(size, book, work),
    }
    raw["seconds"] = round(time.monotonic() - _STARTED, 1)
    return {**summarise(raw), "raw": raw}


def soak(size: Size, book: Book, work: Path) -> dict[str, Any]:
    """Swaps under load; times are seconds since the load began."""
    from swap_cluster import Cluster, Memory, capacity, load
    from swap_load import read_calls

    from openbook_core.clients import AdminClient

    folder = work / "soak"
    folder.mkdir()
    _say("starting routers and shards")
    with Cluster(folder, size.routers, size.members) as cluster, AdminClient(cluster.routers[0]) as admin:
        ids = _first_edition(admin, book)
        spec = _load_spec(size, book, cluster.routers, work, folder)
        per_s = capacity(folder, {**spec, "callers": size.callers, "seconds": size.capacity_s})
        _say(f"capacity {per_s:.0f} requests a second; swapping under half of it")
        memory = Memory(cluster.shard_pids)
        one_snapshot = memory.serving()
        spec |= {"mode": "open", "per_s": per_s / 2, "seed": SEED}
        with memory, load(folder, spec):
            begun = time.monotonic()
            time.sleep(size.rest_s)
            swaps = _swap_around(size, admin, ids, begun, per_s / 2)
            mapped = memory.mapped(work)
    calls = read_calls(folder / "calls.npz")
    return {
        "capacity_per_s": round(per_s, 1),
        "offered_per_s": round(per_s / 2, 1),
        "swaps": swaps,
        "calls": _judged(calls, book, begun),
        "memory": {
            "one_snapshot": one_snapshot,
            **mapped,
            "samples": [[round(when - begun, 1), serving, checking] for when, serving, checking in memory.samples],
        },
    }


def guardless(size: Size, book: Book, work: Path) -> dict[str, Any]:
    """Without the snapshot in every request, while the live one moves to and fro; {"calls", "mixed"}."""
    from swap_cluster import Cluster, load
    from swap_load import read_calls

    from openbook_cli.swap import swap_to
    from openbook_core.clients import AdminClient
    from openbook_database.registry import open_registry

    _say("the same without the guard")
    folder = work / "guardless"
    folder.mkdir()
    with (
        Cluster(folder, 1, size.members, guard=False, drain_s=30) as cluster,
        AdminClient(cluster.routers[0]) as admin,
    ):
        ids = _first_edition(admin, book)
        swap_to(admin, book_name(), ids[1])
        spec = _load_spec(size, book, cluster.routers, work, folder)
        with load(folder, {**spec, "mode": "open", "per_s": 50, "seed": SEED}):
            end = time.monotonic() + size.guardless_s
            while time.monotonic() < end:
                open_registry(folder / "registry").rollback(book_name(), actor="benchmark")
                time.sleep(0.7)
    calls = read_calls(folder / "calls.npz")
    return {"calls": len(calls), "failed": len(calls.failed()), "mixed": int(calls.mixed(_checker(book)).sum())}


def book_name() -> str:
    from swap_book import DATABASE

    return DATABASE


def _first_edition(admin: AdminClient, book: Book) -> list[str]:
    """Register all, make the first live; their ids."""
    from openbook_cli.swap import swap_to

    ids = [admin.register(book_name(), str(folder)).snapshot for folder in book.editions]
    swap_to(admin, book_name(), ids[0], deadline_s=600)
    return ids


def _load_spec(size: Size, book: Book, routers: Sequence[str], work: Path, folder: Path) -> dict[str, Any]:
    return {
        "database": book_name(),
        "routers": list(routers),
        "queries": str(work / "queries.npy"),
        "k": size.k,
        "out": str(folder / "calls.npz"),
    }


def _swap_around(
    size: Size, admin: AdminClient, ids: Sequence[str], begun: float, per_s: float
) -> list[dict[str, float]]:
    """Swap to the next edition, then rest, again and again. `window`: from the prepare to the moment when the edition that
    is not needed any more is gone from every replica."""
    from openbook_cli.swap import swap_to

    swaps: list[dict[str, float]] = []
    resting_s = size.rest_s

    def now() -> float:
        return time.monotonic() - begun

    while now() < size.seconds and (len(swaps) < size.swaps or now() * per_s < size.requests):
        number, start = len(swaps) + 1, now()
        done = swap_to(admin, book_name(), ids[number % len(ids)], deadline_s=300)
        swap = {
            "start": round(start, 3),
            "prepare_s": done["prepare_seconds"],
            "activate_s": done["activate_seconds"],
        }
        if number % size.rollback_every == 0:
            swap |= {"rollback_s": _roll_back(admin), "forward_s": _roll_back(admin)}
        _wait_until_drained(admin, {ids[number % len(ids)], ids[(number - 1) % len(ids)]})
        swaps.append({**swap, "end": round(now(), 3)})
        time.sleep(resting_s)
    return swaps


def _roll_back(admin: AdminClient) -> float:
    """Seconds until every router is on it."""
    from openbook_cli.swap import wait_for_routers

    start = time.perf_counter()
    wait_for_routers(admin, book_name(), admin.rollback(book_name()).epoch)
    return round(time.perf_counter() - start, 3)


def _wait_until_drained(admin: AdminClient, kept: set[str], deadline_s: float = 120.0) -> None:
    end = time.monotonic() + deadline_s
    while True:
        (state,) = admin.list(book_name())
        if all(held.snapshot in kept for replica in state.replicas for held in replica.snapshots):
            return
        if time.monotonic() > end:
            raise TimeoutError(f"a snapshot was still loaded after {deadline_s:g} s")
        time.sleep(0.05)


def _checker(book: Book) -> Any:
    from openbook_cli.demo.checker import ExactChecker

    return ExactChecker(book.answers)


def _judged(calls: Calls, book: Book, begun: float) -> dict[str, Any]:
    """What the figures need of each call."""
    mixed = calls.mixed(_checker(book))
    return {
        "due": [round(due - begun, 4) for due in calls.due.tolist()],
        "ms": [round(1e3 * seconds, 2) for seconds in calls.seconds.tolist()],
        "errors": calls.failed(),
        "mixed": int(mixed.sum()),
        "restarts": int(calls.restarts.sum()),
        "epochs": len(np.unique(calls.epochs)),
        "by_snapshot": {name: calls.snapshots.count(name) for name in book.snapshots},
    }


def _command(size: Size) -> str:
    quick = size == replace(QUICK, chunks=size.chunks)
    chunks = "" if size in (QUICK, FULL) else f" --chunks {size.chunks}"
    return f"python benchmarks/swap.py{' --quick' if quick else ''}{chunks}"


def _say(text: str) -> None:
    print(f"[swap {time.monotonic() - _STARTED:5.1f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
