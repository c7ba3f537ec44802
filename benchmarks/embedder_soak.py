"""Mixed load at a steady rate for a while; the embedder's memory is sampled and every reply checked.

    python benchmarks/embedder_soak.py [--minutes 20] [--texts-per-s N] [--json FILE]

By default the rate is SOAK_SHARE of what 16 callers of 4 texts reach just before. Exit code 1 where a reply is wrong or
memory is not flat (`embedder_figures.memory_figures`): the allocator fills for minutes, so a short run is not.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedder_figures import memory_figures
from embedder_figures import texts_per_s as median_rate
from measure import environment, figure_lines, run_benchmark

if TYPE_CHECKING:
    from embedder_process import EmbedderProcess
    from embedder_requests import Oracle

CALLERS, SAMPLE_S, SEED = 4, 5.0, 4
SOAK_SHARE = 0.3
# Kind of request -> how often, and the texts it has on average.
GRPC = {"texts": (10, 8.5), "token_ids": (4, 4.5), "stream": (2, 23.0), "refused": (1, 0.0), "cancelled": (1, 8.5)}
HTTP = {"texts": (4, 4.5), "refused": (1, 0.0), "dropped": (1, 8.5)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--texts-per-s", type=float, help=f"default {SOAK_SHARE:.0%} of the measured capacity")
    parser.add_argument("--model", help="folder or name; by default the one that is served by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome")
    options = parser.parse_args(arguments)
    from openbook_core.weights import DEFAULT_EMBEDDER

    return run_benchmark(
        lambda work: run(options.model or DEFAULT_EMBEDDER, options.minutes, options.texts_per_s, work),
        figure_lines,
        limit_s=int(60 * options.minutes) + 300,
        json_file=options.json,
        passed=lambda result: not result["violations"] and result["resident_flat"],
    )


def run(model: str, minutes: float, texts_per_s: float | None, work: Path) -> dict[str, Any]:
    """{figures, raw}."""
    from embedder_process import EmbedderProcess

    circumstances = environment()
    command = f"python benchmarks/embedder_soak.py --minutes {minutes:g}"
    with EmbedderProcess(work / "embedder.log", ["--model", model]) as server:
        trials = []
        if texts_per_s is None:
            trials = _capacity_trials(server, model)
            texts_per_s = SOAK_SHARE * median_rate(trials)
        else:
            command += f" --texts-per-s {texts_per_s:g}"
        found = soak(server, model, minutes=minutes, texts_per_s=texts_per_s)
    return memory_figures(found["samples"]) | {
        "texts_per_s": round(texts_per_s, 2),
        "requests": sum(found["outcomes"].values()),
        "violations": len(found["violations"]),
        "raw": {"command": command, **circumstances, "capacity_trials": trials, **found},
    }


def _capacity_trials(server: EmbedderProcess, model: str) -> list[dict[str, float]]:
    """Texts of 8 to 256 tokens, 4 a call, as in the benchmark's served part."""
    from embedder_loads import GrpcCaller, closed_loop
    from embedder_served import CALLERS as CLOSED_CALLERS
    from embedder_texts import Pieces

    from openbook_core.weights import resolve_model
    from openbook_embedder.engine import EncoderEngine

    engine = EncoderEngine.load(model, dtype="float32")
    texts = Pieces(engine, resolve_model(model)).mixed(128, SEED).texts

    def trial() -> dict[str, float]:
        return closed_loop([GrpcCaller(server.address) for _ in range(CLOSED_CALLERS)], texts, 4)

    trial()  # warm
    return [trial() for _ in range(3)]


def soak(server: EmbedderProcess, model: str, *, minutes: float, texts_per_s: float) -> dict[str, Any]:
    """CALLERS that together offer `texts_per_s`; samples are [seconds, resident bytes, of them no file's]."""
    from embedder_fuzz import oracle_of, settle

    oracle, dtype = oracle_of(server, model)
    end = time.monotonic() + 60 * minutes
    outcomes: Counter[str] = Counter()
    violations: list[str] = []
    lock = threading.Lock()

    def caller(number: int) -> None:
        _call_until(end, number, server, oracle, CALLERS / texts_per_s, outcomes, violations, lock)

    samples, begun = [], time.monotonic()
    with ThreadPoolExecutor(CALLERS) as pool:
        running = [pool.submit(caller, number) for number in range(CALLERS)]
        while not all(each.done() for each in running):
            samples.append([round(time.monotonic() - begun, 1), server.resident_bytes(), server.anonymous_bytes()])
            time.sleep(min(SAMPLE_S, max(0.1, end - time.monotonic())))
        for each in running:
            each.result()
    return {
        "minutes": minutes,
        "texts_per_s": texts_per_s,
        "callers": CALLERS,
        "seed": SEED,
        "model": model,
        "dtype": dtype,
        "outcomes": dict(sorted(outcomes.items())),
        "violations": violations[:10],
        "after": settle(server),
        "samples": samples,
    }


def _call_until(
    end: float,
    number: int,
    server: EmbedderProcess,
    oracle: Oracle,
    seconds_per_text: float,
    outcomes: Counter[str],
    violations: list[str],
    lock: threading.Lock,
) -> None:
    from embedder_requests import GrpcRequests, HttpRequests, Violation

    rng = random.Random(f"{SEED}/{number}")
    grpc_side, http_side = GrpcRequests(server.address, oracle), HttpRequests(server.http, oracle)
    kinds = [(f"grpc {name}", getattr(grpc_side, name), *how) for name, how in GRPC.items()]
    kinds += [(f"http {name}", getattr(http_side, name), *how) for name, how in HTTP.items()]
    due = time.monotonic() + rng.random() * 8 * seconds_per_text
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        name, make, _, texts = rng.choices(kinds, [weight for _, _, weight, _ in kinds])[0]
        try:
            outcome = make(rng)
        except (Violation, OSError) as violation:
            outcome = "VIOLATION"
            with lock:
                violations.append(f"{name}: {violation}")
        with lock:
            outcomes[f"{name}: {outcome}"] += 1
        due += max(1.0, texts) * seconds_per_text
    grpc_side.close()
    http_side.close()


if __name__ == "__main__":
    sys.exit(main())
