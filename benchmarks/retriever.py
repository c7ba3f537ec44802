"""The retriever through router and shard against bare Faiss with the same index, and against servers as commonly written.

    python benchmarks/retriever.py [--quick] [--json FILE] [--plot FILE.png]

The work is k = 2 with tokens and continuation over clustered vectors in IVF,SQ8, built by the real builder. Bare Faiss
holds the lists in memory, which is faster than searching them mapped (reported beside it, with 4-bit product codes).

- calls of 64 queries, four callers; calls of one query, one caller; single queries of 32 callers at once;
- processor time is that of router and shard, or of the whole process for bare Faiss; the callers share the cores;
- in the full run also how latency and memory grow from 10^5 to 10^7 vectors (IVF,PQ; in the library).

Sides take turns trial by trial. Processes run with their defaults.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import environment, in_turns, run_benchmark
from retriever_figures import passed, plot, report, summarise

SEED = 7
_STARTED = time.monotonic()


@dataclass(frozen=True)
class Size:
    """`queries` a trial of each part, by part; no round begins that would take a part past its seconds."""

    rows: int
    dimension: int
    lists: int
    nprobe: int
    queries_of_64: int
    queries_of_1: int
    queries_of_32_callers: int
    rounds: int
    part_seconds: float
    growth: tuple[int, ...]
    limit_s: int


QUICK = Size(100_000, 384, 1024, 32, 2048, 256, 2048, 5, 25, (), 900)
FULL = Size(1_000_000, 384, 4096, 64, 4096, 1024, 4096, 9, 120, (100_000, 1_000_000, 10_000_000), 7200)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where every goal is met, 1 where one is missed: the figures are written all the same; 1 or 130 (Ctrl-C)
    without any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="100,000 vectors and no growth, under three minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and all trials")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures")
    parser.add_argument(
        "--device", default="cpu", help="of the shard: cpu, or a GPU (cuda, cuda:1); bare Faiss stays on the CPU"
    )
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    return run_benchmark(
        partial(run, size, device=options.device),
        report,
        limit_s=size.limit_s,
        json_file=options.json,
        plot=partial(plot, path=options.plot) if options.plot else None,
        passed=passed,
    )


def run(size: Size, work: Path, device: str = "cpu") -> dict[str, Any]:
    """All parts, one after another: {figures, raw}."""
    import faiss
    import retriever_sides as sides
    from retriever_data import bare_index, build, fast_scan_index
    from retriever_growth import growth

    begun, circumstances = time.monotonic(), environment()
    threads = circumstances["cores"]
    _say("building the snapshot")
    most = max(size.queries_of_64, size.queries_of_1, size.queries_of_32_callers)
    data = build(
        work,
        rows=size.rows,
        dimension=size.dimension,
        lists=size.lists,
        nprobe=size.nprobe,
        queries=most,
        seed=SEED,
    )
    raw: dict[str, Any] = {
        "command": "python benchmarks/retriever.py"
        + " --quick" * (size is QUICK)
        + f" --device {device}" * (device != "cpu"),
        **circumstances,
        "device": device,
        "versions": {"faiss": faiss.__version__, **{name: version(name) for name in ("grpcio", "numpy")}},
        "size": asdict(size),
        "seed": SEED,
        "k": sides.K,
        "built_s": round(time.monotonic() - begun, 1),
        "parts": {},
    }
    bare = bare_index(data.snapshot, size.nprobe)
    mapped = bare_index(data.snapshot, size.nprobe, mapped=True)
    fast = fast_scan_index(data, size.lists, size.nprobe)
    everyone = {
        "bare": sides.Side(lambda: sides.BareCaller(bare, threads)),
        "bare_mapped": sides.Side(lambda: sides.BareCaller(mapped, threads)),
        "fast_scan": sides.Side(lambda: sides.BareCaller(fast, threads)),
    }
    with ExitStack() as stack:
        _say("starting the processes")
        everyone["openbook"] = stack.enter_context(sides.retriever(data, work, device))
        everyone |= stack.enter_context(sides.baselines(data, work, threads))
        raw["same_ids"] = _same_ids(everyone, data.queries[:256])
        plan = {
            "calls_of_64": (size.queries_of_64, 64, 4, everyone.keys()),
            "calls_of_1": (size.queries_of_1, 1, 1, everyone.keys()),
            "singles_of_32_callers": (size.queries_of_32_callers, 1, 32, ("openbook", "pickle", "http", "grpc")),
        }
        for part, (queries, per_call, callers, names) in plan.items():
            _say(part)
            # Bare Faiss is one call at a time: its threads are its own.
            trials = {
                name: partial(
                    sides.trial,
                    everyone[name],
                    data.queries[:queries],
                    per_call,
                    callers if everyone[name].pids else 1,
                )
                for name in everyone
                if name in names
            }
            raw["parts"][part] = in_turns(trials, size.rounds, budget_s=size.part_seconds)
    if size.growth:
        _say("growth")
        raw["growth"] = growth(size.growth, size.dimension, work / "growth", SEED)
    raw["load_1m_after"] = round(os.getloadavg()[0], 2)
    raw["seconds"] = round(time.monotonic() - begun, 1)
    return summarise(raw) | {"raw": raw}


def _same_ids(everyone: Any, queries_QD: Any) -> dict[str, float]:
    """Share of the ids that each side gives as bare Faiss does."""
    from retriever_sides import K

    found = {}
    for name, side in everyone.items():
        caller = side.connect()
        found[name] = caller(queries_QD, K)
        caller.close()
    return {name: round(float((ids == found["bare"]).mean()), 4) for name, ids in found.items()}


def _say(text: str) -> None:
    print(f"[retriever {time.monotonic() - _STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
