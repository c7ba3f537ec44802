"""Random requests, valid and not, from several callers against a real embedder process; what it answers is checked.

    python benchmarks/embedder_fuzz.py [--requests N] [--seed S] [--json FILE]

Every reply has an oracle (`embedder_requests.py`). Afterwards the service must be healthy, its queue empty, all its
places free, and its memory where it was. Exit code 1 where anything was not right; the first violations are printed.
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
    from embedder_process import EmbedderProcess
    from embedder_requests import Oracle

CALLERS, MAX_CALLS, MAX_TEXTS = 6, 24, 64
# How often each request is made; those that are dear come seldom.
GRPC = {
    "texts": 20,
    "token_ids": 8,
    "refused": 20,
    "not_utf8": 6,
    "garbage": 6,
    "cancelled": 8,
    "late": 8,
    "stream": 6,
    "stream_left": 4,
    "raw_socket": 2,
}
HTTP = {"texts": 12, "refused": 14, "not_json": 6, "routes": 2, "dropped": 6, "too_large": 1, "raw_socket": 1}
_SHOWN = 10
# Memory is compared between these shares of the time. Requests of 2 MB and more than a hundred threads leave the allocator
# some tens of MB while it warms; keeping what 6000 requests bring would take more than ten times this.
_GROWTH_BYTES = 64e6
_LAST = ((0.25, 0.5), (0.75, 1.0))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", help="folder or name; by default the one that is served by default")
    parser.add_argument("--limit-s", type=int, default=3600, help="ends it without a result")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome")
    options = parser.parse_args(arguments)
    from openbook_core.weights import DEFAULT_EMBEDDER

    return run_benchmark(
        lambda work: run(options.model or DEFAULT_EMBEDDER, options.requests, options.seed, work),
        figure_lines,
        limit_s=options.limit_s,
        json_file=options.json,
        passed=lambda result: result["passed"],
    )


def run(model: str, requests: int, seed: int, work: Path) -> dict[str, Any]:
    """{passed, counts, raw}."""
    from embedder_process import EmbedderProcess

    circumstances = environment()
    options = ["--model", model, "--max-texts", str(MAX_TEXTS), "--max-calls", str(MAX_CALLS)]
    with EmbedderProcess(work / "embedder.log", options) as server:
        oracle, dtype = oracle_of(server, model)
        begun = time.monotonic()
        outcomes, violations, samples = _fuzz(server, oracle, requests, seed)
        seconds = time.monotonic() - begun
        after = settle(server)
        free = _free_places(server, oracle)
        log = server.log.read_text(errors="replace")
    half, end = (
        median(size for second, size in samples if low <= second / samples[-1][0] <= high) for low, high in _LAST
    )
    unexpected = [line for line in log.splitlines() if "unexpected" in line or "Traceback" in line]
    checks = {
        "no_violations": not violations,
        "ready": after["ready"],
        "queue_empty": after["queue_texts"] == 0 and after["queue_tokens"] == 0,
        "all_places_free": free == MAX_CALLS,
        "memory_flat": end - half < _GROWTH_BYTES,
        "nothing_unexpected_logged": not unexpected,
    }
    return {
        "passed": all(checks.values()),
        **checks,
        "requests": sum(outcomes.values()),
        "violations": len(violations),
        "resident_mb_second_quarter": round(half / 1e6, 1),
        "resident_mb_last_quarter": round(end / 1e6, 1),
        "raw": {
            "command": f"python benchmarks/embedder_fuzz.py --requests {requests} --seed {seed}",
            **circumstances,
            "model": model,
            "dtype": dtype,
            "callers": CALLERS,
            "seconds": round(seconds, 1),
            "outcomes": dict(sorted(outcomes.items())),
            "violations": violations[:_SHOWN],
            "logged": unexpected[:_SHOWN],
            "after": after,
            "samples": samples,
        },
    }


def oracle_of(server: EmbedderProcess, model: str) -> tuple[Oracle, str]:
    """What checks the replies of a server of `model`, with an encoder of the server's dtype; and that dtype."""
    from embedder_requests import Oracle

    from openbook_core.clients.embedder import EmbedderClient
    from openbook_embedder.engine import EncoderEngine

    with EmbedderClient(server.address) as client:
        info = client.info()
    engine = EncoderEngine.load(model, dtype="float32" if info.dtype == "float32" else "bfloat16")
    return Oracle(engine, fuzz_texts(engine, model), model=model, max_texts=info.max_texts), info.dtype


def fuzz_texts(engine: Any, model: str) -> list[str]:
    """Pieces of the factbook, odd characters, and texts that are longer than the encoder reads."""
    from embedder_texts import Pieces

    from openbook_core.weights import resolve_model

    odd = [
        " ",
        "\n\t",
        "x\u0000y\ufffd\ufeff\u200b",
        "e\u0301 \u0130 \U0001f469\u200d\U0001f467 \U0010fffd",
        "[CLS] [SEP] [PAD] <s> </s>",
        "\u202eשלום",
        "a" * 3000,
        "word " * 40_000,
    ]
    return [*Pieces(engine, resolve_model(model)).mixed(40).texts, *odd]


def _fuzz(
    server: EmbedderProcess, oracle: Oracle, requests: int, seed: int
) -> tuple[Counter[str], list[str], list[tuple[float, int]]]:
    """Outcomes by kind, violations, and samples of [seconds, resident bytes]."""
    from embedder_requests import GrpcRequests, HttpRequests, Violation

    outcomes: Counter[str] = Counter()
    violations: list[str] = []
    lock, done = threading.Lock(), threading.Event()

    def caller(number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        grpc_side, http_side = GrpcRequests(server.address, oracle), HttpRequests(server.http, oracle)
        kinds: dict[tuple[str, Callable[[random.Random], str]], int] = {}
        for prefix, side, weights in (("grpc", grpc_side, GRPC), ("http", http_side, HTTP)):
            kinds |= {(f"{prefix} {name}", getattr(side, name)): weight for name, weight in weights.items()}
        for made in range(requests // CALLERS):
            (name, make) = rng.choices(list(kinds), list(kinds.values()))[0]
            try:
                outcome = make(rng)
            except Violation as violation:
                outcome = "VIOLATION"
                with lock:
                    violations.append(f"seed {seed}/{number}, request {made}, {name}: {violation}")
            except Exception as error:  # noqa: BLE001  a transport that breaks where it should not is a violation too
                outcome = "VIOLATION"
                with lock:
                    violations.append(f"seed {seed}/{number}, request {made}, {name}: {type(error).__name__}: {error}")
            with lock:
                outcomes[f"{name}: {outcome}"] += 1
        grpc_side.close()
        http_side.close()

    samples = []
    begun = time.monotonic()
    with ThreadPoolExecutor(CALLERS) as pool:
        running = [pool.submit(caller, number) for number in range(CALLERS)]
        while not all(each.done() for each in running):
            samples.append((round(time.monotonic() - begun, 1), server.resident_bytes()))
            done.wait(0.5)
        for each in running:
            each.result()
    samples.append((round(time.monotonic() - begun, 1), server.resident_bytes()))
    return outcomes, violations, samples


def settle(server: EmbedderProcess, seconds: float = 10.0) -> dict[str, Any]:
    """What the service shows when nobody calls: readiness and queue, once the queue is empty or `seconds` have passed."""
    names = ("queue_texts", "queue_tokens", "batch_failures_total", "worker_restarts_total")
    deadline = time.monotonic() + seconds
    while True:
        shown = {name: server.metric(f"openbook_embedder_{name}") for name in names}
        if shown["queue_tokens"] == 0 or time.monotonic() > deadline:
            return {"ready": server.ready(), **shown}
        time.sleep(0.1)


def _free_places(server: EmbedderProcess, oracle: Oracle) -> int:
    """How many of MAX_CALLS streams that stay open the service answers at the same time."""
    from openbook_core.clients.embedder import EmbedderClient

    answered = 0
    with ExitStack() as stack:
        for _ in range(MAX_CALLS):
            client = stack.enter_context(EmbedderClient(server.address))
            stream = client.embed_stream(([text] for text in oracle.texts), "passage", window=1)
            stack.callback(stream.close)
            answered += not isinstance(next(stream), Exception)
    return answered


if __name__ == "__main__":
    sys.exit(main())
