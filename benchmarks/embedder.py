"""The embedder against sentence-transformers, infinity's server and its own bare encoder loop.

    python benchmarks/embedder.py [--quick] [--peers all|none] [--json FILE] [--plot FILE.png]

- offline: texts to vectors inside one process, ours (`EncoderEngine.encode`) and sentence-transformers' `encode`, on
  chunks of 64 tokens of the factbook and on lengths spread evenly over 8 to 256; the library at its best batch and wait
  policy of its threads in the same dtype and in float32, and with nothing set (batch 32, float32);
- served: 16 callers at once in a closed loop, 32 texts a call and one, through gRPC and HTTP, beside infinity's server
  over HTTP (in the same dtype at its best settings, and with nothing set) and the bare loop: the same network and
  tokenizer without a service, at its best batch;
- latency: calls of one text at Poisson arrivals of 30, 60 and 90% of what 16 callers of one text reach;
- start-up, padding, and in the full run resident memory under 20 minutes of mixed load (`embedder_soak.py`).

Sides take turns trial by trial. The service runs with its defaults, on the same cores as its callers. With `--geometry`
only the encoder on a GPU is measured (`embedder_gpu.py`).
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

from embedder_figures import plot, report, summarise, texts_per_s
from measure import environment, run_benchmark

SEED = 4
_STARTED = time.monotonic()


@dataclass(frozen=True)
class Size:
    """How much is measured; no round begins that would take a part past its seconds once it has `least` rounds."""

    chunks: int
    mixed: int
    calibration: int
    singles: int
    rounds: int
    least: int
    part_seconds: float
    open_seconds: float
    starts: int
    infinity_batches: tuple[int, ...]
    soak_minutes: float
    limit_s: int


QUICK = Size(
    chunks=64,
    mixed=48,
    calibration=16,
    singles=64,
    rounds=7,
    least=1,
    part_seconds=30,
    open_seconds=4,
    starts=1,
    infinity_batches=(32,),
    soak_minutes=0,
    limit_s=1200,
)
FULL = Size(
    chunks=256,
    mixed=128,
    calibration=64,
    singles=512,
    rounds=7,
    least=5,
    part_seconds=120,
    open_seconds=30,
    starts=3,
    infinity_batches=(32, 64),
    soak_minutes=20,
    limit_s=7200,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 with all figures, 1 or 130 (Ctrl-C) without; nothing is written then."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few trials, about two minutes")
    parser.add_argument("--peers", choices=("all", "none"), default="all", help="none measures ourselves alone")
    parser.add_argument("--model", help="folder or name; by default the one that is served by default")
    parser.add_argument("--soak-minutes", type=float, help=f"default {FULL.soak_minutes}, with --quick none")
    parser.add_argument("--geometry", choices=("bert-base", "bert-large"), help="random weights on a GPU, nothing else")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and all trials")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures")
    options = parser.parse_args(arguments)
    if options.geometry and options.plot:
        parser.error("--geometry has no plot")
    size = QUICK if options.quick else FULL
    soak_minutes = size.soak_minutes if options.soak_minutes is None else options.soak_minutes
    from openbook_core.weights import DEFAULT_EMBEDDER

    def measure(work: Path) -> dict[str, Any]:
        if options.geometry:
            from embedder_gpu import measure_geometry

            return measure_geometry(options.geometry, work)
        return run(size, options.model or DEFAULT_EMBEDDER, options.peers == "all", soak_minutes, work)

    return run_benchmark(
        measure,
        report,
        limit_s=size.limit_s + int(60 * soak_minutes),
        json_file=options.json,
        plot=partial(plot, path=options.plot) if options.plot else None,
    )


def run(size: Size, model: str, peers: bool, soak_minutes: float, work: Path) -> dict[str, Any]:
    """All parts, one after another: {figures, raw}."""
    import embedder_offline as offline
    import embedder_served as served
    import torch
    from embedder_sides import PEERS, Infinity, SentenceTransformers, infinity_versions, require_peers
    from embedder_texts import Pieces

    from openbook_core.weights import resolve_model

    if peers:
        require_peers(PEERS)
    begun, circumstances, folder = time.monotonic(), environment(), resolve_model(model)
    limits = {"rounds": size.rounds, "budget_s": size.part_seconds, "least": size.least}
    _say("loading the encoder in each dtype")
    engine, exact, probe = offline.load_encoder(model)
    bare, dtype, pieces = offline.BareLoop(engine), engine.dtype, Pieces(engine, folder)
    material = {"chunks": pieces.chunks(size.chunks), "mixed": pieces.mixed(size.mixed, SEED)}
    raw: dict[str, Any] = {
        "command": " ".join(
            ["python benchmarks/embedder.py"]
            + ["--quick"] * (size is QUICK)
            + ["--peers none"] * (not peers)
            + [f"--soak-minutes {soak_minutes:g}"] * (soak_minutes != size.soak_minutes)
        ),
        **circumstances,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "grpcio", "numpy")},
        "threads": torch.get_num_threads(),
        "model": model,
        "dtype": dtype,
        "dtype_probe": probe,
        "size": asdict(size),
        "seed": SEED,
        "callers": served.CALLERS,
        "texts": {name: texts.facts() for name, texts in material.items()},
        "batch": {},
        "offline": {},
        "cosines": {},
        "served": {},
    }
    with ExitStack() as stack:
        library = None
        if peers:
            _say("loading sentence-transformers")
            dtypes = sorted({dtype, "float32"})
            library = stack.enter_context(SentenceTransformers(folder, dtypes, work))
            raw["peers"] = {"sentence-transformers": library.about, "infinity": {"versions": infinity_versions()}}
        for name, texts in material.items():
            _say(f"offline, {name}: the best batch of each side, then trials")
            raw["batch"][name] = offline.calibrate(bare, library, dtype, texts.texts[: size.calibration])
            raw["offline"][name] = offline.measure(bare, library, dtype, texts.texts, raw["batch"][name], **limits)
            if library is not None:
                engines = {"float32": exact, dtype: engine}
                raw["cosines"][name] = offline.compare_vectors(engines, library, texts)
    chunks, mixed = (material[name].texts for name in ("chunks", "mixed"))
    options = ["--model", model, "--http-role", "passage"]
    _say("starting the embedder")
    with served.start_embedder(work, size.starts, options) as (server, raw["start_s"]), ExitStack() as stack:
        infinity: dict[str, Infinity] = {}
        if peers:
            _say("starting infinity")
            infinity, raw["batch"]["infinity"] = stack.enter_context(
                served.start_infinity(folder, dtype, size.infinity_batches, chunks[: size.calibration], work)
            )
        for part, texts, per_call in (
            ("calls_of_32", (chunks * 32)[: 32 * served.CALLERS], 32),
            ("calls_of_1", (chunks * 2)[: size.singles], 1),
            ("mixed_calls_of_4", mixed, 4),
        ):
            _say(f"served, {part}")
            best = raw["batch"]["mixed" if texts is mixed else "chunks"]["bare"]["best"]["batch"]
            raw["served"][part] = served.measure_served(server, infinity, bare, best, texts, per_call, model, **limits)
        stack.close()
        _say("latency")
        capacity = texts_per_s(raw["served"]["calls_of_1"]["grpc"])
        raw["open_loop"] = served.measure_latency(server, chunks, capacity, size.open_seconds, SEED)
        if soak_minutes:
            from embedder_soak import SOAK_SHARE, soak

            _say(f"mixed load for {soak_minutes} minutes")
            rate = SOAK_SHARE * texts_per_s(raw["served"]["mixed_calls_of_4"]["grpc"])
            raw["soak"] = soak(server, model, minutes=soak_minutes, texts_per_s=rate)
    raw["load_1m_after"] = round(os.getloadavg()[0], 2)
    raw["seconds"] = round(time.monotonic() - begun, 1)
    return summarise(raw) | {"raw": raw}


def _say(text: str) -> None:
    print(f"[embedder {time.monotonic() - _STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
