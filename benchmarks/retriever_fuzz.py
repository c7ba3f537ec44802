"""Random requests, valid and not, from several callers against a real router and real shards; what they answer is checked.

    python benchmarks/retriever_fuzz.py [--requests N] [--seed S] [--json FILE]

Every reply has an oracle (`retriever_requests.py`). Afterwards every process must live and be healthy, nothing may be
under way, every place for a watcher free, and memory, after a minute and more, where it was. Exit code 1 where anything was
not right; the first violations are printed.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from measure import environment, figure_lines, run_benchmark

if TYPE_CHECKING:
    from retriever_books import Book
    from retriever_requests import Server
    from swap_cluster import Cluster

CALLERS, MAX_CALLS, MAX_QUEUE_QUERIES, MAX_WATCHERS = 6, 32, 512, 8
# How often each request is made; those that are dear come seldom.
WEIGHTS = {
    "search": 40,
    "chunks": 8,
    "describe": 3,
    "pin": 3,
    "refused": 40,
    "refused_call": 25,
    "not_utf8": 4,
    "garbage": 12,
    "mutated": 16,
    "unknown_method": 2,
    "too_large": 1,
    "cancelled": 10,
    "late": 10,
    "watch_left": 3,
    "raw_socket": 3,
}
_SHOWN = 10
# Between the second and the last quarter of the time, of any process. Messages of 8 MB on eight threads leave the allocator
# some tens of MB while it warms, so a short run says nothing.
_GROWTH_BYTES, _WARM_S = 64e6, 60


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", choices=list(WEIGHTS), default=list(WEIGHTS), metavar="KIND", help="of request"
    )
    parser.add_argument("--members", type=int, default=2, help="shard processes")
    parser.add_argument("--documents", type=int, default=60, help="of each database")
    parser.add_argument("--limit-s", type=int, default=3600, help="ends it without a result")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome")
    options = parser.parse_args(arguments)
    return run_benchmark(
        lambda work: run(
            options.requests, options.seed, options.documents, work, members=options.members, only=options.only
        ),
        report,
        limit_s=options.limit_s,
        json_file=options.json,
        passed=lambda result: result["passed"],
    )


def report(result: dict[str, Any]) -> list[str]:
    """Figures, and the first of what was not right."""
    return [*figure_lines(result), *result["raw"]["violations"], *result["raw"]["logged"]]


def run(
    requests: int, seed: int, documents: int, work: Path, *, members: int = 2, only: Sequence[str] = tuple(WEIGHTS)
) -> dict[str, Any]:
    """{passed, counts, raw}."""
    from retriever_books import SHARDS, build_books
    from retriever_requests import Server
    from swap_cluster import Cluster

    circumstances = environment()
    books = build_books(work, documents)
    limits = ["--max-calls", str(MAX_CALLS), "--max-workers", "8", "--max-queue-queries", str(MAX_QUEUE_QUERIES)]
    with Cluster(work, 1, members, replicas=1, options=limits) as cluster:
        _serve(cluster, books)
        servers = [Server(cluster.routers[0])]
        servers += [
            Server(address, tuple(range(member, SHARDS, members))) for member, address in enumerate(cluster.shards)
        ]
        begun = time.monotonic()
        outcomes, violations, samples = _fuzz(cluster, servers, books, requests, seed, only)
        seconds = time.monotonic() - begun
        after: dict[str, Any] = {
            "ready": [_ready(server.address) for server in servers],
            "idle": [_idle(server, books[0]) for server in servers],
            "watchers": _free_watchers(cluster.routers[0]),
        }
        log = cluster.log.read_text(errors="replace")
    unexpected = [line for line in log.splitlines() if "unexpected" in line or "Traceback" in line]
    growth = [_growth(samples, place) for place in range(len(servers))]
    checks = {
        "no_violations": not violations,
        "ready": all(after["ready"]),
        "nothing_under_way": all(after["idle"]),
        "all_watchers_free": after["watchers"] == MAX_WATCHERS,
        "memory_flat": seconds < _WARM_S or max(growth) < _GROWTH_BYTES,
        "nothing_unexpected_logged": not unexpected,
    }
    return {
        "passed": all(checks.values()),
        **checks,
        "requests": sum(outcomes.values()),
        "violations": len(violations),
        "resident_growth_mb": [round(each / 1e6, 1) for each in growth],
        "raw": {
            "command": f"python benchmarks/retriever_fuzz.py --requests {requests} --seed {seed} --members {members}",
            **circumstances,
            "callers": CALLERS,
            "chunks": books[0].chunks,
            "seconds": round(seconds, 1),
            "outcomes": dict(sorted(outcomes.items())),
            "violations": violations[:_SHOWN],
            "logged": unexpected[:_SHOWN],
            "after": after,
            "samples": samples,
        },
    }


def _serve(cluster: Cluster, books: Sequence[Book]) -> None:
    from openbook_cli.swap import swap_to
    from openbook_core.clients import AdminClient

    with AdminClient(cluster.routers[0]) as admin:
        for book in books:
            admin.register(book.name, str(book.path))
            swap_to(admin, book.name, book.id, deadline_s=300)


def _fuzz(
    cluster: Cluster, servers: Sequence[Server], books: Sequence[Book], requests: int, seed: int, only: Sequence[str]
) -> tuple[Counter[str], list[str], list[tuple[float, list[int]]]]:
    """Outcomes by kind, violations, and samples of [seconds, resident bytes of each server]."""
    from retriever_requests import Requests, Violation

    outcomes: Counter[str] = Counter()
    violations: list[str] = []
    lock, done = threading.Lock(), threading.Event()

    def caller(number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        side = Requests(servers, books)
        kinds: dict[str, Callable[[random.Random], str]] = {name: getattr(side, name) for name in only}
        weights = [WEIGHTS[name] for name in only]
        for made in range(requests // CALLERS):
            name = rng.choices(list(kinds), weights)[0]
            try:
                outcome = kinds[name](rng)
            except Exception as error:  # noqa: BLE001  a transport that breaks where it should not is a violation too
                outcome = "VIOLATION"
                kind = "" if isinstance(error, Violation) else f"{type(error).__name__}: "
                with lock:
                    violations.append(f"seed {seed}/{number}, request {made}, {name}: {kind}{error}")
            with lock:
                outcomes[f"{name}: {outcome}"] += 1
        side.close()

    samples = []
    begun = time.monotonic()
    with ThreadPoolExecutor(CALLERS) as pool:
        running = [pool.submit(caller, number) for number in range(CALLERS)]
        while not all(each.done() for each in running):
            samples.append((round(time.monotonic() - begun, 1), _resident(cluster)))
            done.wait(0.5)
        for each in running:
            each.result()
    samples.append((round(time.monotonic() - begun, 1), _resident(cluster)))
    return outcomes, violations, samples


def _resident(cluster: Cluster) -> list[int]:
    """Bytes of the router and of each shard."""
    *shards, router = cluster.pids
    return [_status_bytes(pid) for pid in (router, *shards)]


def _status_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def _growth(samples: Sequence[tuple[float, Sequence[int]]], place: int) -> float:
    end = max(samples[-1][0], 1e-9)

    def typical(low: float) -> float:
        sizes = [sizes[place] for second, sizes in samples if low <= second / end <= low + 0.25]
        return median(sizes or [samples[0][1][place]])

    return typical(0.75) - typical(0.25)


def _ready(address: str) -> bool:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def _idle(server: Server, book: Book, seconds: float = 10.0) -> bool:
    """Whether a call with more queries than may be under way is let in, which it is only where nothing is."""
    import grpc
    import numpy as np
    from retriever_books import DIMENSION

    from openbook_core.vectors import encode_vectors
    from openbook_proto.v1 import retriever_pb2, retriever_pb2_grpc

    queries = encode_vectors(np.ones((MAX_QUEUE_QUERIES + 1, DIMENSION), dtype=np.float32))
    request = retriever_pb2.SearchRequest(database=book.name, snapshot=book.id, k=1, queries=queries)
    if server.shards is not None:
        request.shard = server.shards[0]
    end = time.monotonic() + seconds
    with grpc.insecure_channel(server.address) as channel:
        while True:
            try:
                retriever_pb2_grpc.RetrieverStub(channel).Search(request, timeout=60)
                return True
            except grpc.RpcError:
                if time.monotonic() > end:
                    return False
            time.sleep(0.1)


def _free_watchers(router: str) -> int:
    """How many of MAX_WATCHERS watches that stay open the router answers at the same time."""
    import grpc

    from openbook_proto.v1 import admin_pb2, admin_pb2_grpc

    answered = 0
    with ExitStack() as stack:
        for _ in range(MAX_WATCHERS):
            channel = stack.enter_context(grpc.insecure_channel(router))
            watch = admin_pb2_grpc.DatabaseAdminStub(channel).Watch(admin_pb2.WatchRequest(), timeout=30)
            stack.callback(watch.cancel)
            try:
                answered += bool(next(watch).databases)
            except grpc.RpcError:
                break
    return answered


if __name__ == "__main__":
    sys.exit(main())
