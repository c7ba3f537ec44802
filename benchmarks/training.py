"""Training and decoding: a RETRO against its GPT twin and against retro-pytorch; live neighbours against the cache.

    python benchmarks/training.py [--quick] [--peers all|none] [--device cpu|cuda] [--json FILE] [--plot FILE.png]

- the twin: steps of the RETRO and of the GPT of the same decoder in turns, each in a process of its own, seconds beside
  FLOPs, and peak memory;
- retro-pytorch at equal shapes on the same batches in turns, in each dtype; ours also compiled;
- torch.compile: graphs for batches of other phases, lengths and packing, none of which may be compiled again;
- live neighbours: steps fed by a running retriever and by the neighbour cache in turns, query vectors at hand;
- decoding with a cache, a token of RETRO and of twin in turns, and retro-pytorch's own generation;
- with `--device cuda` model FLOPs utilisation by size, bfloat16 and compiled; nothing else is measured on a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import ROOT, environment, in_turns, run_benchmark
from training_figures import plot, report, summarise

_STARTED = time.monotonic()


@dataclass(frozen=True)
class Size:
    """How much is measured; `model` holds settings of RetroConfig. A part's rounds end with its seconds."""

    model: Mapping[str, Any]
    sequences: int
    chunks: int
    rounds: int
    part_seconds: float
    dtypes: tuple[str, ...]
    varied: int
    documents: int
    live_steps: int
    live_rounds: int
    decode_sequences: tuple[int, ...]
    prompt: int
    decode_tokens: int
    decode_rounds: int
    mfu_sequences: int
    limit_s: int


QUICK = Size(
    model={"size": "tiny", "hidden_size": 256, "num_heads": 4, "encoder": {"hidden_size": 64, "num_heads": 2}},
    sequences=2,
    chunks=4,
    rounds=3,
    part_seconds=60,
    dtypes=("float32",),
    varied=6,
    documents=40,
    live_steps=4,
    live_rounds=2,
    decode_sequences=(1, 4),
    prompt=64,
    decode_tokens=66,
    decode_rounds=1,
    mfu_sequences=4,
    limit_s=1800,
)
FULL = Size(
    model={"size": "125m"},
    sequences=1,
    chunks=16,
    rounds=7,
    part_seconds=240,
    dtypes=("float32", "bfloat16"),
    varied=8,
    documents=120,
    live_steps=5,
    live_rounds=2,
    decode_sequences=(1, 8),
    prompt=64,
    decode_tokens=128,
    decode_rounds=3,
    mfu_sequences=16,
    limit_s=3600,
)
MFU_SIZES = ("125m", "350m")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 with all figures, 1 or 130 (Ctrl-C) without; nothing is written then."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, some minutes")
    parser.add_argument("--peers", choices=("all", "none"), default="all", help="none measures ourselves alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda adds the utilisation by size")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bfloat16; measured by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and all trials")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL

    def measure(work: Path) -> dict[str, Any]:
        from openbook_core.weights import DEFAULT_MODEL

        data = ROOT / "examples" / "factbook" / "2015-11-18.jsonl.zst"
        peers = options.peers == "all"
        peak = options.peak_tflops
        return run(size, data, DEFAULT_MODEL, work, peers=peers, device=options.device, peak_tflops=peak)

    return run_benchmark(
        measure,
        report,
        limit_s=size.limit_s,
        json_file=options.json,
        plot=partial(plot, path=options.plot) if options.plot else None,
    )


def run(
    size: Size,
    data: Path,
    tokenizer: str,
    work: Path,
    *,
    peers: bool,
    compiled: bool = True,
    device: str = "cpu",
    peak_tflops: float | None = None,
) -> dict[str, Any]:
    """All parts, one after another: {figures, raw}."""
    import torch
    from training_decoding import Decoder
    from training_live import measure_live
    from training_steps import random_work, save_work

    from openbook_model import RetroConfig

    begun, circumstances = time.monotonic(), environment()
    if peers:
        from embedder_sides import require_peers
        from training_sides import PEER

        require_peers((PEER,))
    config = RetroConfig.parse(size.model)
    batch = work / "work.npz"
    save_work(random_work(config, size.sequences, size.chunks, seed=1), batch)
    raw: dict[str, Any] = {
        "command": " ".join(["python benchmarks/training.py", *sys.argv[1:]]),
        **circumstances,
        "versions": {name: version(name) for name in ("torch", "numpy")},
        "threads": torch.get_num_threads(),
        "size": {**asdict(size), "dtypes": list(size.dtypes), "decode_sequences": list(size.decode_sequences)},
        "model": config.model_dump(mode="json"),
        "tokens": size.sequences * size.chunks * config.chunk_length,
    }
    _say("steps of the RETRO and of its twin in turns")
    raw["twin"] = _measure_twin(size, raw["model"], batch, work)
    if peers:
        raw["retro_pytorch"] = _measure_peer(size, config, batch, work)
    raw["compile"] = None
    if compiled:
        _say("torch.compile over varied batches")
        raw["compile"] = _measure_compile(size, raw, config, batch, work)
    _say("decoding")
    decoder = Decoder(config)
    raw["decode"] = {
        str(sequences): [decoder.round(sequences, size.prompt, size.decode_tokens) for _ in range(size.decode_rounds)]
        for sequences in size.decode_sequences
    }
    del decoder
    _say("steps with live and with cached neighbours")
    (work / "live").mkdir()
    raw["live"] = measure_live(
        config,
        "float32",
        data,
        tokenizer,
        documents=size.documents,
        sequences=size.sequences,
        chunks=size.chunks,
        steps=size.live_steps,
        rounds=size.live_rounds,
        work=work / "live",
    )
    raw["mfu"] = _measure_mfu(size, device, peak_tflops, work)
    raw |= {"load_1m_after": round(os.getloadavg()[0], 2), "seconds": round(time.monotonic() - begun, 1)}
    return summarise(raw) | {"raw": raw}


def _measure_twin(size: Size, model: Mapping[str, Any], batch: Path, work: Path) -> dict[str, Any]:
    from training_sides import ours

    with (
        ours(model, batch, work / "retro.log") as retro,
        ours(model, batch, work / "twin.log", twin=True) as twin,
    ):
        return _in_turns({"retro": retro, "twin": twin}, size)


def _measure_peer(size: Size, config: Any, batch: Path, work: Path) -> dict[str, Any]:
    from training_decoding import Decoder
    from training_sides import ours, retro_pytorch
    from training_steps import equal_to_peer, peer_arguments

    equal = equal_to_peer(config)
    model, arguments = equal.model_dump(mode="json"), peer_arguments(equal)
    found: dict[str, Any] = {"model": model, "arguments": dict(arguments), "ours": {}, "retro_pytorch": {}}
    decoding: dict[str, list[Any]] = {"ours": [], "retro_pytorch": []}
    for dtype in size.dtypes:
        _say(f"steps of ours and of retro-pytorch in turns, {dtype}")
        with (
            ours(model, batch, work / "equal.log", dtype=dtype) as own,
            retro_pytorch(arguments, batch, work / "peer.log", dtype=dtype) as peer,
        ):
            trials = _in_turns({"ours": own, "retro_pytorch": peer}, size)
        for name, side in trials.items():
            found[name][dtype] = side
    _say("decoding, ours and retro-pytorch's")
    decoder = Decoder(equal, with_twin=False)
    request = {"prompt": size.prompt, "tokens": size.decode_tokens}
    with retro_pytorch(arguments, batch, work / "peer.log") as peer:
        for _ in range(size.decode_rounds):
            decoding["ours"].append(decoder.round(1, size.prompt, size.decode_tokens)["retro"])
            decoding["retro_pytorch"].append(peer.ask(request)["seconds"])
    return {**found, "decode": decoding}


def _measure_compile(size: Size, raw: dict[str, Any], config: Any, batch: Path, work: Path) -> dict[str, Any]:
    """Graphs of varied batches; and, where the peer was measured, steps at its shapes in the quickest dtype."""
    from statistics import median

    from training_sides import ours

    peer = raw.get("retro_pytorch")
    model = raw["model"] if peer is None else peer["model"]
    dtype = "float32"
    if peer is not None:
        dtype = min(peer["ours"], key=lambda name: median(peer["ours"][name]["seconds"]))
    with ours(model, batch, work / "compiled.log", dtype=dtype, compiled=True) as side:
        varied: dict[str, Any] = side.ask({"varied": size.varied})
        timed = side.step(min(3, size.rounds))
        if peer is not None:
            peer["ours"][f"{dtype}, compiled"] = {**side.about, **timed}
    return {"dtype": dtype, **varied}


def _measure_mfu(size: Size, device: str, peak_tflops: float | None, work: Path) -> dict[str, Any]:
    import torch

    if device != "cuda":
        reason = "no GPU was asked for" if torch.cuda.is_available() else "no GPU here"
        return {"reason": f"{reason}; the goals are those of a GPU (--device cuda)"}
    from training_sides import ours
    from training_steps import random_work, save_work

    from openbook_model import RetroConfig
    from openbook_trainer.compute import measured_peak_flops

    peak = peak_tflops * 1e12 if peak_tflops else measured_peak_flops(torch.device("cuda"), torch.bfloat16)
    sizes = {}
    for name in MFU_SIZES:
        _say(f"utilisation of {name}")
        config, batch = RetroConfig.parse({"size": name}), work / f"{name}.npz"
        save_work(random_work(config, size.mfu_sequences, config.max_positions // config.chunk_length, seed=1), batch)
        options = {"dtype": "bfloat16", "device": device, "compiled": True}
        with ours(config.model_dump(mode="json"), batch, work / f"{name}.log", **options) as side:  # type: ignore[arg-type]
            side.step(3)
            sizes[name] = {**side.about, **side.step(10)}
    return {"device": torch.cuda.get_device_name(), "peak_flops": peak, "sizes": sizes}


def _in_turns(sides: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """For each side what it says of itself, the seconds of its steps after a first one, and its peak of memory."""
    for side in sides.values():
        side.step()
    trials = in_turns(
        {name: side.step for name, side in sides.items()}, size.rounds, budget_s=size.part_seconds, least=1
    )
    return {
        name: {
            **sides[name].about,
            "seconds": [second for trial in own for second in trial["seconds"]],
            "cpu_s": [trial["cpu_s"] for trial in own],
            "peak_mb": own[-1]["peak_mb"],
        }
        for name, own in trials.items()
    }


def _say(text: str) -> None:
    print(f"[training {time.monotonic() - _STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
